//! The descriptor numbers that a master needs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use autofs_cr_common::segment::{Pipe, Segment};
use autofs_cr_common::sys::inherited;
use rustix::io::{DupFlags, dup3, fcntl_dupfd_cloexec};
use rustix::process::{Resource, getrlimit};

/// The numbers of one master.
#[derive(Debug)]
pub struct Numbers {
    /// Its pipes.
    pub pipes: Vec<Pipe>,
    all: BTreeSet<i32>,
}

impl Numbers {
    /// Those that the segment has for a master. No two may be the same.
    pub fn of(segment: &Segment, master: usize) -> anyhow::Result<Self> {
        let pipes = segment.masters()[master].pipes.clone();
        let ends = pipes.iter().flat_map(|pipe| Some(pipe.read_end).into_iter().chain(pipe.write_end));
        let controls = segment.superblocks_of(master).flat_map(|(_, superblock)| &superblock.control_fds);
        let mut all = BTreeSet::new();
        for end in ends.chain(controls.copied()) {
            if end.fd < 0 {
                bail!("the segment has {} as a descriptor number", end.fd);
            }
            if !all.insert(end.fd) {
                bail!("the segment has descriptor {} for two uses", end.fd);
            }
        }
        Ok(Self { pipes, all })
    }

    /// The first number above all of them.
    pub fn above(&self) -> i32 {
        self.all.last().map_or(0, |highest| highest.saturating_add(1)).max(3)
    }

    /// Whether this process may have descriptors with these numbers.
    pub fn check_limit(&self) -> anyhow::Result<()> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        match self.all.last() {
            Some(&highest) if u64::from(highest.unsigned_abs()) >= limit => bail!(
                "the master needs descriptor {highest}, and the limit is {limit}: raise it with ulimit -n {}",
                i64::from(highest) + 1
            ),
            _ => Ok(()),
        }
    }

    /// Occupies all of them with copies of `filler`.
    pub fn reserve(&self, filler: BorrowedFd<'_>) -> anyhow::Result<Reserved> {
        let slots = self.all.iter().map(|&number| Ok((number, Slot::take(number, filler)?)));
        slots.collect::<anyhow::Result<_>>().map(Reserved)
    }
}

/// One number.
#[derive(Debug)]
enum Slot {
    /// A standard stream, which only [`rustix::stdio`] may change.
    Standard(i32),
    /// Any other.
    Owned(OwnedFd),
}

impl Slot {
    fn take(number: i32, filler: BorrowedFd<'_>) -> anyhow::Result<Self> {
        if number <= libc::STDERR_FILENO {
            return Ok(Self::Standard(number));
        }
        let failed = || format!("cannot take descriptor {number}");
        let copy = fcntl_dupfd_cloexec(filler, number).with_context(failed)?;
        if copy.as_raw_fd() == number {
            return Ok(Self::Owned(copy));
        }
        // Someone left it open for this process. The master needs the number.
        inherited::take(number).map(Self::Owned).with_context(failed)
    }

    fn put(&mut self, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
        match self {
            Self::Standard(libc::STDIN_FILENO) => rustix::stdio::dup2_stdin(fd),
            Self::Standard(libc::STDOUT_FILENO) => rustix::stdio::dup2_stdout(fd),
            Self::Standard(_) => rustix::stdio::dup2_stderr(fd),
            Self::Owned(slot) => dup3(fd, slot, DupFlags::empty()),
        }
    }
}

/// Numbers that are occupied: nothing else of this process gets them.
#[derive(Debug)]
pub struct Reserved(BTreeMap<i32, Slot>);

impl Reserved {
    /// Puts a copy of `fd` at a number; execve does not close it.
    pub fn put(&mut self, number: i32, fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        let slot =
            self.0.get_mut(&number).with_context(|| format!("descriptor {number} was not reserved"))?;
        slot.put(fd).with_context(|| format!("cannot put descriptor {number} in its place"))
    }

    /// Leaves all of them open for what this process executes.
    pub fn leave_open(self) {
        for slot in self.0.into_values() {
            if let Slot::Owned(fd) = slot {
                std::mem::forget(fd);
            }
        }
    }
}
