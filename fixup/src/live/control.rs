//! The descriptors that a master keeps open on its superblocks.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use autofs_cr_common::doc::image::End;
use autofs_cr_common::model::Device;
use autofs_cr_common::segment::Superblock;
use nix::errno::Errno;

use super::process::Process;
use super::{Live, STEP};
use crate::mounts::{Mounts, WhenNeeded};
use crate::remote::{Batch, Session};
use crate::root::{Kind, kind};

/// What stands in for a superblock while there is none.
const PLACEHOLDER: &str = "/dev/null";

/// A copy of a control fd that the master has on this superblock.
pub fn copy_of(process: &Process, superblock: &Superblock, device: Device) -> Option<OwnedFd> {
    superblock.control_fds.iter().find_map(|end| {
        let fd = process.descriptor(end.fd).ok()??;
        (kind(&fd).ok()? == Kind::Autofs(device)).then_some(fd)
    })
}

/// Those recorded control fds of a superblock that the master has open and that do not show `new`, its
/// new superblock, yet. One that is open on something unrelated is an error: it is not overwritten. One
/// that is closed is passed over, as the master does not need it any more.
pub fn open_ones(
    process: &Process,
    superblock: &Superblock,
    mounts: &WhenNeeded,
    new: Option<Device>,
) -> anyhow::Result<Vec<End>> {
    let mut open = Vec::new();
    for end in &superblock.control_fds {
        let Some(fd) = process.descriptor(end.fd)? else { continue };
        let what = match kind(&fd)? {
            Kind::Autofs(device) if Some(device) == new => continue,
            Kind::Autofs(device) if may_stand_for(device, superblock, mounts.of(process.dir())?) => None,
            Kind::Null => None,
            Kind::Autofs(device) => Some(format!("the autofs mount {device}")),
            Kind::Other => Some("something that is no autofs mount".to_owned()),
        };
        if let Some(what) = what {
            return Err(Errno::EBADF).with_context(|| {
                format!(
                    "descriptor {} of process {} should be its control fd, but is open on {what} now, and is \
                    not overwritten",
                    end.fd,
                    process.pid()
                )
            });
        }
        open.push(*end);
    }
    Ok(open)
}

/// Whether an autofs superblock can be the one that this one replaces: not if it is mounted elsewhere.
fn may_stand_for(device: Device, superblock: &Superblock, mounts: &Mounts) -> bool {
    let is_elsewhere = mounts.options(device).is_some();
    device == superblock.device || mounts.at(superblock).contains(&device) || !is_elsewhere
}

impl Live<'_> {
    /// Puts something harmless in the place of the control fds that keep old superblocks alive.
    pub(super) fn put_placeholders(
        &mut self,
        session: &mut Session<'_>,
        held: &BTreeMap<usize, Vec<End>>,
    ) -> anyhow::Result<()> {
        let null = File::open(PLACEHOLDER).with_context(|| format!("cannot open {PLACEHOLDER}"))?;
        let ends: Vec<End> = held.values().flatten().copied().collect();
        self.point(session, &[(null.as_fd(), ends.as_slice())])?;
        for end in ends {
            if self.kind_of(end)? != Some(Kind::Null) {
                bail!("its descriptor {} could not be replaced", end.fd);
            }
        }
        Ok(())
    }

    /// Points control fds that still are placeholders to what is mounted at their place now: after a
    /// failure, to what restore put back.
    pub(super) fn put_back(
        &mut self,
        session: &mut Session<'_>,
        held: &BTreeMap<usize, Vec<End>>,
    ) -> anyhow::Result<()> {
        let mut left = BTreeMap::new();
        for (&index, ends) in held {
            let mut open = Vec::new();
            for &end in ends {
                if self.kind_of(end)? == Some(Kind::Null) {
                    open.push(end);
                }
            }
            if !open.is_empty() {
                left.insert(index, open);
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        self.wait_for_undo()?;
        let mounts = Mounts::read(self.process.dir())?;
        let wanted: Vec<_> = left
            .keys()
            .filter_map(|&index| Some((index, *mounts.at(&self.segment().superblocks()[index]).last()?)))
            .collect();
        let roots = self.opener.open(&wanted)?;
        let mut pairs = Vec::new();
        for ((index, _), root) in wanted.iter().zip(&roots) {
            if let (Ok(root), Some(ends)) = (root, left.remove(index)) {
                pairs.push((root.as_fd(), ends));
            }
        }
        let borrowed: Vec<_> = pairs.iter().map(|(root, ends)| (*root, ends.as_slice())).collect();
        self.point(session, &borrowed)?;
        for end in left.values().flatten() {
            self.voice.warn(format_args!(
                "descriptor {} of {} is open on {PLACEHOLDER} now: its autofs mount is gone; restart this master",
                end.fd,
                self.name()
            ));
        }
        Ok(())
    }

    /// Points descriptors of the master, which are open, to other files.
    fn point(
        &self,
        session: &mut Session<'_>,
        wanted: &[(std::os::fd::BorrowedFd<'_>, &[End])],
    ) -> anyhow::Result<()> {
        for (file, ends) in wanted {
            // A few bytes for each: this always fits.
            for part in ends.chunks(16) {
                let mut batch = Batch::new();
                let received = batch.receive(*file);
                for end in part {
                    batch.replace(end.fd, received, end.flags.cloexec);
                }
                session.run(&batch, std::time::Instant::now() + STEP)?;
            }
        }
        Ok(())
    }

    fn kind_of(&self, end: End) -> anyhow::Result<Option<Kind>> {
        Ok(self.process.descriptor(end.fd)?.map(|fd| kind(&fd)).transpose()?)
    }

    /// Whether a control fd shows this superblock.
    pub(super) fn shows(&self, end: End, device: Device) -> anyhow::Result<bool> {
        Ok(self.kind_of(end)? == Some(Kind::Autofs(device)))
    }

    /// Waits until a restore that failed has put back what it had taken away.
    fn wait_for_undo(&self) -> anyhow::Result<()> {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.segment().coordinator_lives()? && std::time::Instant::now() < deadline {
            let seen = self.segment().wake_value();
            self.segment().wait(seen, std::time::Duration::from_millis(20))?;
        }
        Ok(())
    }
}
