//! Walking to a file that the user named. It may lead onto a mount that hangs, and the user is to be told of that, so
//! a child walks, under a deadline. All the rest goes through the descriptors that it found: nothing is walked twice.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags, fstat, fstatfs, open};
use serde::{Deserialize, Serialize};

use crate::channel::{Channel, ChannelError};
use crate::child::Child;
use crate::model::TextPath;
use crate::proc::Proc;
use crate::scan::Expiring;

/// How long a walk may take. A mount that its master makes for it mostly takes less than a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most symbolic links that are followed, as by the kernel.
const MAX_LINKS: usize = 40;

/// The proc file system (linux/magic.h).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Where something can be written to.
pub enum Place {
    /// What is there is no regular file, such as a device or a fifo, or it is a descriptor of this process, such as
    /// /dev/stdout: it is written to as it is.
    Special(File),
    /// The folder of a regular file, and its permission bits if it is there already.
    Folder(Folder),
}

/// A folder that was walked to.
pub struct Folder {
    fd: OwnedFd,
    /// The permission bits of the file that is there already.
    pub mode: Option<u32>,
}

impl Folder {
    /// A path to something in it, as long as this value is there.
    pub fn path(&self) -> PathBuf {
        by_descriptor(&self.fd)
    }
}

/// What a child found.
#[derive(Serialize, Deserialize)]
enum Found {
    Target,
    Folder(Option<u32>),
    Failed(i32),
}

/// Opens a file for reading.
pub fn input(path: &Path) -> io::Result<File> {
    let (_, fd) =
        walk(path, || Ok((Found::Target, open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)))?;
    File::open(by_descriptor(&fd))
}

/// Finds where a file can be written to.
pub fn output(path: &Path) -> io::Result<Place> {
    match walk(path, || look(path))? {
        (Found::Folder(mode), fd) => Ok(Place::Folder(Folder { fd, mode })),
        // What stands in a file that a descriptor is open on stays: the shell has emptied it, if that was wanted.
        (_, fd) => Ok(Place::Special(OpenOptions::new().append(true).open(by_descriptor(&fd))?)),
    }
}

/// The link by which /proc names a descriptor of this process: it leads there without a walk.
fn by_descriptor(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// Has a child do something that may block, and give a descriptor. A process with several threads has no children: no
/// tool has any at this time, but a test has, and does it itself.
fn walk(path: &Path, work: impl Fn() -> io::Result<(Found, OwnedFd)>) -> io::Result<(Found, OwnedFd)> {
    if let Some(at) = waits_for_an_expire(path) {
        let why =
            format!("an expire of {at} is not answered, and a walk that waits for its end cannot be killed");
        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
    }
    let child = match Child::spawn(|channel| Ok(tell(&channel, work())?)) {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return work(),
        Err(error) => return Err(error),
    };
    match child.receive::<Found>(Some(Instant::now() + PATIENCE)) {
        Ok((Found::Failed(errno), _)) => Err(io::Error::from_raw_os_error(errno)),
        Ok((found, mut fds)) if fds.len() == 1 => Ok((found, fds.remove(0))),
        Ok(_) => Err(io::Error::other("the child that walked there gave no descriptor")),
        Err(ChannelError::TimedOut) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "no answer for {PATIENCE:.0?}: it is on or behind a mount that hangs (autofs-inspect shows who waits \
                 where)"
            ),
        )),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The mount at which a walk to a path would wait so that not even the child could be ended. Links are not followed for
/// that, and where it cannot be told the walk is made.
fn waits_for_an_expire(path: &Path) -> Option<TextPath> {
    let proc = Proc::open().ok()?;
    let expiring = Expiring::find(&proc, &proc.this().ok()?).ok()?;
    expiring.on_the_way(&std::path::absolute(path).ok()?).cloned()
}

fn tell(channel: &Channel, found: io::Result<(Found, OwnedFd)>) -> Result<(), ChannelError> {
    match found {
        Ok((found, fd)) => channel.send(&found, &[fd.as_fd()]),
        Err(error) => channel.send(&Found::Failed(error.raw_os_error().unwrap_or(libc::EIO)), &[]),
    }
}

/// Looks at what is to be written.
fn look(path: &Path) -> io::Result<(Found, OwnedFd)> {
    let there = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let mut mode = None;
    if let Ok(there) = there {
        let stat = fstat(&there)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || is_descriptor(path) {
            return Ok((Found::Target, there));
        }
        mode = Some(stat.st_mode & 0o777);
    }
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((Found::Folder(mode), open(folder, flags, Mode::empty())?))
}

/// Whether a path is one of the links in /proc that stand for an open file, or leads to one.
fn is_descriptor(path: &Path) -> bool {
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&at) else { return false };
        if is_on_proc(&at).unwrap_or(false) {
            return true;
        }
        at = at.parent().unwrap_or(Path::new("/")).join(target);
    }
    false
}

/// Whether a symbolic link itself is in the proc file system.
fn is_on_proc(link: &Path) -> io::Result<bool> {
    let link = open(link, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fstatfs(&link)?.f_type as i64 == PROC_SUPER_MAGIC)
}
