//! Which mounts need attention.

use autofs_cr_common::doc::Report;
use autofs_cr_common::model::State;

/// A line for each mount that is not connected.
pub fn unhealthy(report: &Report) -> Vec<String> {
    let several = report.namespaces.len() > 1;
    let line = |mount: &autofs_cr_common::doc::report::Mount| {
        let superblock = report.superblock(mount.device)?;
        if superblock.state == State::Connected {
            return None;
        }
        let within = if several { format!(" (mount namespace {})", mount.namespace) } else { String::new() };
        Some(format!("{}{within}: {}", mount.mount_point, superblock.reason))
    };
    report.mounts.iter().filter_map(line).collect()
}
