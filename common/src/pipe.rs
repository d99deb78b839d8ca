//! Getting a write end of a pipe whose read end another process has.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags};

use crate::doc::report::Access;
use crate::proc::Descriptors;

/// A write end of a pipe whose read end another process has. As long as it is open, that process sees no
/// hang-up.
#[derive(Debug)]
pub struct WriteEnd {
    /// The write end.
    pub fd: OwnedFd,
    /// The inode number of the pipe.
    pub inode: u64,
}

impl WriteEnd {
    /// Opens one for the read end that a process has at `number`; `None` if that is no read end of a pipe.
    pub fn open(descriptors: &Descriptors<'_>, number: i32) -> io::Result<Option<Self>> {
        let access = descriptors.info(number).ok().and_then(|info| info.access());
        if !matches!(access, Some(Access::Read | Access::Both)) {
            return Ok(None);
        }
        let found = descriptors.stat(number)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Fifo {
            return Ok(None);
        }
        // Not blocking only while it is opened: otherwise this would wait for a reader for ever, if the
        // process ended just now.
        let fd = descriptors.reopen_for_writing(number)?;
        rustix::fs::fcntl_setfl(&fd, OFlags::empty())?;
        let opened = rustix::fs::fstat(&fd)?;
        let is_same = (opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino);
        Ok(is_same.then_some(Self { fd, inode: found.st_ino }))
    }
}
