//! Going back. What was made at a free place is taken away, unless something was mounted on it meanwhile.
//! Where an old superblock was taken away, an equal one stands in its place, or is put there.

use std::os::fd::AsFd;

use anyhow::Context;
use autofs_cr_common::model::TextPath;
use autofs_cr_common::sys::autofs::set_timeout_as_admin;
use autofs_cr_common::sys::mount::{PropagationType, mount_setattr};
use autofs_cr_common::target::is_alive;

use super::made::Tree;
use super::make::Number;
use super::unmount::Site;
use super::{Mounter, superblock};
use crate::plan::Action;

impl Mounter<'_> {
    /// Goes back as far as possible, and tells what could not be put back as it was. `unconnected` is sorted.
    pub(super) fn undo(&mut self, unconnected: &[usize]) -> Vec<String> {
        let mut problems = Vec::new();
        // What an undo makes in their places is made otherwise.
        self.ahead.clear();
        let begun: Vec<usize> = self.begun.drain(..).collect();
        for &item in begun.iter().rev() {
            self.progress.set(item);
            if self.plan.items[item].action == Action::Adopt {
                problems.extend(self.reset_timeout(item));
            } else if self.is_new(item) {
                problems.extend(self.unmake(item));
            }
        }
        for &item in &begun {
            self.progress.set(item);
            if !self.is_new(item) {
                problems.extend(self.put_back(item, unconnected.binary_search(&item).is_ok()));
            }
        }
        problems.extend(self.finish());
        problems
    }

    /// Whether it was made where nothing was before. Where parked mounts belong, there was something.
    fn is_new(&self, item: usize) -> bool {
        self.plan.items[item].was_free
    }

    fn reset_timeout(&self, item: usize) -> Option<String> {
        let before = self.plan.before.timeouts.get(&self.plan.image.superblocks[item].device)?;
        let reset = self.set_adopted_timeout(item, *before);
        reset.err().map(|error| format!("{}: cannot set it back: {error:#}", self.name(item)))
    }

    /// Takes the mounts of an item away again.
    fn unmake(&mut self, item: usize) -> Vec<String> {
        let mut problems = Vec::new();
        for &mount in self.plan.items[item].mounts.iter().rev() {
            let Some(tree) = self.made.remove(mount) else { continue };
            let mount_point = &self.plan.image.mounts[mount].mount_point;
            if let Err(error) = self.unmount_made(tree, mount_point) {
                problems.push(format!(
                    "{mount_point} is left, catatonic ({error:#}): run umount {mount_point} when nothing uses it"
                ));
            }
        }
        problems
    }

    /// Takes the mounts away that a restore which was killed has made where nothing was.
    pub(super) fn remove(&mut self, item: usize) -> anyhow::Result<()> {
        let Some(taken) = self.taken.remove(&item) else { return Ok(()) };
        for root in taken.roots.into_iter().rev() {
            let site = Site::find(&self.root, &root.mount_point, root.id)?;
            // Who waits for its master would wait on, and keep it busy.
            self.device.make_catatonic(root.fd.as_fd())?;
            drop(root.fd);
            site.unmount().with_context(|| format!("cannot unmount {}", root.mount_point))?;
        }
        Ok(())
    }

    /// Cuts a superblock off again that a restore which was killed adopted, if it was, with the timeout that it had.
    pub(super) fn reset(&mut self, item: usize) -> anyhow::Result<()> {
        let device = self.plan.image.superblocks[item].device;
        let root = self.open_adopted(item)?;
        if let Some(timeout) = self.plan.before.timeouts.get(&device) {
            set_timeout_as_admin(root.as_fd(), *timeout).context("cannot set its timeout back")?;
        }
        if self.plan.before.cut_off.contains(&device) {
            self.device.make_catatonic(root.as_fd()).context("cannot make it catatonic again")?;
        }
        Ok(())
    }

    /// Unmounts a mount that was made, if nothing is mounted on it.
    fn unmount_made(&self, tree: Tree, mount_point: &TextPath) -> anyhow::Result<()> {
        let tree = tree.open(&self.root, mount_point)?;
        // Who waits for its master would wait on, and block the walk to it.
        let root = superblock::open_root(&tree)?;
        self.device.make_catatonic(root.as_fd())?;
        let id = super::place::mount_id(tree.as_fd())?;
        let site = Site::find(&self.root, mount_point, id)?;
        // Both keep it busy.
        drop((root, tree));
        Ok(site.unmount()?)
    }

    /// Puts an equal superblock where an old one was taken away, and content back onto it.
    fn put_back(&mut self, item: usize, waits: bool) -> Vec<String> {
        let name = self.name(item);
        let was_taken = self.taken.get(&item).is_some_and(|taken| taken.roots.is_empty());
        let is_made = self.plan.items[item].mounts.iter().all(|mount| self.made.contains(*mount));
        let mut problems = Vec::new();
        if was_taken && !is_made {
            problems.extend(self.unmake(item));
            problems.extend(self.make_equal(item));
        } else if was_taken && waits {
            problems.extend(self.connect_instead(item));
        }
        // What is parked belongs onto the new superblock, or back onto the old one that is still there.
        if let Err(error) = self.bring_back(item) {
            problems.push(format!("{name}: {error:#}"));
        }
        problems.extend(self.share_again(item));
        problems
    }

    /// Makes a superblock like the one that was taken away: connected where that is possible from here, and else
    /// catatonic, as content must have something to come back onto.
    fn make_equal(&mut self, item: usize) -> Option<String> {
        let mut first = None;
        let connected = self.can_connect(item).then_some(Action::Connect);
        let catatonic = match self.plan.items[item].action {
            Action::Leave => Action::Leave,
            _ => Action::Create,
        };
        for action in connected.into_iter().chain([catatonic]) {
            for number in [Number::Planned, Number::Any] {
                match (self.make(item, action, number), number) {
                    (Err(error), _) => drop(first.get_or_insert(error)),
                    (Ok(()), Number::Any) => {
                        let catatonic = if action == Action::Create { " and catatonic" } else { "" };
                        let number = format!("with another device number{catatonic}");
                        return first
                            .map(|first| format!("{} was put back {number}: {first:#}", self.name(item)));
                    }
                    (Ok(()), Number::Planned) => {
                        return (action == Action::Create).then(|| self.left_catatonic(item));
                    }
                }
            }
        }
        first.map(|error| format!("{} cannot be put back: {error:#}", self.name(item)))
    }

    /// A new superblock stands in the place of an old one that was connected, and its fixup did not come
    /// to an end. One that is connected at once takes its place, if nothing is inside.
    fn connect_instead(&mut self, item: usize) -> Option<String> {
        if !self.can_connect(item) {
            return Some(self.left_catatonic(item));
        }
        if let Err(error) = self.park_again(item) {
            return Some(format!("{}: {error:#}", self.left_catatonic(item)));
        }
        let problems = self.unmake(item);
        problems.into_iter().next().or_else(|| self.make_equal(item))
    }

    /// Moves aside what was moved onto the new superblock. That is catatonic, so nobody asks for it meanwhile.
    fn park_again(&mut self, item: usize) -> anyhow::Result<()> {
        let Some(old) = &self.plan.items[item].old else { return Ok(()) };
        if old.content.is_empty() {
            return Ok(());
        }
        for tree in self.plan.items[item].mounts.iter().filter_map(|mount| self.made.get(*mount)) {
            // A mount cannot be moved away from a shared one.
            mount_setattr(tree, None, Some(PropagationType::Private)).context("cannot make it private")?;
        }
        self.open_park()?;
        for content in old.content.iter().rev() {
            let mount = self.find_content(content)?;
            self.store(item, mount, &content.mount_point)?;
        }
        Ok(())
    }

    /// Whether an item can be made connected although a fixup was planned for it.
    fn can_connect(&self, item: usize) -> bool {
        let superblock = &self.plan.image.superblocks[item];
        let is_empty = superblock.directories.is_empty() && superblock.symlinks.is_empty();
        let is_read = self.masters.pipe_of(superblock).is_some() && self.master_lives(item);
        is_empty && self.plan.items[item].group.is_some() && is_read
    }

    pub(super) fn master_lives(&self, item: usize) -> bool {
        let master = self.masters.of(&self.plan.image.superblocks[item]);
        master.is_some_and(|live| is_alive(live.pidfd.as_fd()))
    }

    fn left_catatonic(&self, item: usize) -> String {
        let name = self.name(item);
        let had_one = self.masters.of(&self.plan.image.superblocks[item]).is_some();
        // Its fixup may have connected it in the last instant.
        if had_one && !self.master_lives(item) {
            return format!("{name} is left without its master, which has ended: start that again");
        }
        format!("{name} is left catatonic: run autofs-restore and autofs-fixup again")
    }
}
