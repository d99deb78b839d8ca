//! Finding everything before the first change: the superblocks that are to go, what is mounted on them,
//! those that are adopted, and the places of new mounts.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use autofs_cr_common::doc::report::Within;
use autofs_cr_common::model::{Device, Pid, TextPath};
use nix::errno::Errno;

use super::Mounter;
use super::make::Adopted;
use super::take::{Root, Taken};
use crate::plan::{Action, Content, Item, Old, OldMount};

impl Mounter<'_> {
    /// Finds everything. Opening a mount blocks while a request is pending on it; restore has a deadline
    /// for that.
    pub(super) fn prepare(&mut self) -> anyhow::Result<()> {
        let plan = self.plan;
        let covers = plan.image.mounts.iter().filter(|mount| mount.covers);
        let covered = covers.map(|mount| &mount.mount_point).collect();
        let mut groups = HashSet::new();
        for (index, item) in plan.items.iter().enumerate() {
            self.progress.set(index);
            if let Some(old) = &item.old {
                let looks_at_content = !item.is_unsettled();
                let taken = self.find_old(old, looks_at_content.then_some(&covered))?;
                // Without it, it is found again when it is to go.
                let can_be_kept = taken.roots.last().is_none_or(|root| !self.made.is_scarce(&root.fd));
                if can_be_kept || item.is_unsettled() {
                    self.taken.insert(index, taken);
                }
            } else if item.action == Action::Adopt {
                let root = self.open_adopted(index)?;
                let root = (!self.made.is_scarce(&root)).then_some(root);
                self.adopted.insert(index, Adopted { root });
            }
            self.find_parked(index, item)?;
            if let Some(group) =
                item.group.filter(|&group| item.action == Action::Connect && groups.insert(group))
            {
                self.check_group(item, group)?;
            }
            if item.action.makes() {
                self.prepare_places(item)?;
            }
        }
        Ok(())
    }

    /// Finds a superblock that is to go. What is mounted on those that are `covered` by a mount of the image is
    /// found when that is gone; without `covered` nothing on it is looked at, as it is not in its place yet.
    pub(super) fn find_old(&self, old: &Old, covered: Option<&HashSet<&TextPath>>) -> anyhow::Result<Taken> {
        let mut taken = Taken::default();
        for OldMount { id, mount_point, is_shared } in &old.mounts {
            let fd = self.open_mount(mount_point, old.device)?;
            taken.roots.push(Root {
                mount_point: mount_point.clone(),
                id: *id,
                is_shared: *is_shared,
                fd,
                cover: None,
            });
        }
        let Some(covered) = covered else { return Ok(taken) };
        let visible = old.content.iter().filter(|content| !covered.contains(&content.mount_point));
        visible.map(|content| self.find_content(content)).try_for_each(|found| found.map(drop))?;
        Ok(taken)
    }

    /// Finds what a restore that was killed parked, and belongs on this item.
    fn find_parked(&mut self, item: usize, planned: &Item) -> anyhow::Result<()> {
        if !planned.is_unsettled() {
            return Ok(());
        }
        let mut taken = self.taken.remove(&item).unwrap_or_default();
        if !planned.action.makes() {
            let device = planned.there.unwrap_or(self.plan.image.superblocks[item].device);
            for &mount in &planned.mounts {
                let mount_point = self.plan.image.mounts[mount].mount_point.clone();
                let fd = self.open_mount(&mount_point, device)?;
                let id = super::place::mount_id(fd.as_fd())?;
                taken.roots.push(Root { mount_point, id, is_shared: false, fd, cover: None });
            }
        }
        for parked in &planned.parked {
            let mount = self.root.mount(&parked.mount_point, parked.id);
            let what = || format!("cannot reach what is parked at {}", parked.mount_point);
            let mount = (mount.with_context(what)?, parked.was_at.clone());
            match parked.is_in_place() {
                true => taken.above = Some(mount),
                false => taken.parked.push_back(mount),
            }
        }
        self.taken.insert(item, taken);
        Ok(())
    }

    /// Whether the process group that a superblock is to be made with is there: the kernel asks for it.
    fn check_group(&self, item: &Item, group: Pid) -> anyhow::Result<()> {
        let found = match nix::sys::signal::killpg(group.to_nix(), None) {
            // It is there, and of another user.
            Err(Errno::EPERM) => Ok(()),
            found => found,
        };
        found.with_context(|| {
            let mount = item.mounts.first().map(|&mount| &self.plan.image.mounts[mount].mount_point);
            format!("{}: its process group {group} is not there", mount.cloned().unwrap_or_default())
        })
    }

    /// Finds something that is mounted on an autofs mount.
    pub(super) fn find_content(&self, content: &Content) -> anyhow::Result<OwnedFd> {
        let what = || format!("cannot reach what is mounted at {}, to move it over", content.mount_point);
        self.root.mount(&content.mount_point, content.id).with_context(what)
    }

    pub(super) fn open_adopted(&self, index: usize) -> anyhow::Result<OwnedFd> {
        let mount = self.plan.items[index].mounts.first();
        let mount_point = mount.map(|&mount| self.plan.image.mounts[mount].mount_point.clone());
        let device = self.plan.items[index].there.unwrap_or(self.plan.image.superblocks[index].device);
        self.open_mount(&mount_point.unwrap_or_default(), device)
    }

    pub(super) fn open_mount(&self, mount_point: &TextPath, device: Device) -> anyhow::Result<OwnedFd> {
        let path = CString::new(mount_point.as_bytes())?;
        self.device
            .open_mount(&path, device)
            .with_context(|| format!("cannot open the autofs mount {mount_point} with device {device}"))
    }

    fn prepare_places(&mut self, item: &Item) -> anyhow::Result<()> {
        let is_taken = item.old.is_some() || item.is_unsettled();
        for &index in &item.mounts {
            let mount = &self.plan.image.mounts[index];
            match self.plan.parents[index] {
                Some(parent) if self.is_made(parent) => self.check_inside(parent, index)?,
                // The place is found when the old superblock is gone from it, or what a killed restore covered it with.
                _ if is_taken => {}
                _ => {
                    self.root.place(&mount.mount_point, mount.covers)?;
                    self.found.insert(index);
                }
            }
        }
        Ok(())
    }

    fn is_made(&self, mount: usize) -> bool {
        self.plan.items[self.plan.item_of[mount]].action.makes()
    }

    /// Whether the superblock of the mount `parent` will have the directory that `child` goes on.
    fn check_inside(&self, parent: usize, child: usize) -> anyhow::Result<()> {
        let superblock = &self.plan.image.superblocks[self.plan.item_of[parent]];
        let (parent, child) = (&self.plan.image.mounts[parent], &self.plan.image.mounts[child]);
        if child.within == Within::Content {
            return Ok(());
        }
        let inner = inside_superblock(&parent.root, relative(&parent.mount_point, &child.mount_point));
        let is_root = inner.as_os_str().is_empty();
        if !is_root && !superblock.directories.iter().any(|directory| *directory.path == *inner) {
            bail!(
                "mount point {} does not exist: superblock {} has no directory '{}' in the image",
                child.mount_point,
                parent.device,
                inner.display()
            );
        }
        Ok(())
    }
}

/// The path of an inner mount point from the mount it is nested in.
pub(super) fn relative<'p>(outer: &Path, inner: &'p Path) -> &'p Path {
    inner.strip_prefix(outer).unwrap_or(Path::new(""))
}

/// A path below a mount, as from the root of its superblock, without a leading slash.
fn inside_superblock(mount_root: &Path, relative: &Path) -> PathBuf {
    mount_root.strip_prefix("/").unwrap_or(mount_root).join(relative)
}
