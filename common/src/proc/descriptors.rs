//! The open descriptors of a process: /proc/PID/fd and /proc/PID/fdinfo.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, openat, readlinkat_raw, statat, statx};
use rustix::path::DecInt;

use super::{Absence, ProcessDir, absence, for_each_number, number_in_brackets, parse_number};
use crate::doc::report::Access;
use crate::model::{Device, FdFlags};

/// The longest link text that is looked at, in bytes: more than any path that the kernel shows.
const LINK_SIZE: usize = 4096;

/// More than the first lines of a fdinfo file need.
const INFO_SIZE: usize = 512;

/// The descriptors of one process.
#[derive(Debug)]
pub struct Descriptors<'a> {
    process: &'a ProcessDir,
    dir: OwnedFd,
    /// Opened when it is needed: most processes have nothing to do with autofs.
    infos: OnceCell<OwnedFd>,
}

/// What a descriptor is open on, by the text of its link.
#[derive(Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// The pipe with this inode number.
    Pipe(u64),
    /// A path, from the root of the reader.
    Path(&'a [u8]),
    /// Anything else: a socket, an anonymous inode.
    Other,
}

impl<'a> Target<'a> {
    pub(super) fn of_link(text: &'a [u8]) -> Self {
        match text {
            [b'/', ..] => Self::Path(text),
            _ if text.starts_with(b"pipe:[") => number_in_brackets(text).map_or(Self::Other, Self::Pipe),
            _ => Self::Other,
        }
    }
}

impl<'a> Descriptors<'a> {
    pub(super) fn new(process: &'a ProcessDir, dir: OwnedFd) -> Self {
        Self { process, dir, infos: OnceCell::new() }
    }

    /// Calls `found` with each descriptor and what it is open on, in no particular order. One that is
    /// closed meanwhile is passed over. To list them can be allowed where to read the links is not.
    pub fn for_each(&self, mut found: impl FnMut(i32, Target<'_>)) -> io::Result<()> {
        let mut link = [0_u8; LINK_SIZE];
        for_each_number(self.dir.as_fd(), |fd| {
            match readlinkat_raw(&self.dir, DecInt::new(fd), &mut link[..]).map_err(io::Error::from) {
                Ok(length) => found(fd, Target::of_link(&link[..length])),
                Err(error) if absence(&error) == Some(Absence::Gone) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })
    }

    /// What /proc/PID/fdinfo says of a descriptor.
    pub fn info(&self, fd: i32) -> io::Result<FdInfo> {
        let infos = match self.infos.get() {
            Some(infos) => infos,
            None => {
                let opened = self.process.open("fdinfo", OFlags::RDONLY | OFlags::DIRECTORY)?;
                self.infos.get_or_init(|| opened)
            }
        };
        let info = openat(infos, DecInt::new(fd), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut buffer = [0_u8; INFO_SIZE];
        // What matters is in the first lines, and the kernel gives whole lines.
        let length = rustix::io::read(info, &mut buffer)?;
        FdInfo::parse(&buffer[..length]).ok_or_else(|| super::malformed("fdinfo"))
    }

    /// The device that the open file is on. The link is a magic one, which leads to the open file
    /// itself without a walk, and nothing is asked of a file server.
    pub fn device(&self, fd: i32) -> io::Result<Device> {
        let found = statx(&self.dir, DecInt::new(fd), AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
        Ok(Device { major: found.stx_dev_major, minor: found.stx_dev_minor })
    }

    /// What fstat(2) says of the open file. The link is a magic one, which leads there without a walk.
    pub fn stat(&self, fd: i32) -> io::Result<rustix::fs::Stat> {
        Ok(statat(&self.dir, DecInt::new(fd), AtFlags::empty())?)
    }

    /// Opens the read end of a pipe once more, without blocking.
    pub fn reopen_for_reading(&self, fd: i32) -> io::Result<OwnedFd> {
        self.reopen(fd, OFlags::RDONLY)
    }

    /// Opens a write end of the pipe whose read end this is, without blocking: ENXIO if nobody has the read
    /// end open any more.
    pub fn reopen_for_writing(&self, fd: i32) -> io::Result<OwnedFd> {
        self.reopen(fd, OFlags::WRONLY)
    }

    fn reopen(&self, fd: i32, access: OFlags) -> io::Result<OwnedFd> {
        let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(openat(&self.dir, DecInt::new(fd), flags, Mode::empty())?)
    }
}

/// What /proc/PID/fdinfo/N says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdInfo {
    /// The flags of open(2), with O_CLOEXEC.
    pub flags: i32,
    /// The id of the mount that the file was opened through (since Linux 3.15).
    pub mount_id: u64,
}

impl FdInfo {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut flags = None;
        let mut mount_id = 0;
        for line in text.split(|&byte| byte == b'\n') {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            match name {
                b"flags" => flags = i32::from_str_radix(std::str::from_utf8(value).ok()?, 8).ok(),
                b"mnt_id" => mount_id = parse_number(value)?,
                _ => {}
            }
        }
        Some(Self { flags: flags?, mount_id })
    }

    /// In which direction it is open; `None` if it is only a place (O_PATH).
    pub fn access(&self) -> Option<Access> {
        match self.flags & libc::O_ACCMODE {
            _ if self.flags & libc::O_PATH != 0 => None,
            libc::O_WRONLY => Some(Access::Write),
            libc::O_RDWR => Some(Access::Both),
            _ => Some(Access::Read),
        }
    }

    /// The flags that a master needs to find again.
    pub fn fd_flags(&self) -> FdFlags {
        FdFlags::from_bits(self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_told_apart() {
        assert_eq!(Target::of_link(b"pipe:[32411]"), Target::Pipe(32411));
        assert_eq!(Target::of_link(b"/net/a b"), Target::Path(b"/net/a b"));
        for other in [&b"socket:[5]"[..], b"anon_inode:[eventpoll]", b"pipe:[x]", b"pipe:[", b""] {
            assert_eq!(Target::of_link(other), Target::Other);
        }
    }

    #[test]
    fn fdinfo_is_read() {
        let info = FdInfo::parse(b"pos:\t0\nflags:\t02004000\nmnt_id:\t15\nino:\t9\n").expect("valid");
        assert_eq!((info.access(), info.mount_id), (Some(Access::Read), 15));
        assert_eq!(info.fd_flags(), FdFlags { nonblock: true, cloexec: true });
        let place = FdInfo::parse(b"flags:\t010000000\nmnt_id:\t15\n").expect("valid");
        assert_eq!(place.access(), None);
        for bad in [&b""[..], b"mnt_id:\t1\n", b"flags:\t9\n", b"flags:\t0\nmnt_id:\t-1\n"] {
            assert_eq!(FdInfo::parse(bad), None);
        }
    }
}
