//! Taking an old superblock away: what is mounted on it is parked, who waits for it gets an error, and
//! its mounts are taken down.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::Context;
use autofs_cr_common::model::TextPath;
use autofs_cr_common::sys::mount::{PropagationType, mount_setattr};
use rustix::mount::{MountAttrFlags, MoveMountFlags, UnmountFlags, move_mount, unmount};

use super::Mounter;
use super::park::Park;
use crate::plan::Content;

/// A superblock that is to go.
#[derive(Debug)]
pub(super) struct Taken {
    /// The root of each of its mounts.
    pub roots: Vec<OwnedFd>,
    /// What was mounted on it and is parked, in the order of mountinfo.
    pub parked: VecDeque<(OwnedFd, TextPath)>,
}

impl Mounter<'_> {
    /// Takes the old superblock of an item away.
    pub(super) fn take(&mut self, item: usize) -> anyhow::Result<()> {
        let Some(old) = &self.plan.items[item].old else { return Ok(()) };
        if !old.content.is_empty() {
            self.park_content(item, &old.content)?;
        }
        let Some(taken) = self.taken.get_mut(&item) else { return Ok(()) };
        while let Some(root) = taken.roots.last() {
            // Lazily, as this very descriptor keeps it busy.
            unmount_fd(root).context("cannot unmount it")?;
            if taken.roots.len() == 1 {
                // Nobody shall wait for an answer that cannot come: they get ENOENT. Not before it is
                // unmounted, so that a mount that cannot be unmounted goes on as it was.
                self.device.make_catatonic(root.as_fd()).context("cannot end its waits")?;
            }
            taken.roots.pop();
        }
        Ok(())
    }

    /// Moves what is mounted on the old superblock aside: from the last, as what is mounted later may be
    /// on what was mounted before.
    fn park_content(&mut self, item: usize, contents: &[Content]) -> anyhow::Result<()> {
        if self.park.is_none() {
            let wanted = self.plan.image.superblocks.iter().map(|superblock| superblock.device).collect();
            let opened = Park::open(&self.root, &wanted);
            self.park = Some(opened.context("cannot make a place for what is mounted on autofs mounts")?);
        }
        for content in contents.iter().rev() {
            let mount = self.find_content(content)?;
            let (Some(taken), Some(park)) = (self.taken.get_mut(&item), &mut self.park) else { continue };
            for root in &taken.roots {
                // A mount cannot be moved away from a shared one.
                mount_setattr(root, MountAttrFlags::empty(), Some(PropagationType::Private))
                    .context("cannot make it private")?;
            }
            let what = || format!("cannot move what is mounted at {} aside", content.mount_point);
            park.store(&mount, &content.mount_point).with_context(what)?;
            taken.parked.push_front((mount, content.mount_point.clone()));
        }
        Ok(())
    }

    /// Moves what was mounted on the old superblock onto the new one, or back onto the old one if there is
    /// no new one.
    pub(super) fn bring_back(&mut self, item: usize) -> anyhow::Result<()> {
        let Some(mut taken) = self.taken.remove(&item) else { return Ok(()) };
        let mut result = Ok(());
        while let (Ok(()), Some((content, mount_point))) = (&result, taken.parked.front()) {
            let place = self.place_for_content(item, &taken, mount_point);
            let moved = place.and_then(|place| Ok(move_onto(content, &place)?));
            result =
                moved.with_context(|| format!("cannot move what was mounted at {mount_point} back there"));
            if result.is_ok() {
                taken.parked.pop_front();
            }
        }
        self.taken.insert(item, taken);
        result
    }

    fn place_for_content(&self, item: usize, taken: &Taken, path: &TextPath) -> anyhow::Result<OwnedFd> {
        let planned = &self.plan.items[item];
        let new = planned
            .mounts
            .iter()
            .filter_map(|index| Some((&self.plan.image.mounts[*index].mount_point, self.made.get(index)?)));
        let old = planned.old.iter().flat_map(|old| old.mounts.iter().zip(&taken.roots));
        let (outer, mount) = new
            .chain(old)
            .filter(|(outer, _)| path.starts_with(outer))
            .max_by_key(|(outer, _)| outer.as_bytes().len())
            .context("the mount that it was on is gone")?;
        Ok(super::place::inside(mount.as_fd(), super::prepare::relative(outer, path), path)?)
    }
}

/// Moves a mount onto a place.
pub(super) fn move_onto(mount: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", place, "", flags)?)
}

/// Unmounts the mount that a descriptor is on, as soon as it is not busy. The current directory is a
/// proc file system.
pub(super) fn unmount_fd(mount: &OwnedFd) -> io::Result<()> {
    Ok(unmount(format!("self/fd/{}", mount.as_raw_fd()), UnmountFlags::DETACH)?)
}
