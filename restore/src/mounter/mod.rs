//! The mounter: the child of restore that works in the target's namespaces. It is a member of the
//! target's pid namespace with a process group of its own there, as the kernel takes the process group
//! of a new superblock from that namespace, and lets only that group make directories inside.
//!
//! | order | what it does |
//! |---|---|
//! | [`Order::Prepare`] | finds every place and every superblock that is to go, and makes those whose numbers are free; nobody sees a change |
//! | [`Order::Make`] | takes groups of items one by one: moves content away, takes the old superblock away, makes the new one, moves content back |
//! | [`Order::Undo`] | takes away what it made, or puts back an equal one of what it took away |
//! | [`Order::Launch`] | becomes the init of a fresh namespace |
//!
//! It is killed when it says nothing for long, as it may be blocked on an autofs mount.

mod ahead;
pub mod fresh;
mod late;
mod launch;
mod lift;
mod made;
mod make;
mod moves;
mod numbers;
mod park;
mod place;
mod prepare;
mod recipes;
mod superblock;
mod take;
mod tree;
mod undo;
mod unmount;
mod work_place;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use autofs_cr_common::channel::{Channel, ChannelError, MAX_MESSAGE};
use autofs_cr_common::doc::Report;
use autofs_cr_common::limits::raise_descriptors;
use autofs_cr_common::power;
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_common::sys::mmap::SharedWords;
use serde::{Deserialize, Serialize};

use crate::live::Masters;
use crate::parked::Cover;
use crate::plan::Plan;
pub use launch::Launch;
use made::Made;
use numbers::Numbers;
use park::Park;
use place::Root;
use recipes::Recipes;
use take::Taken;
use tree::OnAutofs;
use unmount::uncover;

/// What restore tells the mounter to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Find everything.
    Prepare,
    /// Make these groups of the plan, at most [`CHUNK`].
    Make(Vec<usize>),
    /// Remember for [`Order::Undo`] that these items, at most [`CHUNK`], wait for their masters' fixups.
    Unconnected(Vec<usize>),
    /// Go back.
    Undo,
    /// Execute the command of the fresh namespace, with this segment as a descriptor.
    Launch,
    /// Clean up and end.
    Finish,
}

/// The number that the answer to no order has. Each order comes with its own, which its answer repeats: an
/// answer may be late, when restore has given up waiting for it.
pub const FIRST: u64 = 0;

/// What the mounter answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It entered the namespaces and can begin.
    Ready,
    /// Everything was found.
    Prepared,
    /// The groups of the order are done.
    Made,
    /// The items of the order are remembered.
    Noted,
    /// It went back; what could not be put back as it was.
    Undone(Vec<String>),
    /// It cleaned up; what could not be cleaned up.
    Finished(Vec<String>),
    /// The order failed.
    Failed(String),
}

/// How many numbers an order has at most: a message has a limit, and restore looks for signals in between.
pub const CHUNK: usize = 256;

/// How long all problems of an answer may be together, in bytes: with what quoting adds it fits into a message.
const MOST_TOLD: usize = MAX_MESSAGE / 8;

/// The mounter's own state.
pub struct Mounter<'a> {
    plan: &'a Plan,
    /// The image as it was written.
    image: &'a [u8],
    masters: &'a Masters,
    channel: &'a Channel,
    device: ControlDevice,
    root: Root,
    /// Where no work place may be.
    on_autofs: OnAutofs,
    /// The number of the mount namespace.
    namespace: u64,
    /// A proc file system of the pid namespace of restore: the current directory, so that `self/fd/N`
    /// names a descriptor also where the target has no /proc.
    proc_dir: OwnedFd,
    recipes: Recipes<'a>,
    progress: Progress,
    numbers: Numbers,
    park: Option<Park>,
    lifts: lift::Lifts,
    /// The pipes that are kept open there, by their inode.
    kept: HashSet<u64>,
    /// Superblocks that are to go, by item.
    taken: HashMap<usize, Taken>,
    /// Superblocks that are adopted, by item.
    adopted: HashMap<usize, make::Adopted>,
    /// Superblocks that were made while preparing, and are nowhere yet, by item.
    ahead: HashMap<usize, OwnedFd>,
    /// Mounts whose places were found while preparing.
    found: HashSet<usize>,
    /// The mounts that were made.
    made: Made,
    /// Mounts of the image in which others are.
    outer: HashSet<usize>,
    /// Items in the order in which they were begun.
    begun: Vec<usize>,
    /// Items that wait for their masters' fixups, if all is undone.
    unconnected: Vec<usize>,
    /// The umask that it was started with.
    umask: nix::sys::stat::Mode,
}

/// Which item the mounter is at, and how many steps it has done, in a place that restore can read while the
/// mounter is blocked or at work.
#[derive(Clone, Debug)]
pub struct Progress(Arc<SharedWords>);

impl Progress {
    /// A new one, to be shared by a fork.
    pub fn new() -> io::Result<Self> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("autofs-restore-progress", flags)?);
        const WORDS: NonZeroUsize = NonZeroUsize::new(2).expect("not zero");
        file.set_len((WORDS.get() * size_of::<u32>()) as u64)?;
        Ok(Self(Arc::new(SharedWords::map(&file, WORDS)?)))
    }

    fn set(&self, item: usize) {
        // Zero is for one that has not begun.
        self.0[0].store(u32::try_from(item + 1).unwrap_or_default(), Ordering::Relaxed);
        self.beat();
    }

    /// Says that the mounter is at work: restore waits as long as this goes on.
    pub fn beat(&self) {
        self.0[1].fetch_add(1, Ordering::Relaxed);
    }

    /// How many steps were done: another number than before is a sign of life.
    pub fn beats(&self) -> u32 {
        self.0[1].load(Ordering::Relaxed)
    }

    /// The item that it is or was at; none if it has not begun.
    pub fn get(&self) -> Option<usize> {
        self.0[0].load(Ordering::Relaxed).checked_sub(1).map(|item| item as usize)
    }
}

/// What the mounter has from restore.
pub struct Outfit<'a> {
    /// The image as it was written.
    pub image: &'a [u8],
    /// The report of the mounts that are there; none in a fresh namespace.
    pub report: Option<&'a Report>,
    /// The control device.
    pub device: ControlDevice,
    /// A directory of the proc file system.
    pub proc_dir: OwnedFd,
    /// The progress that restore reads.
    pub progress: Progress,
}

impl<'a> Mounter<'a> {
    /// Makes the mounter, in a process that is in the target's namespaces and root already.
    pub fn new(
        plan: &'a Plan,
        masters: &'a Masters,
        channel: &'a Channel,
        outfit: Outfit<'a>,
    ) -> anyhow::Result<Self> {
        nix::unistd::setsid().or_else(|error| match error {
            // It leads a group already, as the first process of a pid namespace does.
            nix::errno::Errno::EPERM => Ok(nix::unistd::getpid()),
            error => Err(error),
        })?;
        let root = Root::open()?;
        nix::unistd::fchdir(&outfit.proc_dir)?;
        let on_autofs = match outfit.report {
            Some(report) => OnAutofs::of(report),
            None => OnAutofs::read().context("cannot read the mounts")?,
        };
        let namespace = rustix::fs::stat("self/ns/mnt").context("cannot look at the mount namespace")?.st_ino;
        Ok(Self {
            plan,
            image: outfit.image,
            masters,
            channel,
            device: outfit.device,
            root,
            on_autofs,
            namespace,
            proc_dir: outfit.proc_dir,
            recipes: Recipes::new(plan, masters)?,
            progress: outfit.progress,
            numbers: Numbers::default(),
            park: None,
            lifts: lift::Lifts::default(),
            kept: HashSet::new(),
            taken: HashMap::new(),
            adopted: HashMap::new(),
            ahead: HashMap::new(),
            found: HashSet::new(),
            made: Made::new(raise_descriptors()),
            outer: plan.parents.iter().copied().flatten().collect(),
            begun: Vec::new(),
            unconnected: Vec::new(),
            // The image says the modes of directories as they are.
            umask: nix::sys::stat::umask(nix::sys::stat::Mode::empty()),
        })
    }

    /// Does what restore orders, until it orders the end or is gone.
    pub fn serve(&mut self, launch: Option<&Launch>) -> anyhow::Result<()> {
        self.channel.send(&(FIRST, Answer::Ready), &[])?;
        loop {
            let (number, order) = match self.channel.receive::<(u64, Order)>(None) {
                Ok((order, _)) => order,
                Err(ChannelError::Closed) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let done = matches!(order, Order::Finish);
            let answer = match order {
                Order::Prepare => self.prepare().and_then(|()| self.make_ahead()).map(|()| Answer::Prepared),
                Order::Make(groups) => self.make_groups(&groups).map(|()| Answer::Made),
                Order::Unconnected(items) => {
                    self.unconnected.extend(items);
                    Ok(Answer::Noted)
                }
                Order::Undo => {
                    let unconnected = std::mem::take(&mut self.unconnected);
                    Ok(Answer::Undone(shortened(self.undo(&unconnected))))
                }
                Order::Finish => Ok(Answer::Finished(shortened(self.finish()))),
                Order::Launch => self.launch(launch),
            };
            let answer = answer.unwrap_or_else(|error| Answer::Failed(power::explain(&error)));
            self.channel.send(&(number, answer), &[])?;
            if done {
                return Ok(());
            }
        }
    }

    /// Becomes the init of the fresh namespace, in which nothing is left but what it made for that.
    fn launch(&mut self, launch: Option<&Launch>) -> anyhow::Result<Answer> {
        let launch = launch.context("there is nothing to launch")?;
        // Where this fails, the namespace goes with all that is in it: nothing has to be undone.
        let problems = self.finish();
        anyhow::ensure!(problems.is_empty(), problems.join("; "));
        launch.exec(self.umask).map(|never| match never {})
    }

    /// Makes groups. Whatever instant it is killed at, the work place tells the next restore what to do: see
    /// `docs/architecture.md`.
    fn make_groups(&mut self, groups: &[usize]) -> anyhow::Result<()> {
        self.let_go_of_followers().context("cannot end what a killed restore began")?;
        self.open_park()?;
        for &group in groups {
            self.make_group(group)?;
        }
        Ok(())
    }

    /// What a restore that was killed made follow its copies does so no longer, so that these can be taken away.
    fn let_go_of_followers(&self) -> io::Result<()> {
        let mut copies = self.left_parkings().flat_map(|parking| &parking.copies);
        copies.try_for_each(|copy| park::lead_nobody(&self.root.top(copy)?.0))
    }

    /// Takes away what a restore that was killed covered autofs mounts with, and is there still.
    fn uncover_left_behind(&self) -> io::Result<()> {
        for cover in self.plan.parkings.iter().flat_map(|parking| &parking.covers) {
            if let Some(cover) = self.find_cover(cover)? {
                uncover(cover)?;
            }
        }
        Ok(())
    }

    /// What a restore that was killed covered a place with, if it is there still.
    fn find_cover(&self, cover: &Cover) -> io::Result<Option<OwnedFd>> {
        let (top, id) = self.root.top(&cover.mount_point)?;
        let is_it = id == cover.id && Some(superblock::device(&top)?) == cover.device;
        Ok(is_it.then_some(top))
    }

    /// Lets go of what is only needed while it works.
    fn finish(&mut self) -> Vec<String> {
        self.numbers.release();
        self.lifts = lift::Lifts::default();
        let mut parkings = self.left_parkings();
        let uncovered = self.let_go_of_followers().and_then(|()| self.uncover_left_behind());
        let removed = uncovered.and_then(|()| parkings.try_for_each(park::remove));
        let closed = self.park.take().map_or(Ok(()), Park::close);
        // Closing the place changed the current directory.
        let back = nix::unistd::fchdir(&self.proc_dir).map_err(io::Error::from);
        park::remove_directories(&self.root, &self.on_autofs, self.namespace);
        removed
            .and(closed)
            .and(back)
            .err()
            .map(|error| format!("the work place cannot be removed: {error}"))
            .into_iter()
            .collect()
    }
}

/// As many problems as fit into a message, and how many more there are.
fn shortened(mut problems: Vec<String>) -> Vec<String> {
    let mut told = 0;
    let fits = problems.iter().take_while(|problem| {
        told += problem.len();
        told <= MOST_TOLD
    });
    let fitting = fits.count();
    let more = problems.len() - fitting;
    problems.truncate(fitting);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_fit_into_a_message() {
        let few = vec!["one".to_owned(), "two".to_owned()];
        assert_eq!(shortened(few.clone()), few);
        let many = shortened(vec!["\u{1}".repeat(100); 30_000]);
        assert_eq!(many.len(), MOST_TOLD / 100 + 1);
        assert_eq!(many.last().map(String::as_str), Some(&*format!("and {} more", 30_000 - MOST_TOLD / 100)));
        let (one, _other) = Channel::pair().expect("a channel");
        one.send(&(u64::MAX, Answer::Undone(many)), &[]).expect("it fits");
    }

    #[test]
    fn every_step_is_a_beat() {
        let progress = Progress::new().expect("memory");
        assert_eq!((progress.get(), progress.beats()), (None, 0));
        progress.set(7);
        progress.beat();
        assert_eq!((progress.get(), progress.beats()), (Some(7), 2));
    }
}
