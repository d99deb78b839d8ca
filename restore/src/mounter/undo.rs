//! Going back. What was made at a free place is taken away. Where an old superblock was taken away, an
//! equal one stands in its place, or is put there.

use super::Mounter;
use super::make::Number;
use super::take::unmount_fd;
use crate::plan::Action;

impl Mounter<'_> {
    /// Goes back as far as possible, and tells what could not be put back as it was.
    pub(super) fn undo(&mut self, unconnected: &[usize]) -> Vec<String> {
        let mut problems = Vec::new();
        let begun: Vec<usize> = self.begun.drain(..).collect();
        for &item in begun.iter().rev() {
            let planned = &self.plan.items[item];
            if planned.action.makes() && planned.old.is_none() {
                problems.extend(self.unmake(item));
            }
        }
        for &item in &begun {
            if self.plan.items[item].old.is_some() {
                problems.extend(self.put_back(item, unconnected.contains(&item)));
            }
        }
        problems.extend(self.finish());
        problems
    }

    /// Takes the mounts of an item away again.
    fn unmake(&mut self, item: usize) -> Vec<String> {
        let mut problems = Vec::new();
        for &mount in self.plan.items[item].mounts.iter().rev() {
            if let Some(Err(error)) = self.made.remove(&mount).as_ref().map(unmount_fd) {
                let mount_point = &self.plan.image.mounts[mount].mount_point;
                problems
                    .push(format!("cannot unmount {mount_point} again: {error}; run umount {mount_point}"));
            }
        }
        problems
    }

    /// Puts an equal superblock where an old one was taken away, and content back onto it.
    fn put_back(&mut self, item: usize, waits: bool) -> Vec<String> {
        let name = self.name(item);
        let was_taken = self.taken.get(&item).is_some_and(|taken| taken.roots.is_empty());
        let is_made = self.plan.items[item].mounts.iter().all(|mount| self.made.contains_key(mount));
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
        problems
    }

    /// Makes a superblock like the one that was taken away: connected where that is possible from here.
    fn make_equal(&mut self, item: usize) -> Option<String> {
        let planned = self.plan.items[item].action;
        let action = if self.can_connect(item) { Action::Connect } else { planned };
        let Err(first) = self.make(item, action, Number::Planned) else {
            return (action == Action::Create).then(|| self.left_catatonic(item));
        };
        let name = self.name(item);
        match self.make(item, action, Number::Any) {
            Ok(()) => Some(format!("{name} was put back, but with another device number: {first:#}")),
            Err(error) => Some(format!("{name} cannot be put back: {error:#}")),
        }
    }

    /// A new superblock stands in the place of an old one that was connected, and its fixup did not come
    /// to an end. One that is connected at once takes its place, if nothing is inside or on it.
    fn connect_instead(&mut self, item: usize) -> Option<String> {
        let has_content = self.plan.items[item].old.as_ref().is_some_and(|old| !old.content.is_empty());
        if has_content || !self.can_connect(item) {
            return Some(self.left_catatonic(item));
        }
        let problems = self.unmake(item);
        problems.into_iter().next().or_else(|| self.make_equal(item))
    }

    /// Whether an item can be made connected although a fixup was planned for it.
    fn can_connect(&self, item: usize) -> bool {
        let superblock = &self.plan.image.superblocks[item];
        let is_empty = superblock.directories.is_empty() && superblock.symlinks.is_empty();
        let live = superblock.master.as_ref().and_then(|id| self.masters.live.get(id));
        is_empty && self.plan.items[item].group.is_some() && live.is_some()
    }

    fn left_catatonic(&self, item: usize) -> String {
        format!("{} is left catatonic: run autofs-restore and autofs-fixup again", self.name(item))
    }
}
