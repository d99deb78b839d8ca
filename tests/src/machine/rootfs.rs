//! Where the root file system is.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::sandbox::Sandbox;

/// Why no machine can be booted here; `None` if one can.
pub fn missing() -> Option<&'static str> {
    if path().is_none() {
        return Some("there is no root file system with systemd and automount (run scripts/rootfs)");
    }
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join("systemd-nspawn").is_file())
    });
    (!found).then_some("systemd-nspawn is not installed (Debian: package systemd-container)")
}

/// The root file system: what AUTOFS_CR_ROOTFS names, else the one in the target directory.
pub(super) fn path() -> Option<PathBuf> {
    let named = std::env::var_os("AUTOFS_CR_ROOTFS").map(PathBuf::from);
    named.or_else(in_target).filter(|path| path.is_dir())
}

/// Mounts the root file system in a sandbox, so that it can be written to, and returns where.
pub fn overlay(sandbox: &Sandbox) -> Result<PathBuf> {
    let [root, upper, work] = ["root", "upper", "work"].map(|name| sandbox.mkdir(name));
    let (root, lower) = (root?, path().context("there is no root file system")?);
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper?.display(), work?.display());
    sandbox
        .run(["mount", "-t", "overlay", "-o", &options, "overlay", &root.to_string_lossy()])
        .assert_success();
    Ok(root)
}

/// Tests are in target/debug/deps.
fn in_target() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    // A link, that appears when the file system is complete.
    std::fs::canonicalize(own.ancestors().nth(3)?.join("rootfs/ready")).ok()
}
