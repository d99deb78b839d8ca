//! Which mounts need attention.

use std::collections::HashSet;

use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::Mount;
use autofs_cr_common::model::State;

use crate::waiting;

/// A line for each mount that is not connected, with those who wait on it. Who waits on a connected mount may
/// do so for a moment only. What a later autofs mount covers is not asked any more: automount(8) mounts a new trigger
/// over one that it cannot use.
pub fn unhealthy(report: &Report) -> Vec<String> {
    let several = report.namespaces.len() > 1;
    let waiters = waiting::by_device(report);
    let covered: HashSet<u64> =
        report.mounts.iter().filter(|mount| mount.covers).map(|mount| mount.parent).collect();
    let line = |mount: &Mount| {
        let superblock = report.superblock(mount.device)?;
        let waiting = waiters.get(&mount.device);
        if superblock.state == State::Connected || covered.contains(&mount.id) && waiting.is_none() {
            return None;
        }
        let within = if several { format!(" (mount namespace {})", mount.namespace) } else { String::new() };
        let waiting = waiting.map(|processes| format!("; {}", waiting::list(processes)));
        let waiting = waiting.unwrap_or_default();
        Some(format!("{}{within}: {}{waiting}", mount.mount_point, superblock.reason))
    };
    report.mounts.iter().filter_map(line).collect()
}
