//! Making one autofs superblock, not yet mounted anywhere.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use autofs_cr_common::doc::image::{Directory, Symlink};
use autofs_cr_common::model::{Device, Options, Pid, TextPath};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

/// What a superblock is made with.
pub struct Recipe<'a> {
    /// Its options; the timeout is set later.
    pub options: &'a Options,
    /// The source that mountinfo shows.
    pub source: &'a TextPath,
    /// The write end of its pipe, in this process.
    pub pipe: BorrowedFd<'a>,
    /// The process group that may walk freely, in this process's pid namespace.
    pub group: Pid,
    /// The attributes of its first mount.
    pub attributes: MountAttrFlags,
    /// User and group of this process.
    pub maker: (u32, u32),
}

/// Makes a superblock, and a mount of it that is attached nowhere.
pub fn create(recipe: &Recipe<'_>) -> io::Result<OwnedFd> {
    let context = fsopen("autofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |name: &str, value: String| fsconfig_set_string(context.as_fd(), name, value);
    let options = recipe.options;
    fsconfig_set_string(context.as_fd(), "source", recipe.source.as_bytes())?;
    set("fd", recipe.pipe.as_raw_fd().to_string())?;
    set("pgrp", recipe.group.to_string())?;
    set("minproto", options.minproto.to_string())?;
    set("maxproto", options.maxproto.to_string())?;
    // Without them the owner is who makes it.
    if options.uid != recipe.maker.0 {
        set("uid", options.uid.to_string())?;
    }
    if options.gid != recipe.maker.1 {
        set("gid", options.gid.to_string())?;
    }
    fsconfig_set_flag(context.as_fd(), options.mount_type.as_str())?;
    if options.strictexpire {
        fsconfig_set_flag(context.as_fd(), "strictexpire")?;
    }
    if options.ignore {
        fsconfig_set_flag(context.as_fd(), "ignore")?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, recipe.attributes)?)
}

/// The device number of the superblock that a descriptor is on.
pub fn device(fd: impl AsFd) -> io::Result<Device> {
    Ok(Device::from_stat(rustix::fs::fstat(fd)?.st_dev))
}

/// Opens the root of a mount that is not in anyone's way yet, so that this starts no request.
pub fn open_root(mount: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(mount, ".", flags, Mode::empty())?)
}

/// Makes what was inside. Only for the superblock's own group, and before it is catatonic.
pub fn furnish(root: BorrowedFd<'_>, directories: &[Directory], symlinks: &[Symlink]) -> io::Result<()> {
    for directory in directories {
        rustix::fs::mkdirat(root, &*directory.path, Mode::from_raw_mode(directory.mode.0))?;
    }
    for link in symlinks {
        rustix::fs::symlinkat(&*link.target, root, &*link.path)?;
    }
    Ok(())
}
