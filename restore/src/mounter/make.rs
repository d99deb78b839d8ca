//! Making the superblocks of a group, and their mounts.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use autofs_cr_common::doc::image::Mount;
use autofs_cr_common::doc::report::Within;
use autofs_cr_common::model::Propagation;
use autofs_cr_common::sys::autofs::set_timeout_as_admin;
use autofs_cr_common::sys::mount::{PropagationType, mount_setattr};
use rustix::mount::MountAttrFlags;

use super::place::Place;
use super::prepare::relative;
use super::recipes::attributes_of;
use super::superblock;
use super::take::Taken;
use super::unmount::uncover;
use super::{Mounter, moves};
use crate::plan::Action;

/// A superblock that is adopted.
#[derive(Debug, Default)]
pub(super) struct Adopted {
    /// Its root, open for reading; none where descriptors are scarce.
    pub root: Option<OwnedFd>,
}

/// Which device number a new superblock gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// The one of the image, where the plan asks for it.
    Planned,
    /// Any.
    Any,
}

impl Mounter<'_> {
    /// Makes one group: takes the old superblocks away from the inside out, makes the new ones from the
    /// outside in, and moves content back.
    pub(super) fn make_group(&mut self, group: usize) -> anyhow::Result<()> {
        let items = &self.plan.groups[group];
        self.begun.extend(items);
        for &item in items {
            self.progress.set(item);
            self.find_again(item).and_then(|()| self.settle(item)).with_context(|| self.name(item))?;
            self.keep_pipe(item).with_context(|| self.name(item))?;
        }
        for &item in items.iter().rev() {
            self.progress.set(item);
            self.take(item).with_context(|| self.name(item))?;
        }
        for &item in items {
            self.progress.set(item);
            let action = self.plan.items[item].action;
            self.make(item, action, Number::Planned).with_context(|| self.name(item))?;
            self.bring_back(item)?;
        }
        Ok(())
    }

    /// Finds an old superblock that was found before and not kept open.
    pub(super) fn find_again(&mut self, item: usize) -> anyhow::Result<()> {
        let Some(old) = &self.plan.items[item].old else { return Ok(()) };
        if !self.taken.contains_key(&item) {
            let taken = self.find_old(old, Some(&HashSet::new()))?;
            self.taken.insert(item, taken);
        }
        Ok(())
    }

    /// For messages: where the item is.
    pub(super) fn name(&self, item: usize) -> String {
        let mounts = &self.plan.items[item].mounts;
        mounts.first().map_or(String::new(), |&mount| self.plan.image.mounts[mount].mount_point.to_string())
    }

    /// Makes one item by `action`, which is the planned one or a substitute for it.
    pub(super) fn make(&mut self, item: usize, action: Action, number: Number) -> anyhow::Result<()> {
        let superblock = &self.plan.image.superblocks[item];
        match action {
            Action::Keep | Action::Remove => return Ok(()),
            Action::Reset => return self.reset(item),
            Action::Adopt => {
                self.set_adopted_timeout(item, superblock.options.timeout())?;
                return Ok(());
            }
            Action::Connect | Action::Create | Action::Leave => {}
        }
        let whole = match self.ahead.remove(&item) {
            Some(whole) => whole,
            None => self.create(item, action, number)?,
        };
        self.attach_mounts(item, whole)
    }

    /// Sets the timeout of a superblock that is adopted.
    pub(super) fn set_adopted_timeout(&self, item: usize, timeout: Duration) -> anyhow::Result<()> {
        let found;
        let root = match self.adopted.get(&item).and_then(|adopted| adopted.root.as_ref()) {
            Some(root) => root,
            None => {
                found = self.open_adopted(item)?;
                &found
            }
        };
        set_timeout_as_admin(root.as_fd(), timeout).context("cannot set its timeout")?;
        Ok(())
    }

    /// Covers the place of an item until what is parked for it is on its new superblock: who asks before that comes has the
    /// master mount it once more, and who watches the table of mounts, as systemd does, sees that something is
    /// mounted there.
    pub(super) fn cover_place(&mut self, item: usize) -> anyhow::Result<()> {
        // What is on which of several mounts is found when they are there.
        let [index] = *self.plan.items[item].mounts else { return Ok(()) };
        if !self.taken.get(&item).is_some_and(Taken::has_content) {
            return Ok(());
        }
        let mount = &self.plan.image.mounts[index];
        let cover = self.open_park()?.cover().context("cannot make a cover")?;
        self.place_of(index, mount)?.attach(&cover).context("cannot cover its place")?;
        if let Some(taken) = self.taken.get_mut(&item) {
            taken.place_cover = Some((cover, mount.mount_point.clone()));
        }
        Ok(())
    }

    /// Attaches the mounts of an item: beneath the cover of its place, if there is one.
    fn attach_mounts(&mut self, item: usize, whole: OwnedFd) -> anyhow::Result<()> {
        let cover = self.taken.get_mut(&item).and_then(|taken| taken.place_cover.take());
        let ([index], Some((cover, mount_point))) = (&*self.plan.items[item].mounts, cover) else {
            return self.attach_all(item, whole);
        };
        let attached = self.attach_at(*index, whole.try_clone()?, Some(&cover));
        if self.made.contains(*index) {
            if let Some(taken) = self.taken.get_mut(&item) {
                taken.place_cover = Some((cover, mount_point));
            }
            return attached;
        }
        // Not beneath another mount before Linux 6.5.
        uncover(cover).context("cannot uncover its place")?;
        self.attach_all(item, whole)
    }

    /// Makes the superblock of an item, with its device number and all that is inside.
    pub(super) fn create(&mut self, item: usize, action: Action, number: Number) -> anyhow::Result<OwnedFd> {
        let whole =
            self.create_bare(item, action, number).map_err(|error| match self.master_lives(item) {
                false if action == Action::Connect => error.context("its master has ended"),
                _ => error,
            })?;
        let superblock = &self.plan.image.superblocks[item];
        let root = superblock::open_root(&whole).context("cannot open its root")?;
        // By the older ioctl, as the newer one is for its process group.
        set_timeout_as_admin(root.as_fd(), superblock.options.timeout()).context("cannot set its timeout")?;
        superblock::furnish(root.as_fd(), &superblock.directories, &superblock.symlinks)
            .context("cannot make the directories inside")?;
        if action != Action::Connect {
            self.device.make_catatonic(root.as_fd()).context("cannot make it catatonic")?;
        }
        Ok(whole)
    }

    fn create_bare(&mut self, item: usize, action: Action, number: Number) -> anyhow::Result<OwnedFd> {
        let recipe = self.recipes.of(item, action)?;
        let planned = &self.plan.items[item];
        if number == Number::Any || !planned.keeps_device {
            let wanted = |device| self.plan.wanted.contains(&device);
            return self.numbers.any_but(wanted, || superblock::create(&recipe)).context("cannot make it");
        }
        let device = self.plan.image.superblocks[item].device;
        let made = self.numbers.make(device, || superblock::create(&recipe));
        made.context("cannot make the superblock with its device number")
    }

    fn attributes(&self, mount: usize) -> MountAttrFlags {
        attributes_of(&self.plan.image.mounts[mount])
    }

    /// Attaches all mounts of an item. The first that shows the root of the superblock is the one that
    /// was made with it; the others are bind mounts of it.
    fn attach_all(&mut self, item: usize, whole: OwnedFd) -> anyhow::Result<()> {
        let mounts = &*self.plan.items[item].mounts;
        if let &[only] = mounts
            && self.shows_root(only)
        {
            return self.attach(only, whole);
        }
        let first = mounts.iter().copied().find(|&mount| self.shows_root(mount));
        if let Some(first) = first {
            self.attach(first, whole.try_clone()?)?;
        }
        for &mount in mounts.iter().filter(|&&mount| Some(mount) != first) {
            let tree = self.bind(&whole, mount)?;
            self.attach(mount, tree)?;
        }
        Ok(())
    }

    /// Whether it is the mount that its superblock was made with, and got all of its attributes then.
    fn is_made_as_wanted(&self, mount: usize) -> bool {
        let is_first = self.plan.items[self.plan.item_of[mount]].mounts.first() == Some(&mount);
        let is_read_only = self.attributes(mount).contains(MountAttrFlags::MOUNT_ATTR_RDONLY);
        is_first && self.shows_root(mount) && !is_read_only
    }

    fn shows_root(&self, mount: usize) -> bool {
        self.plan.image.mounts[mount].root.as_bytes() == b"/"
    }

    fn bind(&self, whole: &OwnedFd, mount: usize) -> anyhow::Result<OwnedFd> {
        let root = &self.plan.image.mounts[mount].root;
        let inside = super::place::inside(whole.as_fd(), relative(Path::new("/"), root), root)?;
        moves::bind(&inside).with_context(|| format!("cannot bind its directory {root}"))
    }

    fn attach(&mut self, index: usize, tree: OwnedFd) -> anyhow::Result<()> {
        let item = self.plan.item_of[index];
        let above = self.taken.get_mut(&item).and_then(|taken| taken.above.take());
        let attached = self.attach_at(index, tree, above.as_ref().map(|(content, _)| content));
        // It is on the new one now. An undo that takes that away moves it aside first.
        if let Some(taken) = self.taken.get_mut(&item).filter(|_| !self.made.contains(index)) {
            taken.above = above;
        }
        attached
    }

    /// Attaches a mount at its place, or there beneath a cover. It has its attributes before anybody sees it.
    fn attach_at(&mut self, index: usize, tree: OwnedFd, cover: Option<&OwnedFd>) -> anyhow::Result<()> {
        let mount = &self.plan.image.mounts[index];
        let what = || format!("cannot set the options of {}", mount.mount_point);
        if !self.is_made_as_wanted(index) {
            mount_setattr(&tree, Some(self.attributes(index)), None).with_context(what)?;
        }
        let attached = match cover {
            Some(cover) => moves::beneath(cover, &tree),
            None => self.place_of(index, mount)?.attach(&tree),
        };
        attached.with_context(|| format!("cannot mount it on {}", mount.mount_point))?;
        // What it gets from the mount that it is on now.
        let set =
            propagation_type(mount.propagation).map_or(Ok(()), |to| mount_setattr(&tree, None, Some(to)));
        // Also if that failed, so that an undo finds it.
        let taken = self.taken.get(&self.plan.item_of[index]);
        let must_stay_open = self.outer.contains(&index) || taken.is_some_and(Taken::has_content);
        self.made.insert(index, tree, must_stay_open)?;
        set.with_context(what)
    }

    fn place_of<'p>(&'p mut self, index: usize, mount: &'p Mount) -> anyhow::Result<Place<'p>> {
        let path = &mount.mount_point;
        if self.found.remove(&index) {
            return Ok(self.root.found_place(path)?);
        }
        let within_autofs = mount.within == Within::Autofs;
        let parent = self.plan.parents[index].filter(|_| within_autofs);
        if let Some((parent, tree)) = parent.and_then(|parent| Some((parent, self.made.get(parent)?))) {
            let outer = &self.plan.image.mounts[parent].mount_point;
            return Ok(Place::Open(super::place::inside(tree, relative(outer, path), path)?));
        }
        Ok(self.root.place(path, mount.covers)?)
    }
}

/// A mount of a peer group outside the image cannot join it again: it becomes what the place where it is
/// mounted makes of it.
fn propagation_type(propagation: Propagation) -> Option<PropagationType> {
    match propagation {
        Propagation { unbindable: true, .. } => Some(PropagationType::Unbindable),
        Propagation { shared: Some(_), .. } => Some(PropagationType::Shared),
        Propagation { slave_of: Some(_), .. } => None,
        _ => Some(PropagationType::Private),
    }
}
