//! mount_setattr(2) and statmount(2), which neither nix nor rustix wraps.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::mount::MountAttrFlags;

/// What a mount does with mounts and unmounts below it (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropagationType {
    /// MS_PRIVATE
    Private,
    /// MS_SHARED; the mount becomes a member of a new peer group, unless it is in one.
    Shared,
    /// MS_SLAVE; the mount leaves its peer group and receives from it.
    Slave,
    /// MS_UNBINDABLE
    Unbindable,
}

/// `struct mount_attr` (linux/mount.h).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the mount that `mount` is open on: its attributes to exactly these, and its propagation, each if
/// one is given. Since Linux 5.12.
pub fn mount_setattr(
    mount: impl AsFd,
    attributes: Option<MountAttrFlags>,
    propagation: Option<PropagationType>,
) -> io::Result<()> {
    let all = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODIRATIME
        | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
    // The setting of times is one value of several bits, which the kernel wants cleared as a whole.
    let clear = |set: MountAttrFlags| (all - set) | MountAttrFlags::MOUNT_ATTR__ATIME;
    let attr = MountAttr {
        set: attributes.map_or(0, |set| u64::from(set.bits())),
        clear: attributes.map_or(0, |set| u64::from(clear(set).bits())),
        propagation: propagation.map_or(0, PropagationType::bits),
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated constant, and the kernel reads as many bytes from `attr` as
    // the last argument says, which is its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// `struct mnt_id_req` (linux/mount.h).
#[repr(C)]
struct MountRequest {
    size: u32,
    spare: u32,
    mount_id: u64,
    parameter: u64,
}

/// The beginning of `struct statmount` (linux/mount.h).
#[repr(C)]
#[derive(Default)]
struct MountStatus {
    size: u32,
    mount_options: u32,
    mask: u64,
    of_superblock: [u64; 3],
    mount_id: u64,
    parent_id: u64,
    /// As mountinfo has it.
    short_mount_id: u32,
    /// As mountinfo has it.
    short_parent_id: u32,
}

/// The id of the mount that this one is mounted on, as mountinfo has it. Since Linux 6.8; an error also for a mount that is
/// mounted nowhere.
pub fn parent_mount(mount: impl AsFd) -> io::Result<u64> {
    const STATX_MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    const STATMOUNT_MNT_BASIC: u64 = 2;
    // The same number on all that Rust's libc has Linux for but MIPS.
    const SYS_STATMOUNT: libc::c_long = 457;
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = statx(mount.as_fd(), c"", flags, STATX_MNT_ID_UNIQUE)?;
    if found.stx_mask & STATX_MNT_ID_UNIQUE.bits() == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let request = MountRequest {
        size: size_of::<MountRequest>() as u32,
        spare: 0,
        mount_id: found.stx_mnt_id,
        parameter: STATMOUNT_MNT_BASIC,
    };
    let mut status = MountStatus::default();
    // SAFETY: the kernel reads as many bytes from `request` as its first field says, which is its size, and writes at most as
    // many to `status` as the third argument says, which is its size; every value is one of its fields'.
    let result = unsafe {
        libc::syscall(SYS_STATMOUNT, &raw const request, &raw mut status, size_of::<MountStatus>(), 0)
    };
    Errno::result(result)?;
    Ok(status.short_parent_id.into())
}

impl PropagationType {
    fn bits(self) -> u64 {
        match self {
            Self::Private => libc::MS_PRIVATE,
            Self::Shared => libc::MS_SHARED,
            Self::Slave => libc::MS_SLAVE,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}
