//! Reading /proc.
//!
//! [`Proc`] is the directory itself, a parameter, so that everything here also runs on a fixture
//! tree. Nothing here follows a path that /proc names: links are read, never walked, as a touch of
//! an autofs mount starts a mount and can hang for ever.

mod absence;
mod cgroup;
mod descriptors;
mod facts;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod locks;
pub mod mountinfo;
mod schedule;
mod thread;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, StatxFlags, openat, readlinkat, readlinkat_raw, statx};

use crate::model::{Device, Pid};
use crate::sys;

pub use absence::{Absence, absence};
pub use descriptors::{Descriptors, FdInfo, Target};
pub use facts::{Stat, Status};
pub use schedule::SchedulerClocks;
pub use thread::Syscall;

/// Bytes of directory entries that are read at once.
const DIRECTORY_BUFFER: usize = 16 * 1024;

/// A mounted proc file system, or a tree that looks like one.
#[derive(Debug)]
pub struct Proc {
    dir: OwnedFd,
    path: PathBuf,
}

impl Proc {
    /// The one at /proc.
    pub fn open() -> io::Result<Self> {
        Self::at(Path::new("/proc"))
    }

    /// The one at `path`.
    pub fn at(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { dir: rustix::fs::open(path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that reads, as this tree names it; `None` where the tree belongs to a pid namespace
    /// that the process is not in (or is no real /proc).
    pub fn reader(&self) -> Option<Pid> {
        let link = readlinkat(&self.dir, "self", Vec::new()).ok()?;
        link.to_str().ok()?.parse().ok()
    }

    /// The processes, by id.
    pub fn pids(&self) -> io::Result<Vec<Pid>> {
        let dir =
            openat(&self.dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut pids = Vec::new();
        for_each_number(dir.as_fd(), |number| {
            pids.extend(Pid::new(number));
            Ok(())
        })?;
        pids.sort_unstable();
        Ok(pids)
    }

    /// The directory of a process. It goes on to mean this very process, also when its id is given
    /// to another one later.
    pub fn process(&self, pid: Pid) -> io::Result<ProcessDir> {
        self.named(&pid.to_string())
    }

    /// The directory of the process that calls.
    pub fn this(&self) -> io::Result<ProcessDir> {
        self.named("self")
    }

    /// The directory of the thread that calls.
    pub fn this_thread(&self) -> io::Result<ProcessDir> {
        self.named("thread-self")
    }

    fn named(&self, name: &str) -> io::Result<ProcessDir> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(ProcessDir { dir: openat(&self.dir, name, flags, Mode::empty())? })
    }
}

/// The directory of one process.
#[derive(Debug)]
pub struct ProcessDir {
    dir: OwnedFd,
}

impl ProcessDir {
    /// The whole of `mountinfo`, to be read with [`mountinfo::lines`].
    pub fn mountinfo(&self) -> io::Result<Vec<u8>> {
        self.read("mountinfo", 64 * 1024)
    }

    /// `stat`.
    pub fn stat(&self) -> io::Result<Stat> {
        Stat::parse(&self.read("stat", 512)?).ok_or_else(|| malformed("stat"))
    }

    /// `status`.
    pub fn status(&self) -> io::Result<Status> {
        Status::parse(&self.read("status", 2048)?).ok_or_else(|| malformed("status"))
    }

    /// The inode number of its mount namespace.
    pub fn mount_namespace(&self) -> io::Result<u64> {
        self.namespace("ns/mnt")
    }

    /// The inode number of its pid namespace.
    pub fn pid_namespace(&self) -> io::Result<u64> {
        self.namespace("ns/pid")
    }

    /// The inode number of its user namespace.
    pub fn user_namespace(&self) -> io::Result<u64> {
        self.namespace("ns/user")
    }

    /// The inode numbers of its pid namespace and of those above that, as far as they are not above the reader's own.
    pub fn pid_namespaces(&self) -> io::Result<Vec<u64>> {
        let mut namespace = self.open("ns/pid", OFlags::RDONLY)?;
        let mut found = vec![rustix::fs::fstat(&namespace)?.st_ino];
        loop {
            namespace = match sys::namespace::parent(&namespace) {
                Ok(above) => above,
                Err(error) if absence(&error) == Some(Absence::NotVisible) => return Ok(found),
                Err(error) => return Err(error),
            };
            found.push(rustix::fs::fstat(&namespace)?.st_ino);
        }
    }

    /// Where its root directory is, from the root of the reader.
    pub fn root(&self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.dir, "root", Vec::new())?.into_bytes())
    }

    /// What its root directory is: device, inode and mount. The link is a magic one, which leads there
    /// without a walk.
    pub fn root_id(&self) -> io::Result<(u32, u32, u64, u64)> {
        let what = StatxFlags::INO | StatxFlags::MNT_ID;
        let root = statx(&self.dir, "root", AtFlags::STATX_DONT_SYNC, what)?;
        Ok((root.stx_dev_major, root.stx_dev_minor, root.stx_ino, root.stx_mnt_id))
    }

    /// Whether its current or root directory, or something that it has open, is on this device, as far as that may be
    /// seen. The links are magic ones, which lead there without a walk, and nothing is asked of a file server.
    pub fn is_on(&self, device: Device) -> bool {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let is_there = |link: &str| {
            let found = statx(&self.dir, link, flags, StatxFlags::empty());
            found.is_ok_and(|its| Device { major: its.stx_dev_major, minor: its.stx_dev_minor } == device)
        };
        if is_there("cwd") || is_there("root") {
            return true;
        }
        let Ok(descriptors) = self.descriptors() else { return false };
        let mut found = false;
        let _ = descriptors.for_each(|fd, target| {
            let is_path = matches!(target, Target::Path(_));
            found |= is_path && descriptors.device(fd).is_ok_and(|its| its == device);
        });
        found
    }

    /// Its open descriptors.
    pub fn descriptors(&self) -> io::Result<Descriptors<'_>> {
        Ok(Descriptors::new(self, self.open("fd", OFlags::RDONLY | OFlags::DIRECTORY)?))
    }

    fn namespace(&self, name: &str) -> io::Result<u64> {
        let mut buffer = [0_u8; 64];
        let length = readlinkat_raw(&self.dir, name, &mut buffer[..])?;
        // As in "mnt:[4026531841]".
        number_in_brackets(&buffer[..length]).ok_or_else(|| malformed(name))
    }

    fn read(&self, name: &str, expected_size: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(expected_size);
        File::from(self.open(name, OFlags::RDONLY)?).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn open(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(openat(&self.dir, name, flags | OFlags::CLOEXEC, Mode::empty())?)
    }
}

fn malformed(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("'{name}' is not written as proc(5) says"))
}

/// The number in a link text as `pipe:[32411]`.
fn number_in_brackets(text: &[u8]) -> Option<u64> {
    let start = text.iter().position(|&byte| byte == b'[')?;
    parse_number(text[start + 1..].strip_suffix(b"]")?)
}

/// A number of decimal digits and nothing else.
fn parse_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, &digit| {
        let value = char::from(digit).to_digit(10)?;
        number.checked_mul(10)?.checked_add(u64::from(value))
    })
}

/// Calls `found` with each entry of a directory whose name is a number.
fn for_each_number(dir: BorrowedFd<'_>, mut found: impl FnMut(i32) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(DIRECTORY_BUFFER);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let number =
            parse_number(entry?.file_name().to_bytes()).and_then(|number| i32::try_from(number).ok());
        number.map_or(Ok(()), &mut found)?;
    }
    Ok(())
}
