//! Moving mounts by their descriptors: no path is walked that is longer than a name.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// From a descriptor to a descriptor.
const BY_DESCRIPTORS: MoveMountFlags =
    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH.union(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH);

/// Moves a mount onto a place.
pub fn onto(place: impl AsFd, mount: impl AsFd) -> io::Result<()> {
    explained(move_mount(mount, "", place, "", BY_DESCRIPTORS))
}

/// Moves a mount onto what has this name in a directory. A symbolic link is not followed.
pub fn into(directory: impl AsFd, name: &OsStr, mount: impl AsFd) -> io::Result<()> {
    explained(move_mount(mount, "", directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
}

/// Moves a mount beneath the mount `top`. Since Linux 6.5.
pub fn beneath(top: impl AsFd, mount: impl AsFd) -> io::Result<()> {
    explained(move_mount(mount, "", top, "", BY_DESCRIPTORS | MoveMountFlags::MOVE_MOUNT_BENEATH))
}

/// Makes a private mount follow whom another mount of the same superblock follows. Since Linux 5.15.
pub fn follow(mount: impl AsFd, other: impl AsFd) -> io::Result<()> {
    Ok(move_mount(other, "", mount, "", BY_DESCRIPTORS | MoveMountFlags::MOVE_MOUNT_SET_GROUP)?)
}

/// A new mount of a directory, attached nowhere.
pub fn bind(directory: impl AsFd) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(directory, "", flags)?)
}

/// What the kernel means by ENOSPC here.
fn explained(moved: rustix::io::Result<()>) -> io::Result<()> {
    moved.map_err(|error| match error {
        Errno::NOSPC => io::Error::new(
            io::ErrorKind::StorageFull,
            "its mount namespace has as many mounts as it may have (raise the sysctl fs.mount-max)",
        ),
        error => error.into(),
    })
}
