//! Finding everything before the first change: the superblocks that are to go, what is mounted on them,
//! those that are adopted, and the places of new mounts.

use std::collections::{HashSet, VecDeque};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use autofs_cr_common::doc::report::Within;
use autofs_cr_common::model::{Device, TextPath};

use super::Mounter;
use super::take::Taken;
use crate::plan::{Action, Content, Item, Old};

impl Mounter<'_> {
    /// Finds everything. Opening a mount blocks while a request is pending on it; restore has a deadline
    /// for that.
    pub(super) fn prepare(&mut self) -> anyhow::Result<()> {
        let plan = self.plan;
        let covers = plan.image.mounts.iter().filter(|mount| mount.covers);
        let covered = covers.map(|mount| &mount.mount_point).collect();
        for (index, item) in plan.items.iter().enumerate() {
            self.progress.set(index);
            match (item.action, &item.old) {
                (_, Some(old)) => drop(self.taken.insert(index, self.find_old(old, &covered)?)),
                (Action::Adopt, None) => drop(self.adopted.insert(index, self.find_adopted(index, item)?)),
                _ => {}
            }
            if item.action.makes() {
                self.prepare_places(item, item.old.is_some())?;
            }
        }
        Ok(())
    }

    fn find_old(&self, old: &Old, covered: &HashSet<&TextPath>) -> anyhow::Result<Taken> {
        let mut roots = Vec::with_capacity(old.mounts.len());
        for mount_point in &old.mounts {
            roots.push(self.open_mount(mount_point, old.device)?);
        }
        for content in &old.content {
            // What a mount of the image covers is found when that is gone.
            if !covered.contains(&content.mount_point) {
                self.find_content(content)?;
            }
        }
        Ok(Taken { roots, parked: VecDeque::new() })
    }

    /// Finds something that is mounted on an autofs mount.
    pub(super) fn find_content(&self, content: &Content) -> anyhow::Result<OwnedFd> {
        let what = || format!("cannot reach what is mounted at {}, to move it over", content.mount_point);
        self.root.mount(&content.mount_point, content.id).with_context(what)
    }

    fn find_adopted(&self, index: usize, item: &Item) -> anyhow::Result<OwnedFd> {
        let mount = item.mounts.first().map(|&mount| &self.plan.image.mounts[mount].mount_point);
        let mount_point = mount.cloned().unwrap_or_default();
        self.open_mount(&mount_point, self.plan.image.superblocks[index].device)
    }

    fn open_mount(&self, mount_point: &TextPath, device: Device) -> anyhow::Result<OwnedFd> {
        let path = CString::new(mount_point.as_bytes())?;
        self.device
            .open_mount(&path, device)
            .with_context(|| format!("cannot open the autofs mount {mount_point} with device {device}"))
    }

    fn prepare_places(&mut self, item: &Item, replaced: bool) -> anyhow::Result<()> {
        for &index in &item.mounts {
            let mount = &self.plan.image.mounts[index];
            match self.plan.parents[index] {
                Some(parent) if self.is_made(parent) => self.check_inside(parent, index)?,
                // The place is found when the old superblock is gone from it.
                _ if replaced => {}
                _ => drop(self.places.insert(index, self.root.place(&mount.mount_point, mount.covers)?)),
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
