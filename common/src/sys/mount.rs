//! mount_setattr(2), which neither nix nor rustix wraps.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
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
