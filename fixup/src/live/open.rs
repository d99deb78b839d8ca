//! Opening the roots of superblocks: through a descriptor that the master has, by a walk from outside, or
//! from inside the master, whose own walks wait for nobody.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use autofs_cr_common::model::Device;
use autofs_cr_common::segment::Progress;
use nix::errno::Errno;

use super::{Live, Opened, STEP, control};
use crate::inside;
use crate::mounts::{Mounts, WhenNeeded};
use crate::opener::{Wanted, may_be_pending};
use crate::remote::Session;

/// How the root of a superblock is got.
enum Root {
    Open(OwnedFd),
    /// A walk from outside blocks, as a request is pending; one of the master does not.
    Blocked,
    Failed(Errno),
}

impl Live<'_> {
    /// Opens superblocks, and claims them. Gives also those that only the master itself can open. One that
    /// cannot be opened is given up.
    pub(super) fn open(&mut self, indices: &[usize]) -> anyhow::Result<(Vec<Opened>, Vec<Wanted>)> {
        let (mut opened, mut blocked) = (Vec::with_capacity(indices.len()), Vec::new());
        if indices.is_empty() {
            return Ok((opened, blocked));
        }
        let mounts = WhenNeeded::default();
        for ((index, device), root) in self.roots(indices, &mounts)? {
            match root {
                Root::Open(root) => opened.extend(self.examine(index, device, root, &mounts)?),
                Root::Blocked => blocked.push((index, device)),
                Root::Failed(errno) => self.fail(index, &unreachable(errno))?,
            }
        }
        let claimed = opened.iter().map(|one| one.index).chain(blocked.iter().map(|(index, _)| *index));
        let created = self.select(|progress| progress == Progress::Created)?;
        let claimed = claimed.filter(|index| created.binary_search(index).is_ok());
        self.segment().advance_all(claimed, Progress::Claimed)?;
        Ok((opened, blocked))
    }

    /// Has the master itself open superblocks.
    pub(super) fn open_inside(
        &mut self,
        session: &mut Session<'_>,
        blocked: &[Wanted],
        opened: &mut Vec<Opened>,
    ) -> anyhow::Result<()> {
        if blocked.is_empty() {
            return Ok(());
        }
        let mounts = WhenNeeded::default();
        let superblocks = self.watch.segment.superblocks();
        let places = blocked.iter().map(|(index, device)| (&superblocks[*index].mount_point, *device));
        let roots = inside::open(session, self.device, &places.collect::<Vec<_>>(), self.watch.step(STEP))?;
        for (&(index, device), root) in blocked.iter().zip(roots) {
            match root {
                Ok(root) => opened.extend(self.examine(index, device, root, &mounts)?),
                Err(errno) => self.fail(index, &unreachable(errno))?,
            }
        }
        Ok(())
    }

    /// How the root of each superblock is got.
    fn roots(&mut self, indices: &[usize], mounts: &WhenNeeded) -> anyhow::Result<Vec<(Wanted, Root)>> {
        let mut roots = Vec::with_capacity(indices.len());
        let rest = self.as_recorded(indices, &mut roots)?;
        if rest.is_empty() {
            return Ok(roots);
        }
        let mounts = mounts.of(self.process.dir())?;
        let (mut failed, mut others) = (Vec::new(), Vec::new());
        for (index, device) in self.wanted(rest.keys().copied(), mounts)? {
            let superblock = &self.segment().superblocks()[index];
            let was_walked_to = |errno| device == superblock.device || errno == Errno::ETIMEDOUT;
            match (control::copy_of(&self.process, superblock, device), rest[&index]) {
                (Some(root), _) => roots.push(((index, device), Root::Open(root))),
                (None, Some(errno)) if was_walked_to(errno) => failed.push(((index, device), errno)),
                (None, _) => others.push((index, device)),
            }
        }
        failed.extend(self.walk(&others, &mut roots)?);
        let mut blocked = Vec::new();
        for (wanted, errno) in failed {
            match may_be_pending(errno) {
                true => blocked.push(wanted),
                false => roots.push((wanted, Root::Failed(errno))),
            }
        }
        let (inside, outside) = self.divide(&blocked, mounts)?;
        roots.extend(inside.into_iter().map(|wanted| (wanted, Root::Blocked)));
        let opened = self.opener.open(&outside)?.into_iter();
        roots.extend(outside.into_iter().zip(opened.map(|root| root.map_or_else(Root::Failed, Root::Open))));
        Ok(roots)
    }

    /// Opens those that have the recorded number and no control fd, which is most often all: nothing needs to be known
    /// of the mounts for that. Gives the others, with the error of the walk. A control fd may show another superblock
    /// of that number.
    fn as_recorded(
        &mut self,
        indices: &[usize],
        roots: &mut Vec<(Wanted, Root)>,
    ) -> anyhow::Result<BTreeMap<usize, Option<Errno>>> {
        let superblocks = self.watch.segment.superblocks();
        let (plain, controlled): (Vec<usize>, Vec<usize>) =
            indices.iter().partition(|&&index| superblocks[index].control_fds.is_empty());
        let plain: Vec<Wanted> = plain.into_iter().map(|index| (index, superblocks[index].device)).collect();
        let mut ahead = std::mem::take(&mut self.sight.prepared.roots);
        let mut rest = Vec::new();
        for one in plain {
            match ahead.remove(&one.0) {
                Some(root) => roots.push((one, Root::Open(root))),
                None => rest.push(one),
            }
        }
        let failed = self.walk(&rest, roots)?;
        let failed = failed.into_iter().map(|((index, _), errno)| (index, Some(errno)));
        Ok(failed.chain(controlled.into_iter().map(|index| (index, None))).collect())
    }

    /// Opens superblocks by walks; gives those that failed.
    fn walk(
        &mut self,
        wanted: &[Wanted],
        roots: &mut Vec<(Wanted, Root)>,
    ) -> anyhow::Result<Vec<(Wanted, Errno)>> {
        let mut failed = Vec::new();
        for (&wanted, opened) in wanted.iter().zip(self.opener.open_together(wanted)?) {
            match opened {
                Ok(root) => roots.push((wanted, Root::Open(root))),
                Err(errno) => failed.push((wanted, errno)),
            }
        }
        Ok(failed)
    }

    /// The devices of superblocks. One that is not mounted is given up.
    fn wanted(
        &mut self,
        indices: impl Iterator<Item = usize>,
        mounts: &Mounts,
    ) -> anyhow::Result<Vec<Wanted>> {
        let mut wanted = Vec::new();
        for index in indices {
            let superblock = &self.segment().superblocks()[index];
            match mounts.device_of(superblock) {
                Some(device) => wanted.push((index, device)),
                None => {
                    let error = anyhow::Error::from(Errno::ENOENT)
                        .context(format!("no autofs mount with device {} is there", superblock.device));
                    self.fail(index, &error)?;
                }
            }
        }
        Ok(wanted)
    }

    /// Those that the master can open without waiting for anyone, and the others. It must not wait: its
    /// thread could not be stopped any more.
    fn divide(&mut self, blocked: &[Wanted], mounts: &Mounts) -> anyhow::Result<(Vec<Wanted>, Vec<Wanted>)> {
        let group = self.process.dir().stat().map_or(0, |stat| stat.group);
        let superblocks = self.watch.segment.superblocks();
        let passes = |(index, _): &Wanted| mounts.let_pass(group, &superblocks[*index].mount_point);
        let (own, mut others): (Vec<Wanted>, Vec<Wanted>) = blocked.iter().partition(|one| passes(one));
        let places: Vec<usize> = own.iter().map(|(index, _)| *index).collect();
        let reached = self.opener.reaches(&places)?;
        let mut inside = Vec::with_capacity(own.len());
        for (one, reached) in own.into_iter().zip(reached) {
            if reached { &mut inside } else { &mut others }.push(one);
        }
        Ok((inside, others))
    }

    /// What is to be done with a superblock that was opened. One that must not be touched is given up.
    fn examine(
        &mut self,
        index: usize,
        device: Device,
        root: OwnedFd,
        mounts: &WhenNeeded,
    ) -> anyhow::Result<Option<Opened>> {
        let superblock = &self.segment().superblocks()[index];
        match control::open_ones(&self.process, superblock, mounts, Some(device)) {
            Ok(controls) => Ok(Some(Opened { index, device, root, controls })),
            Err(error) => self.fail(index, &error).map(|()| None),
        }
    }
}

fn unreachable(errno: Errno) -> anyhow::Error {
    anyhow::Error::from(errno)
        .context("cannot open the mount (a request that nobody answers may wait there, or on the way)")
}
