//! What was mounted on a superblock after it was looked at.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail};
use autofs_cr_common::model::TextPath;
use autofs_cr_common::proc::{Proc, mountinfo};

use super::Mounter;
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
            if !lies_on(top_id, id)? {
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

/// Whether the mount `top` is on the mount `below`, be it with others between them. Its path says nothing: it may lead to
/// another directory now.
fn lies_on(top: u64, below: u64) -> anyhow::Result<bool> {
    // The current directory is the /proc of restore.
    let text = Proc::at(Path::new("."))
        .and_then(|proc| proc.this()?.mountinfo())
        .context("cannot read the mounts of the target")?;
    let lines = mountinfo::lines(&text).map(|line| line.map(|line| (line.id, line.parent)));
    let parents = lines.collect::<Result<HashMap<_, _>, _>>()?;
    // The root of a namespace can be its own parent.
    let chain = std::iter::successors(Some(top), |id| parents.get(id).copied());
    Ok(chain.take(parents.len() + 1).any(|id| id == below))
}
