//! Opening mounts in a child process: a walk onto an autofs mount may block for ever, and a child can
//! be killed.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use autofs_cr_common::channel::{Channel, ChannelError};
use autofs_cr_common::child::Child;
use autofs_cr_common::model::Device;
use autofs_cr_common::segment::Segment;
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_common::target::Target;
use nix::errno::Errno;

/// How many descriptors come in one message.
const AT_ONCE: usize = 250;

/// How long a message may take. Opening a mount takes some microseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// A superblock to open: its index in the segment, and its device.
pub type Wanted = (usize, Device);

/// The errors of an answer, one for each superblock: 0 for those that were opened, whose descriptors
/// come with it.
type Answer = Vec<i32>;

/// Opens mounts at the places that the segment names.
#[derive(Debug)]
pub struct Opener<'a> {
    segment: &'a Segment,
    device: &'a ControlDevice,
    /// Whose mount namespace and root directory; `None` for those of this process.
    target: Option<&'a Target>,
    child: Option<Child>,
    may_fork: bool,
}

impl<'a> Opener<'a> {
    /// One without a child yet.
    pub fn new(segment: &'a Segment, device: &'a ControlDevice, target: Option<&'a Target>) -> Self {
        Self { segment, device, target, child: None, may_fork: true }
    }

    /// Whether a child may be forked when one is needed. Not while a session is open: it would keep the
    /// session's descriptors.
    pub fn allow_fork(&mut self, may_fork: bool) -> anyhow::Result<()> {
        if !may_fork {
            self.child()?;
        }
        self.may_fork = may_fork;
        Ok(())
    }

    /// Opens mounts, each with its own result.
    pub fn open(&mut self, wanted: &[Wanted]) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
        let mut all = Vec::with_capacity(wanted.len());
        for part in wanted.chunks(AT_ONCE) {
            match self.ask(part)? {
                Some(opened) => all.extend(opened),
                // One of them blocks. Which one shows when they are opened one by one.
                None => {
                    for one in part {
                        all.extend(self.ask(&[*one])?.unwrap_or_else(|| vec![Err(Errno::ETIMEDOUT)]));
                    }
                }
            }
        }
        Ok(all)
    }

    /// Has the child open some mounts; `None` if that blocked.
    fn ask(&mut self, wanted: &[Wanted]) -> anyhow::Result<Option<Vec<Result<OwnedFd, Errno>>>> {
        if self.child.is_none() && !self.may_fork {
            return Ok(None);
        }
        let answer = {
            let child = self.child()?;
            child.send(&wanted, &[]).and_then(|()| child.receive(Some(Instant::now() + PATIENCE)))
        };
        match answer {
            Ok((errors, fds)) => Ok(Some(pair(errors, fds)?)),
            Err(ChannelError::TimedOut) => {
                self.child = None;
                Ok(None)
            }
            Err(error) => Err(error).context("the child that opens mounts failed"),
        }
    }

    fn child(&mut self) -> anyhow::Result<&Child> {
        let child = match self.child.take() {
            Some(child) => child,
            None => Child::spawn(|channel| self.serve(&channel)).context("cannot start a child")?,
        };
        Ok(self.child.insert(child))
    }

    /// What the child does.
    fn serve(&self, channel: &Channel) -> anyhow::Result<()> {
        if let Some(target) = self.target {
            target.enter_mounts().with_context(|| format!("cannot enter the mounts of {}", target.pid()))?;
        }
        loop {
            let wanted: Vec<Wanted> = match channel.receive(None) {
                Ok((wanted, _)) => wanted,
                Err(ChannelError::Closed) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let opened: Vec<_> = wanted.iter().map(|wanted| self.open_one(*wanted)).collect();
            let errors: Answer =
                opened.iter().map(|one| one.as_ref().err().map_or(0, |&e| e as i32)).collect();
            let fds: Vec<_> = opened.iter().flatten().map(AsFd::as_fd).collect();
            channel.send(&errors, &fds)?;
        }
    }

    fn open_one(&self, (index, device): Wanted) -> Result<OwnedFd, Errno> {
        let superblock = self.segment.superblocks().get(index).ok_or(Errno::EINVAL)?;
        let path = CString::new(superblock.mount_point.as_bytes()).map_err(|_| Errno::EINVAL)?;
        let opened = self.device.open_mount(&path, device);
        opened.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

fn pair(errors: Answer, fds: Vec<OwnedFd>) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().context("a descriptor is missing");
    errors
        .into_iter()
        .map(|error| if error == 0 { next().map(Ok) } else { Ok(Err(Errno::from_raw(error))) })
        .collect()
}
