//! Which mounts of the report are dumped.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::Mount;
use autofs_cr_common::model::Device;

/// Forgets the superblocks that are not chosen: those with no mount at or below one of `chosen` (if there is any),
/// and those with a mount at or below one of `left_out`. A path that has no autofs mount is an error.
pub fn narrow(report: &mut Report, chosen: &[PathBuf], left_out: &[PathBuf]) -> Result<()> {
    if chosen.is_empty() && left_out.is_empty() {
        return Ok(());
    }
    for path in chosen.iter().chain(left_out) {
        let is_there = report.mounts.iter().any(|mount| is_in(mount, path));
        ensure!(is_there, "no autofs mount is at or below {}", path.display());
    }
    let devices = |paths: &[PathBuf]| -> HashSet<Device> {
        let mounts = report.mounts.iter().filter(|mount| paths.iter().any(|path| is_in(mount, path)));
        mounts.map(|mount| mount.device).collect()
    };
    let (wanted, unwanted) = (devices(chosen), devices(left_out));
    let stays = |device| (chosen.is_empty() || wanted.contains(&device)) && !unwanted.contains(&device);
    report.keep_mounts(|mount| stays(mount.device));
    Ok(())
}

fn is_in(mount: &Mount, path: &Path) -> bool {
    mount.mount_point.starts_with(path)
}
