//! Which mounts need attention.

use autofs_cr_common::doc::Report;
use autofs_cr_common::model::State;

use crate::waiting;

/// A line for each mount that is not connected, with those who wait on it. Who waits on a connected mount may
/// do so for a moment only.
pub fn unhealthy(report: &Report) -> Vec<String> {
    let several = report.namespaces.len() > 1;
    let waiters = waiting::by_device(report);
    let line = |mount: &autofs_cr_common::doc::report::Mount| {
        let superblock = report.superblock(mount.device)?;
        if superblock.state == State::Connected {
            return None;
        }
        let within = if several { format!(" (mount namespace {})", mount.namespace) } else { String::new() };
        let waiting = waiters.get(&mount.device).map(|processes| format!("; {}", waiting::list(processes)));
        let waiting = waiting.unwrap_or_default();
        Some(format!("{}{within}: {}{waiting}", mount.mount_point, superblock.reason))
    };
    report.mounts.iter().filter_map(line).collect()
}
