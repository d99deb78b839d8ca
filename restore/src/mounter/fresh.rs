//! Furnishing a fresh mount and pid namespace, as its first process.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use autofs_cr_common::limits;
use autofs_cr_common::proc::{Proc, mountinfo};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

const NONE: Option<&str> = None;

/// Makes the namespace's mounts private, and enters the root directory.
pub fn furnish(root: Option<&Path>) -> anyhow::Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("cannot make all mounts private")?;
    match root {
        Some(root) => {
            enter(root).with_context(|| format!("cannot make {} the root directory", root.display()))
        }
        None => drop_copies().context("cannot unmount the copies of autofs mounts"),
    }
}

/// Makes a directory the root of the namespace. All other mounts go, autofs mounts among them.
fn enter(root: &Path) -> nix::Result<()> {
    // Only the root of a mount can become the root of a namespace.
    mount(Some(root), root, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    chdir(root)?;
    // With both the same the old root is on top of the new one (pivot_root(2)).
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Unmounts the copies of the autofs mounts of the namespace that this one was made from: their
/// superblocks belong to the masters there. A path leads to the top mount only, so in one round goes what
/// covers an autofs mount, and in the next the mount itself.
fn drop_copies() -> anyhow::Result<()> {
    let this = Proc::open()?.this()?;
    loop {
        let text = this.mountinfo()?;
        let mounts: Vec<_> = mountinfo::lines(&text).collect::<Result<_, _>>()?;
        // From the inside out, so that no walk meets a mount that would start a request.
        let copies = mounts.iter().rev().filter(|line| line.is_autofs());
        let mut failure = None;
        let mut is_progress = false;
        for copy in copies {
            let path = mountinfo::unescape(copy.mount_point);
            match umount2(OsStr::from_bytes(&path), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => is_progress = true,
                // It went with the mount that it was in, or no path leads to it.
                Err(error) => failure = Some((path, error)),
            }
        }
        match failure {
            _ if is_progress => {}
            Some((path, error)) => {
                return Err(error).with_context(|| String::from_utf8_lossy(&path).into_owned());
            }
            None => return Ok(()),
        }
    }
}

/// Mounts the /proc of the pid namespace, which most programs want; a root without the directory has none.
/// After all superblocks are made, as it takes a device number too. It is the last step before the command
/// is executed, which is to have the limit of descriptors that restore was started with.
pub fn mount_proc() -> io::Result<()> {
    limits::put_back_descriptors()?;
    if !Path::new("/proc").is_dir() {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("proc"), "/proc", Some("proc"), flags, NONE)?)
}
