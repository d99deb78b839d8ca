//! What was mounted on a superblock after it was looked at.

use anyhow::{Context, bail};
use autofs_cr_common::model::TextPath;

use super::Mounter;
use super::tree::Tree;
use super::unmount::OTHER_MOUNT;

/// How often something may be mounted on a mount while that is taken away.
const TRIES: usize = 8;

impl Mounter<'_> {
    /// Parks what was mounted on top of a mount since it was looked at.
    pub(super) fn park_late_content(
        &mut self,
        item: usize,
        mount_point: &TextPath,
        id: u64,
        is_shared: bool,
    ) -> anyhow::Result<()> {
        for _ in 0..TRIES {
            let (top, top_id) = self.root.top(mount_point).context("cannot look at its mount point")?;
            if top_id == id {
                return Ok(());
            }
            // Its path says nothing: it may lead to another directory now.
            let tree = Tree::read().context("cannot read the mounts of the target")?;
            if !tree.above(top_id).any(|mount| mount == id) {
                bail!(OTHER_MOUNT);
            }
            if is_shared {
                // Copies of it would stay in other namespaces, which the plan did not see.
                bail!("something was mounted on it just now: try again");
            }
            self.prepare_parking(item, mount_point)?;
            self.store(item, top, mount_point)?;
        }
        bail!("something is mounted on it again and again")
    }
}
