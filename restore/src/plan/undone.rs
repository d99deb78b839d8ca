//! The plan to go back from a restore that was killed, for one superblock: by what that restore wrote down of what was there.
//!
//! | before | now | plan |
//! |---|---|---|
//! | nothing | there | remove |
//! | nothing | not there | remove: there is nothing to do |
//! | adopted, so cut off | there | reset |
//! | cut off | connected | reset |
//! | cut off | not there | leave: an equal one is made |
//! | served | there, catatonic: on its way | replaced by an equal one that is connected |
//! | served | there | keep |
//! | served | not there | an equal one is made, and connected |

use autofs_cr_common::model::{Device, State};

use super::planner::Planner;
use super::{Action, Item, PlanError};

impl Planner<'_> {
    /// Goes back to what was there, where `found` is there now.
    pub(super) fn undone(&self, found: Option<Device>, mounts: Vec<usize>) -> Result<Item, PlanError> {
        let (before, device) = (&self.earlier.before, self.superblock.device);
        if before.free.contains(&device) {
            return self.removed(found, mounts);
        }
        let was_cut_off = before.cut_off.contains(&device);
        let there = found.and_then(|found| self.there.report.superblock(found));
        let Some(there) = there else {
            let item = self.made(None, mounts)?;
            let action = if was_cut_off { Action::Leave } else { item.action };
            return Ok(Item { action, ..item });
        };
        let is_catatonic = there.state == State::Catatonic;
        let is_on_its_way =
            is_catatonic && there.device == device && self.superblock.state != State::Catatonic;
        let action = match was_cut_off {
            true if before.timeouts.contains_key(&device) || !is_catatonic => Action::Reset,
            false if is_on_its_way => return self.made(found, mounts),
            _ => Action::Keep,
        };
        let parked = self.parked(&mounts);
        Ok(Item { action, mounts, keeps_device: true, parked, there: found, ..Item::default() })
    }

    /// It was made where nothing was.
    fn removed(&self, found: Option<Device>, mounts: Vec<usize>) -> Result<Item, PlanError> {
        let old = found.map(|device| self.old(device, &mounts)).transpose()?;
        if let Some(content) = old.iter().flat_map(|old| &old.content).next() {
            let (mount_point, content) = (self.first_mount_point(&mounts), content.mount_point.clone());
            return Err(PlanError::InUse { mount_point, content });
        }
        Ok(Item { action: Action::Remove, old, mounts, ..Item::default() })
    }
}
