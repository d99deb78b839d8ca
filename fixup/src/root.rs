//! What a descriptor is open on, asked of the descriptor itself: nothing is walked.

use std::io;
use std::os::fd::OwnedFd;

use autofs_cr_common::model::Device;
use rustix::fs::{FileType, fstat, fstatfs};

/// The file system type of autofs (linux/magic.h).
const AUTOFS_SUPER_MAGIC: i64 = 0x0187;

/// The device number of /dev/null, a character device.
const NULL: Device = Device { major: 1, minor: 3 };

/// What a descriptor is open on.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// An autofs superblock.
    Autofs(Device),
    /// /dev/null.
    Null,
    /// Anything else.
    Other,
}

/// Looks at a descriptor.
pub fn kind(fd: &OwnedFd) -> io::Result<Kind> {
    let stat = fstat(fd)?;
    if fstatfs(fd)?.f_type as i64 == AUTOFS_SUPER_MAGIC {
        return Ok(Kind::Autofs(Device::from_stat(stat.st_dev)));
    }
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && Device::from_stat(stat.st_rdev) == NULL;
    Ok(if is_null { Kind::Null } else { Kind::Other })
}
