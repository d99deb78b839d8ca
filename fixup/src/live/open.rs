//! Opening the roots of superblocks: through a descriptor that the master has, by a walk from outside, or
//! from inside the master, whose own walks wait for nobody.

use std::os::fd::OwnedFd;

use autofs_cr_common::model::Device;
use autofs_cr_common::segment::Progress;
use nix::errno::Errno;

use super::{Live, Opened, STEP, control};
use crate::inside;
use crate::mounts::Mounts;
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
        let now;
        let mounts = match self.sight.before {
            Some(before) => before,
            None => {
                now = Mounts::read(self.process.dir())?;
                &now
            }
        };
        let wanted = self.wanted(indices, mounts)?;
        for ((index, device), root) in self.roots(&wanted, mounts)? {
            match root {
                Root::Open(root) => opened.extend(self.examine(index, device, root, mounts)?),
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
        let mounts = Mounts::read(self.process.dir())?;
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

    /// The devices of superblocks. One that is not mounted is given up.
    fn wanted(&mut self, indices: &[usize], mounts: &Mounts) -> anyhow::Result<Vec<Wanted>> {
        let mut wanted = Vec::with_capacity(indices.len());
        for &index in indices {
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

    /// How the root of each superblock is got.
    fn roots(&mut self, wanted: &[Wanted], mounts: &Mounts) -> anyhow::Result<Vec<(Wanted, Root)>> {
        let mut roots = Vec::with_capacity(wanted.len());
        let mut others = Vec::new();
        for &(index, device) in wanted {
            match control::copy_of(&self.process, &self.segment().superblocks()[index], device) {
                Some(root) => roots.push(((index, device), Root::Open(root))),
                None => others.push((index, device)),
            }
        }
        let mut blocked = Vec::new();
        for (wanted, opened) in others.iter().zip(self.opener.open_together(&others)?) {
            match opened {
                Ok(root) => roots.push((*wanted, Root::Open(root))),
                Err(errno) if may_be_pending(errno) => blocked.push(*wanted),
                Err(errno) => roots.push((*wanted, Root::Failed(errno))),
            }
        }
        let (inside, outside) = self.divide(&blocked, mounts)?;
        roots.extend(inside.into_iter().map(|wanted| (wanted, Root::Blocked)));
        let opened = self.opener.open(&outside)?.into_iter();
        roots.extend(outside.into_iter().zip(opened.map(|root| root.map_or_else(Root::Failed, Root::Open))));
        Ok(roots)
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
        mounts: &Mounts,
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
