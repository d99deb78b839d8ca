//! Making superblocks ahead of all that anybody sees.
//!
//! The work place is a file system, and needs a device number too, while the lowest free ones are just those that are wanted
//! again. So the superblocks with these are made first, attached nowhere: no fillers are needed to get past them, and what
//! cannot be made is known before the first change.

use std::collections::HashSet;

use anyhow::Context;
use autofs_cr_common::model::Device;

use super::Mounter;
use super::make::Number;

impl Mounter<'_> {
    /// Makes the superblocks whose numbers are free now, as long as there are descriptors for them.
    pub(super) fn make_ahead(&mut self) -> anyhow::Result<()> {
        let room = self.made.room(&self.proc_dir.try_clone()?);
        for item in self.possible_ahead().into_iter().take(room) {
            self.progress.set(item);
            let action = self.plan.items[item].action;
            let whole = self.create(item, action, Number::Planned).with_context(|| self.name(item))?;
            self.ahead.insert(item, whole);
        }
        Ok(())
    }

    /// The items of which that can be, in the order in which the kernel hands the numbers out.
    fn possible_ahead(&self) -> Vec<usize> {
        let (items, superblocks) = (&self.plan.items, &self.plan.image.superblocks);
        let old: HashSet<Device> =
            items.iter().filter_map(|item| item.old.as_ref()).map(|old| old.device).collect();
        let is_possible = |&item: &usize| {
            let planned = &items[item];
            let is_free = planned.old.is_none() && !old.contains(&superblocks[item].device);
            planned.action.makes() && planned.keeps_device && is_free && !planned.is_unsettled()
        };
        let mut possible: Vec<usize> = (0..items.len()).filter(is_possible).collect();
        possible.sort_by_key(|&item| superblocks[item].device);
        possible
    }
}
