//! Stage 3: what cannot be restored is refused, by name and with the reason.

use std::collections::HashMap;

use anyhow::{Result, bail};
use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::{Mount, Namespace};
use autofs_cr_common::model::{Device, State};

/// How many mounts are named before the rest is only counted.
const MOST_NAMED: usize = 20;

/// How the kernel marks a directory that was removed (dentry_path in fs/d_path.c).
const DELETED: &[u8] = b"//deleted";

/// Refuses the report if anything in it cannot be restored.
pub fn check(report: &Report, namespace: &Namespace) -> Result<()> {
    let whole = whole_superblocks(report);
    let refuse = |mount: &Mount| {
        let why = reason(report, namespace, mount, &whole)?;
        Some(format!("cannot dump {}: {why}", mount.mount_point))
    };
    let mut refused: Vec<String> = report.mounts.iter().filter_map(refuse).collect();
    if refused.is_empty() {
        return Ok(());
    }
    if refused.len() > MOST_NAMED {
        let more = refused.len() - MOST_NAMED;
        refused.truncate(MOST_NAMED);
        refused.push(format!("cannot dump {more} more mounts"));
    }
    bail!("{}", refused.join(&format!("\n{}: ", crate::TOOL)))
}

/// For each superblock: whether a mount shows its root.
fn whole_superblocks(report: &Report) -> HashMap<Device, bool> {
    let mut whole = HashMap::with_capacity(report.superblocks.len());
    for mount in &report.mounts {
        *whole.entry(mount.device).or_default() |= mount.root.as_bytes() == b"/";
    }
    whole
}

fn reason(
    report: &Report,
    namespace: &Namespace,
    mount: &Mount,
    whole: &HashMap<Device, bool>,
) -> Option<String> {
    let superblock = report.superblock(mount.device)?;
    if superblock.state == State::Unknown {
        return Some(superblock.reason.clone());
    }
    if mount.root.as_bytes().ends_with(DELETED) || mount.mount_point.as_bytes().ends_with(DELETED) {
        return Some("its directory was deleted".into());
    }
    if mount.buried {
        return Some("a later mount on a directory above hides it, so that no path leads to it".into());
    }
    if whole.get(&mount.device) == Some(&false) {
        return Some(format!("only a part of its superblock {} is mounted here", mount.device));
    }
    let master = report.process(superblock.master?)?;
    let who = format!("its master {}[{}]", master.command, master.pid);
    if master.pid_namespace != namespace.pid_namespace {
        return Some(format!("{who} is in another pid namespace than process {}", namespace.process));
    }
    master.own_id().is_none().then(|| format!("{who} has no id in its pid namespace"))
}
