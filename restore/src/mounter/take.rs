//! Taking an old superblock away: what is mounted on it is parked, and its mounts are taken down.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use autofs_cr_common::model::TextPath;
use autofs_cr_common::sys::mount::{PropagationType, mount_setattr};
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use super::Mounter;
use super::park::Park;
use crate::plan::Content;

/// A superblock that is to go, or that parked mounts belong on.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Its mounts that are still there.
    pub roots: Vec<Root>,
    /// What was mounted on it and is parked, in the order of mountinfo.
    pub parked: VecDeque<(OwnedFd, TextPath)>,
}

/// A mount of such a superblock.
#[derive(Debug)]
pub(super) struct Root {
    /// Where it is.
    pub mount_point: TextPath,
    /// Its mount id.
    pub id: u64,
    /// It was in a peer group.
    pub is_shared: bool,
    /// Its root, open for reading.
    pub fd: OwnedFd,
}

/// How often something may be mounted on a mount while that is taken away.
const TRIES: usize = 8;

impl Mounter<'_> {
    /// Takes the old superblock of an item away.
    pub(super) fn take(&mut self, item: usize) -> anyhow::Result<()> {
        let Some(old) = &self.plan.items[item].old else { return Ok(()) };
        self.park_content(item, &old.content)?;
        while let Some(root) = self.taken.get_mut(&item).and_then(|taken| taken.roots.pop()) {
            self.unmount_old(item, root)?;
        }
        Ok(())
    }

    /// Unmounts one of its mounts. Not lazily: what is in use would live on and keep the device number, and
    /// someone who waits for an answer would wait for ever. So if this fails, it goes on as it was.
    fn unmount_old(&mut self, item: usize, root: Root) -> anyhow::Result<()> {
        let Root { mount_point, id, is_shared, fd } = root;
        self.park_late_content(item, &mount_point, id)?;
        drop(fd);
        let Err(error) = unmount(&*mount_point, UnmountFlags::NOFOLLOW) else { return Ok(()) };
        let device = self.plan.items[item].old.as_ref().map(|old| old.device).unwrap_or_default();
        let fd = self.open_mount(&mount_point, device)?;
        if let Some(taken) = self.taken.get_mut(&item) {
            taken.roots.push(Root { mount_point, id, is_shared, fd });
        }
        if error == rustix::io::Errno::BUSY {
            bail!(
                "it is in use: a process waits for it, or has it open or as its current directory (fuser -m shows \
                 which), or something was mounted in it just now; leave out --replace to keep it, or try again"
            );
        }
        Err(error).context("cannot unmount it")
    }

    /// Parks what was mounted on top of a mount since it was looked at.
    fn park_late_content(&mut self, item: usize, mount_point: &TextPath, id: u64) -> anyhow::Result<()> {
        for _ in 0..TRIES {
            let (top, top_id) = self.root.top(mount_point).context("cannot look at its mount point")?;
            if top_id == id {
                return Ok(());
            }
            self.store(item, top, mount_point)?;
        }
        bail!("something is mounted on it again and again")
    }

    /// Moves what is mounted on the old superblock aside: from the last, as what is mounted later may be
    /// on what was mounted before.
    fn park_content(&mut self, item: usize, contents: &[Content]) -> anyhow::Result<()> {
        for content in contents.iter().rev() {
            let mount = self.find_content(content)?;
            self.store(item, mount, &content.mount_point)?;
        }
        Ok(())
    }

    /// Moves one mount aside.
    fn store(&mut self, item: usize, mount: OwnedFd, mount_point: &TextPath) -> anyhow::Result<()> {
        let what = || format!("cannot move what is mounted at {mount_point} aside");
        if self.park.is_none() {
            let opened = Park::open(&self.root, &self.plan.wanted);
            self.park = Some(opened.context("cannot make a place for what is mounted on autofs mounts")?);
        }
        let (Some(taken), Some(park)) = (self.taken.get_mut(&item), &mut self.park) else { return Ok(()) };
        for root in taken.roots.iter().filter(|root| root.is_shared) {
            // A mount cannot be moved away from a shared one.
            mount_setattr(&root.fd, None, Some(PropagationType::Private)).with_context(what)?;
        }
        park.store(&mount, mount_point).with_context(what)?;
        taken.parked.push_front((mount, mount_point.clone()));
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
        let new = planned.mounts.iter().filter_map(|index| {
            Some((&self.plan.image.mounts[*index].mount_point, self.made.get(index)?.as_fd()))
        });
        let old = taken.roots.iter().map(|root| (&root.mount_point, root.fd.as_fd()));
        let (outer, mount) = new
            .chain(old)
            .filter(|(outer, _)| path.starts_with(outer))
            .max_by_key(|(outer, _)| outer.as_bytes().len())
            .context("the mount that it was on is gone")?;
        Ok(super::place::inside(mount, super::prepare::relative(outer, path), path)?)
    }

    /// Makes the mounts that are still there shared again, if they were.
    pub(super) fn share_again(&self, item: usize) -> Option<String> {
        let roots = self.taken.get(&item).map_or(&[][..], |taken| &taken.roots);
        let shared = roots.iter().filter(|root| root.is_shared);
        let failed = shared.filter_map(|root| {
            mount_setattr(&root.fd, None, Some(PropagationType::Shared)).err().map(|error| (root, error))
        });
        failed.map(|(root, error)| format!("{} cannot be shared again: {error}", root.mount_point)).next()
    }
}

/// Moves a mount onto a place.
pub(super) fn move_onto(mount: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", place, "", flags)?)
}
