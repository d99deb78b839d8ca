//! What a child of the opener does: it enters the mount namespace, and opens what it is told to.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use autofs_cr_common::channel::{Channel, ChannelError};
use autofs_cr_common::model::{Device, TextPath};
use autofs_cr_common::segment::Segment;
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_common::target::Target;
use nix::errno::Errno;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

/// A superblock to open: the index of its place, and its device.
pub type Wanted = (usize, Device);

/// Places that are known before, by their index.
#[derive(Debug)]
pub enum Places<'a> {
    /// Those of the superblocks in a segment.
    Segment(&'a Segment),
    /// These.
    List(Vec<&'a TextPath>),
}

impl<'a> Places<'a> {
    pub fn get(&self, index: usize) -> Option<&'a TextPath> {
        match self {
            Self::Segment(segment) => {
                segment.superblocks().get(index).map(|superblock| &superblock.mount_point)
            }
            Self::List(places) => places.get(index).copied(),
        }
    }
}

/// What the child shall do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Open these mounts.
    Roots(Vec<Wanted>),
    /// Walk to the directories above these places.
    Parents(Vec<usize>),
}

/// The errors of an answer, one for each that was asked for: 0 for those that were opened, whose
/// descriptors come with it.
pub type Answer = Vec<i32>;

/// An answer, with its descriptors.
pub type Opened = (Answer, Vec<OwnedFd>);

/// What a child needs for its work.
#[derive(Debug)]
pub struct Server<'a> {
    /// The places.
    pub places: Places<'a>,
    /// The control device.
    pub device: &'a ControlDevice,
    /// Whose mount namespace and root directory; `None` for those of this process.
    pub target: Option<&'a Target>,
}

impl Server<'_> {
    /// What the child does.
    pub fn serve(&self, channel: &Channel) -> anyhow::Result<()> {
        if let Some(target) = self.target {
            target.enter_mounts().with_context(|| format!("cannot enter the mounts of {}", target.pid()))?;
        }
        let_go_of_streams().context("cannot let go of the standard streams")?;
        loop {
            let order: Order = match channel.receive(None) {
                Ok((order, _)) => order,
                Err(ChannelError::Closed) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let opened: Vec<_> = match order {
                Order::Roots(wanted) => wanted.into_iter().map(|wanted| self.open_one(wanted)).collect(),
                Order::Parents(places) => places.into_iter().map(|place| self.walk_above(place)).collect(),
            };
            let fds: Vec<_> = opened.iter().flatten().map(AsFd::as_fd).collect();
            channel.send(&errors(&opened), &fds)?;
        }
    }

    fn open_one(&self, (index, device): Wanted) -> Result<OwnedFd, Errno> {
        let place = self.places.get(index).ok_or(Errno::EINVAL)?;
        let path = CString::new(place.as_bytes()).map_err(|_| Errno::EINVAL)?;
        let opened = self.device.open_mount(&path, device);
        opened.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// Never gives a descriptor: only whether it ends is asked for.
    fn walk_above(&self, index: usize) -> Result<OwnedFd, Errno> {
        let above = self.places.get(index).and_then(|place| place.parent()).ok_or(Errno::EINVAL)?;
        let walked = rustix::fs::open(above, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        Err(walked.map_or_else(|error| Errno::from_raw(error.raw_os_error()), |_| Errno::UnknownErrno))
    }
}

/// A child may outlive this tool where it cannot be killed, and nobody shall wait for it at the end of a pipe.
/// There may be no /dev/null to stand in.
fn let_go_of_streams() -> io::Result<()> {
    let (nothing, nobody) = pipe_with(PipeFlags::CLOEXEC)?;
    dup2_stdin(nothing)?;
    dup2_stdout(&nobody)?;
    dup2_stderr(&nobody)?;
    Ok(())
}

/// What is sent of these besides the descriptors.
pub fn errors(opened: &[Result<OwnedFd, Errno>]) -> Answer {
    opened.iter().map(|one| one.as_ref().err().map_or(0, |&errno| errno as i32)).collect()
}

/// The reverse of [`errors`].
pub fn pair(errors: Answer, fds: Vec<OwnedFd>) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().context("a descriptor is missing");
    errors
        .into_iter()
        .map(|error| if error == 0 { next().map(Ok) } else { Ok(Err(Errno::from_raw(error))) })
        .collect()
}
