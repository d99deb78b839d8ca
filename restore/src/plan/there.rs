//! What is there, by what the planner asks for.

use std::collections::{HashMap, HashSet};

use autofs_cr_common::doc::report::{self, Report};
use autofs_cr_common::model::{Device, TextPath};

/// What is there, by what the planner asks for.
pub(super) struct There<'a> {
    pub(super) report: &'a Report,
    /// The autofs mounts at a mount point, in stacking order.
    pub(super) at: HashMap<&'a TextPath, Vec<&'a report::Mount>>,
    pub(super) of: HashMap<Device, Vec<&'a report::Mount>>,
    pub(super) content: HashMap<u64, Vec<&'a report::Content>>,
    /// Superblocks with requests that nobody has read.
    pub(super) asked: HashSet<Device>,
}

impl<'a> There<'a> {
    pub(super) fn new(report: &'a Report) -> Self {
        let mut there = Self {
            report,
            at: HashMap::new(),
            of: HashMap::new(),
            content: HashMap::new(),
            asked: report.requests.iter().map(|request| request.device).collect(),
        };
        for mount in &report.mounts {
            there.at.entry(&mount.mount_point).or_default().push(mount);
            there.of.entry(mount.device).or_default().push(mount);
        }
        for content in &report.content {
            there.content.entry(content.parent).or_default().push(content);
        }
        there.sort_stacks();
        there
    }

    /// Puts the mounts at one place into the order in which they cover each other. mountinfo has them by their
    /// ids, and a mount that was moved is older than what it is on.
    fn sort_stacks(&mut self) {
        if self.at.values().all(|stack| stack.len() < 2) {
            return;
        }
        let mounts = self.report.mounts.iter().map(|mount| (mount.id, mount.parent));
        let parents: HashMap<u64, u64> =
            mounts.chain(self.report.content.iter().map(|content| (content.id, content.parent))).collect();
        // A cycle of parents, which only a report that was made up has, is as long as there are mounts.
        let depth = |mount: &&report::Mount| {
            let ancestors = std::iter::successors(Some(mount.id), |id| parents.get(id).copied());
            ancestors.take(parents.len()).count()
        };
        self.at
            .values_mut()
            .filter(|stack| stack.len() > 1)
            .for_each(|stack| stack.sort_by_cached_key(depth));
    }
}
