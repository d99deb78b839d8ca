//! The mounter: the child of restore that works in the target's namespaces. It is a member of the
//! target's pid namespace with a process group of its own there, as the kernel takes the process group
//! of a new superblock from that namespace, and lets only that group make directories inside.
//!
//! | order | what it does |
//! |---|---|
//! | [`Order::Prepare`] | finds every place and every superblock that is to go; changes nothing |
//! | [`Order::Make`] | takes groups of items one by one: moves content away, takes the old superblock away, makes the new one, moves content back |
//! | [`Order::Undo`] | takes away what it made, or puts back an equal one of what it took away |
//! | [`Order::Launch`] | becomes the init of a fresh namespace |
//!
//! It is killed when it says nothing for long, as it may be blocked on an autofs mount.

pub mod fresh;
mod launch;
mod make;
mod numbers;
mod park;
mod place;
mod prepare;
mod superblock;
mod take;
mod undo;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use autofs_cr_common::channel::{Channel, ChannelError};
use autofs_cr_common::model::Pid;
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_common::sys::mmap::SharedWords;
use serde::{Deserialize, Serialize};

use crate::live::Masters;
use crate::plan::Plan;
pub use launch::Launch;
pub use park::SOURCE as PARKING_SOURCE;
use numbers::Numbers;
use park::Park;
use place::Root;
use take::Taken;

/// What restore tells the mounter to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Find everything.
    Prepare,
    /// Make these groups of the plan.
    Make(Vec<usize>),
    /// Go back. These items were made and wait for their masters' fixups.
    Undo(Vec<usize>),
    /// Execute the command of the fresh namespace, with this segment as a descriptor.
    Launch,
    /// Clean up and end.
    Finish,
}

/// What the mounter answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It entered the namespaces and can begin.
    Ready,
    /// Everything was found.
    Prepared,
    /// These groups are done; more follow.
    Made(Vec<usize>),
    /// All groups of the order are done.
    AllMade,
    /// It went back; what could not be put back as it was.
    Undone(Vec<String>),
    /// It cleaned up; what could not be cleaned up.
    Finished(Vec<String>),
    /// The order failed.
    Failed(String),
}

/// How many groups are reported as made at a time.
const REPORT_EVERY: usize = 64;

/// The mounter's own state.
pub struct Mounter<'a> {
    plan: &'a Plan,
    masters: &'a Masters,
    channel: &'a Channel,
    device: ControlDevice,
    root: Root,
    /// A proc file system of the pid namespace of restore: the current directory, so that `self/fd/N`
    /// names a descriptor also where the target has no /proc.
    proc_dir: OwnedFd,
    /// The pipe of superblocks that are not connected yet.
    pipe_write_end: OwnedFd,
    _pipe_read_end: OwnedFd,
    group: Pid,
    progress: Progress,
    numbers: Numbers,
    park: Option<Park>,
    /// Superblocks that are to go, by item.
    taken: HashMap<usize, Taken>,
    /// Superblocks that are adopted, by item.
    adopted: HashMap<usize, make::Adopted>,
    /// Places that were found while preparing, by mount.
    places: HashMap<usize, OwnedFd>,
    /// The mounts that were made, by mount.
    made: HashMap<usize, OwnedFd>,
    /// Items in the order in which they were begun.
    begun: Vec<usize>,
}

/// Which item the mounter is at, in a place that restore can read while the mounter is blocked.
#[derive(Clone, Debug)]
pub struct Progress(Arc<SharedWords>);

impl Progress {
    /// A new one, to be shared by a fork.
    pub fn new() -> io::Result<Self> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("autofs-restore-progress", flags)?);
        file.set_len(size_of::<u32>() as u64)?;
        Ok(Self(Arc::new(SharedWords::map(&file, NonZeroUsize::MIN)?)))
    }

    fn set(&self, item: usize) {
        // Zero is for one that has not begun.
        self.0[0].store(u32::try_from(item + 1).unwrap_or_default(), Ordering::Relaxed);
    }

    /// The item that it is or was at; none if it has not begun.
    pub fn get(&self) -> Option<usize> {
        self.0[0].load(Ordering::Relaxed).checked_sub(1).map(|item| item as usize)
    }
}

/// What the mounter has from restore.
pub struct Outfit {
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
        outfit: Outfit,
    ) -> anyhow::Result<Self> {
        nix::unistd::setsid().or_else(|error| match error {
            // It leads a group already, as the first process of a pid namespace does.
            nix::errno::Errno::EPERM => Ok(nix::unistd::getpid()),
            error => Err(error),
        })?;
        let root = Root::open()?;
        nix::unistd::fchdir(&outfit.proc_dir)?;
        let (read_end, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let group = Pid::from_nix(nix::unistd::getpgrp()).ok_or_else(|| {
            anyhow::anyhow!("the process group of the mounter is not visible in its namespace")
        })?;
        Ok(Self {
            plan,
            masters,
            channel,
            device: outfit.device,
            root,
            proc_dir: outfit.proc_dir,
            pipe_write_end: write_end,
            _pipe_read_end: read_end,
            group,
            progress: outfit.progress,
            numbers: Numbers::default(),
            park: None,
            taken: HashMap::new(),
            adopted: HashMap::new(),
            places: HashMap::new(),
            made: HashMap::new(),
            begun: Vec::new(),
        })
    }

    /// Does what restore orders, until it orders the end or is gone.
    pub fn serve(&mut self, launch: Option<&Launch>) -> anyhow::Result<()> {
        self.channel.send(&Answer::Ready, &[])?;
        loop {
            let order = match self.channel.receive::<Order>(None) {
                Ok((order, _)) => order,
                Err(ChannelError::Closed) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let done = matches!(order, Order::Finish);
            let answer = match order {
                Order::Prepare => self.prepare().map(|()| Answer::Prepared),
                Order::Make(groups) => self.make_groups(&groups).map(|()| Answer::AllMade),
                Order::Undo(unconnected) => Ok(Answer::Undone(self.undo(&unconnected))),
                Order::Finish => Ok(Answer::Finished(self.finish())),
                Order::Launch => match launch {
                    Some(launch) => launch.exec().map(|never| match never {}),
                    None => Err(anyhow::anyhow!("there is nothing to launch")),
                },
            };
            let answer = answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
            self.channel.send(&answer, &[])?;
            if done {
                return Ok(());
            }
        }
    }

    fn make_groups(&mut self, groups: &[usize]) -> anyhow::Result<()> {
        for chunk in groups.chunks(REPORT_EVERY) {
            for &group in chunk {
                self.make_group(group)?;
            }
            self.channel.send(&Answer::Made(chunk.to_vec()), &[])?;
        }
        Ok(())
    }

    /// Lets go of what is only needed while it works.
    fn finish(&mut self) -> Vec<String> {
        self.numbers.release();
        let mut parkings = self.plan.parkings.iter();
        let removed = parkings.try_for_each(park::remove);
        let closed = self.park.take().map_or(Ok(()), Park::close);
        // Closing the place changed the current directory.
        let back = nix::unistd::fchdir(&self.proc_dir).map_err(io::Error::from);
        removed
            .and(closed)
            .and(back)
            .err()
            .map(|error| format!("the place where content was parked cannot be removed: {error}"))
            .into_iter()
            .collect()
    }
}
