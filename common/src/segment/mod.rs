//! The segment: shared memory by which restore (the coordinator) and the fixups work together.
//!
//! Restore makes it with [`Segment::create`]; it is gone when the [`Owner`] is dropped. A fixup opens
//! it, claims a master, and moves the superblocks of that master forward. Each change wakes all who
//! wait. Life is told by locks on single bytes of the file, which the kernel frees with their holder: see
//! `lock.rs` for why it is this kind of lock, and for what holds for children.
//!
//! What does not change is read once and checked as a whole. Of what is shared, only 32-bit words are left,
//! each checked whenever it is loaded. The file has mode 0600 and must belong to the user that reads it,
//! so nobody else can write to it or shrink it. A fixup in a user namespace in which the file's owner has
//! no id cannot use it.

mod error;
mod file;
mod layout;
mod locator;
mod lock;
mod plan;
mod progress;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::thread::futex;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::doc::stage::SegmentAddress;
use crate::model::Pid;
use crate::sys::mmap::SharedWords;
use layout::Contents;
use lock::Byte;

pub use error::{ClaimError, ProgressError, SegmentError};
pub use layout::{LayoutError, MAX_RECORDS, MAX_STRINGS};
pub use locator::{Locator, Name, ParseLocatorError};
pub use plan::{Master, Pipe, Plan, Process, Superblock};
pub use progress::{Outcome, Progress};
pub use sweep::sweep;

/// The environment variable that locates the segment for a fixup: what [`Locator`] reads.
pub const VARIABLE: &str = "AUTOFS_CR_SEGMENT";

/// An open segment.
#[derive(Debug)]
pub struct Segment {
    contents: Arc<Contents>,
    words: Arc<SharedWords>,
    /// Through this the locks of others are looked at.
    watch: File,
    /// Through this the own locks are held: it has another open file description.
    hold: File,
    /// The masters that are claimed through `hold`, which the kernel cannot tell apart.
    claimed: Mutex<BTreeSet<usize>>,
}

/// The segment of the coordinator. When it is dropped the name is taken away.
#[derive(Debug)]
pub struct Owner {
    segment: Segment,
    name: Name,
    /// Only this process takes the name away, not a forked child of it.
    maker: Pid,
}

/// The right to work on one master. It ends when it is dropped, or with the process.
#[derive(Debug)]
pub struct Claim<'a> {
    segment: &'a Segment,
    master: usize,
    left_by: Option<Pid>,
}

impl Segment {
    /// Makes a segment with a new name and publishes the plan in it. It gets the name when all is written and it is
    /// held: whatever instant this process is killed at, who finds the name finds the whole, and can tell whether
    /// it is needed.
    pub fn create(plan: &Plan) -> Result<Owner, SegmentError> {
        let deadline = now().saturating_add(plan.timeout);
        let bytes = layout::encode(plan, deadline).map_err(SegmentError::Plan)?;
        let failed = |source| SegmentError::Create { source };
        let name = Name::random().map_err(failed)?;
        let file = Name::unnamed().map_err(failed)?;
        file::fill(&file, &bytes).map_err(failed)?;
        let segment = Self::open(&Locator::of(&file))?.hold_as_coordinator().map_err(failed)?;
        name.give_to(&file).map_err(failed)?;
        Ok(Owner { segment, name, maker: Pid::this() })
    }

    /// Opens a segment and checks all of it.
    pub fn open(locator: &Locator) -> Result<Self, SegmentError> {
        let failed = |source| SegmentError::Open { locator: locator.to_string(), source };
        let untrusted = |cause| SegmentError::Untrusted { locator: locator.to_string(), cause };
        let watch = locator.open().map_err(failed)?;
        let hold = locator.open().map_err(failed)?;
        file::check_trust(&watch, &hold).map_err(failed)?.map_err(untrusted)?;
        let bytes = file::read_all(&watch).map_err(failed)?;
        let contents = layout::decode(&bytes)
            .map_err(|source| SegmentError::Layout { locator: locator.to_string(), source })?;
        let count = layout::progress(contents.masters.len(), contents.superblocks.len());
        let count = NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        let words = Arc::new(SharedWords::map(&watch, count).map_err(failed)?);
        Ok(Self { contents: Arc::new(contents), words, watch, hold, claimed: Mutex::default() })
    }

    /// The same segment with open file descriptions of its own, for a forked child that claims masters. What was
    /// checked is not checked again.
    pub fn again(&self) -> Result<Self, SegmentError> {
        let locator = Locator::Inherited(self.watch.as_raw_fd().unsigned_abs());
        let failed = |source| SegmentError::Open { locator: locator.to_string(), source };
        let (watch, hold) = (locator.open().map_err(failed)?, locator.open().map_err(failed)?);
        let (contents, words) = (Arc::clone(&self.contents), Arc::clone(&self.words));
        Ok(Self { contents, words, watch, hold, claimed: Mutex::default() })
    }

    /// Opens the segment of a stage document: by its name, or where that is not found (in another
    /// mount namespace) through the coordinator's descriptor.
    pub fn open_address(address: &SegmentAddress) -> Result<Self, SegmentError> {
        let wrong = |_| SegmentError::Open {
            locator: address.name.clone(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "it is no name of a segment"),
        };
        let name = Locator::Name(address.name.parse().map_err(wrong)?);
        let process = u32::try_from(address.fd).map(|fd| Locator::Process(address.coordinator, fd));
        let (segment, locator) = match (Self::open(&name), process) {
            (Err(SegmentError::Open { source, .. }), Ok(process))
                if source.kind() == io::ErrorKind::NotFound =>
            {
                (Self::open(&process)?, process)
            }
            (segment, _) => (segment?, name),
        };
        let expected = Process { pid: address.coordinator, start_time: address.start_time };
        if segment.coordinator() == expected {
            return Ok(segment);
        }
        Err(SegmentError::Other {
            locator: locator.to_string(),
            found: segment.coordinator().pid,
            expected: expected.pid,
        })
    }

    /// The process that made it.
    pub fn coordinator(&self) -> Process {
        self.contents.coordinator
    }

    /// The masters.
    pub fn masters(&self) -> &[Master] {
        &self.contents.masters
    }

    /// The superblocks.
    pub fn superblocks(&self) -> &[Superblock] {
        &self.contents.superblocks
    }

    /// The index of the master with this id.
    pub fn master_index(&self, id: &str) -> Option<usize> {
        self.masters().iter().position(|master| master.id == id)
    }

    /// The superblocks of a master, with their indices.
    pub fn superblocks_of(&self, master: usize) -> impl Iterator<Item = (usize, &Superblock)> {
        let indices = self.contents.of_masters.get(master).into_iter().flatten();
        indices.map(|&index| (index, &self.superblocks()[index]))
    }

    /// How long the coordinator still waits; zero when its deadline has passed. What ends its waiting is
    /// [`Segment::outcome`]: see [`Plan::timeout`].
    pub fn time_left(&self) -> Duration {
        self.contents.deadline.saturating_sub(now())
    }

    /// How far a superblock has come.
    pub fn progress(&self, index: usize) -> Result<Progress, ProgressError> {
        read_progress(self.progress_word(index)?, index)
    }

    /// Moves a superblock forward, and wakes all who wait.
    pub fn advance(&self, index: usize, to: Progress) -> Result<(), ProgressError> {
        self.advance_all([index], to)
    }

    /// Moves several superblocks forward, and wakes all who wait once. One that may not go there does not
    /// keep the others: the error is that of the first such one.
    pub fn advance_all(
        &self,
        indices: impl IntoIterator<Item = usize>,
        to: Progress,
    ) -> Result<(), ProgressError> {
        let mut moved = Ok(());
        let mut indices = indices.into_iter().peekable();
        let any = indices.peek().is_some();
        for index in indices {
            moved = moved.and(self.step(index, to));
        }
        if any {
            self.wake();
        }
        moved
    }

    fn step(&self, index: usize, to: Progress) -> Result<(), ProgressError> {
        let word = self.progress_word(index)?;
        loop {
            let from = read_progress(word, index)?;
            if !from.may_become(to) {
                return Err(ProgressError::Step { index, from, to });
            }
            let changed =
                word.compare_exchange(from.to_word(), to.to_word(), Ordering::AcqRel, Ordering::Relaxed);
            if changed.is_ok() {
                return Ok(());
            }
        }
    }

    fn progress_word(&self, index: usize) -> Result<&AtomicU32, ProgressError> {
        let known = self.superblocks().get(index).ok_or(ProgressError::NoSuperblock(index));
        known.map(|_| &self.words[layout::progress(self.masters().len(), index)])
    }

    /// Claims a master for this process. Fails at once if another claim on it lives; the claim of a
    /// process that died is taken over.
    pub fn claim(&self, master: usize) -> Result<Claim<'_>, ClaimError> {
        let id = &self.masters().get(master).ok_or(ClaimError::NoMaster(master))?.id;
        let mut claimed = self.claimed();
        let locked = !claimed.contains(&master)
            && Byte::master(master)
                .try_lock(&self.hold)
                .map_err(|source| ClaimError::Lock { id: id.clone(), source })?;
        if !locked {
            return Err(ClaimError::Claimed { id: id.clone(), by: self.claimant(master) });
        }
        claimed.insert(master);
        let left_by = self.words[layout::claimant(master)].swap(Pid::this().into(), Ordering::AcqRel);
        // Restore waits for it before it lets superblocks be replaced.
        self.wake();
        Ok(Claim { segment: self, master, left_by: Pid::try_from(left_by).ok() })
    }

    fn claimed(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        // The set is whole at every instant, so a panic elsewhere does not spoil it.
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who claimed a master last and has not let go of it, in its own pid namespace: for messages. It
    /// may have died: [`Segment::is_claimed`] tells.
    pub fn claimant(&self, master: usize) -> Option<Pid> {
        let word = self.masters().get(master).map(|_| &self.words[layout::claimant(master)])?;
        Pid::try_from(word.load(Ordering::Acquire)).ok()
    }

    /// Whether a process that lives has claimed this master.
    pub fn is_claimed(&self, master: usize) -> io::Result<bool> {
        Byte::master(master).is_locked(&self.watch)
    }

    /// Blocks until no process that lives has claimed this master. For a thread or a child of its own.
    pub fn wait_until_unclaimed(&self, master: usize) -> io::Result<()> {
        Byte::master(master).wait_until_free(&self.watch)
    }

    /// Whether the coordinator lives. If not, and the outcome is still [`Outcome::Running`], the segment
    /// is stale: it was killed.
    pub fn coordinator_lives(&self) -> io::Result<bool> {
        Byte::COORDINATOR.is_locked(&self.watch)
    }

    /// Blocks until the coordinator has ended. For a thread or a child of its own.
    pub fn wait_until_stale(&self) -> io::Result<()> {
        Byte::COORDINATOR.wait_until_free(&self.watch)
    }

    fn hold_as_coordinator(self) -> io::Result<Self> {
        match Byte::COORDINATOR.try_lock(&self.hold)? {
            true => Ok(self),
            false => Err(io::ErrorKind::ResourceBusy.into()),
        }
    }

    /// How the restore stands.
    pub fn outcome(&self) -> Result<Outcome, ProgressError> {
        let word = self.words[layout::OUTCOME].load(Ordering::Acquire);
        Outcome::from_word(word).ok_or(ProgressError::Word { index: layout::OUTCOME, word })
    }

    /// What [`Segment::wait`] needs: take it before looking at what is waited for.
    pub fn wake_value(&self) -> u32 {
        self.words[layout::WAKE].load(Ordering::Acquire)
    }

    /// Waits until something has changed since `seen` was taken, or the time is over: `false` then. It may
    /// also return early, so look again. The death of another process is no change: see
    /// [`Segment::is_claimed`] and [`Segment::coordinator_lives`].
    pub fn wait(&self, seen: u32, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(timeout).ok();
        // Without FUTEX_PRIVATE_FLAG the word is known by its file, so other processes can wake it.
        match futex::wait(&self.words[layout::WAKE], futex::Flags::empty(), seen, timeout.as_ref()) {
            Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(true),
            Err(rustix::io::Errno::TIMEDOUT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Wakes all who wait, as after a change.
    pub fn wake(&self) {
        let word = &self.words[layout::WAKE];
        word.fetch_add(1, Ordering::AcqRel);
        // It fails only for an address that is not mapped.
        let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
    }
}

impl Owner {
    /// The name under which it is found.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What the stage document says of it.
    pub fn address(&self) -> SegmentAddress {
        SegmentAddress {
            name: self.name.to_string(),
            coordinator: self.coordinator().pid,
            start_time: self.coordinator().start_time,
            fd: self.segment.watch.as_raw_fd(),
        }
    }

    /// Takes the name away, where only children of this process are to find it: by what this gives.
    pub fn hide(&self) -> io::Result<Locator> {
        self.name.unlink()?;
        Ok(Locator::Process(self.maker, self.segment.watch.as_raw_fd().unsigned_abs()))
    }

    /// Tells the fixups how it ended.
    pub fn finish(&self, outcome: Outcome) -> Result<(), ProgressError> {
        let word = &self.words[layout::OUTCOME];
        let running = Outcome::Running.to_word();
        if word.compare_exchange(running, outcome.to_word(), Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Err(ProgressError::Ended(self.outcome()?));
        }
        self.wake();
        Ok(())
    }
}

impl Deref for Owner {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        &self.segment
    }
}

impl AsFd for Owner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.segment.watch.as_fd()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.maker == Pid::this() {
            // If it is gone already, someone has cleaned up.
            let _ = self.name.unlink();
        }
    }
}

impl Claim<'_> {
    /// The index of the master.
    pub fn master(&self) -> usize {
        self.master
    }

    /// The fixup that died with this claim, in its own pid namespace: some superblocks may be
    /// [`Progress::Claimed`], and are to be gone on with.
    pub fn left_by(&self) -> Option<Pid> {
        self.left_by
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = self.segment.claimed();
        self.segment.words[layout::claimant(self.master)].store(0, Ordering::Release);
        claimed.remove(&self.master);
        // Unlocking a part of an open file does not fail.
        let _ = Byte::master(self.master).unlock(&self.segment.hold);
        // Another fixup may wait for its turn.
        self.segment.wake();
    }
}

fn read_progress(word: &AtomicU32, index: usize) -> Result<Progress, ProgressError> {
    let word = word.load(Ordering::Acquire);
    Progress::from_word(word).ok_or(ProgressError::Word { index, word })
}

/// The time on CLOCK_MONOTONIC.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}
