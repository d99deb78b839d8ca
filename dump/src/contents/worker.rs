//! The child that looks into the superblocks, without starting a mount.
//!
//! What the kernel does on the way (fs/autofs/root.c, fs/namei.c; all of it is under test):
//! - opening a root, and reading it, asks nobody;
//! - a name is looked up with O_PATH and O_NOFOLLOW and without O_DIRECTORY: then a trigger is given as
//!   it is. What is mounted on it is crossed into, which shows in the device and the mount id;
//! - where a request is pending, a walk waits for its answer; but from a pid namespace that the master
//!   cannot see it fails with ENOENT at once;
//! - `.` of such a descriptor is opened for reading without another look at the trigger. An empty
//!   directory answers ENOENT to that.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use autofs_cr_common::channel::{Channel, ChannelError};
use autofs_cr_common::model::{Device, TextPath};
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_common::target::Target;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, StatxFlags, openat, readlinkat, statx};
use rustix::io::Errno;

use super::part::Means;
use super::place::PlaceFile;
use super::wire::{Item, Sender};
use super::{Avoid, Job};

/// Bytes of directory entries that are read at once.
const DIRECTORY_BUFFER: usize = 32 << 10;

/// Does the jobs from number `first` on.
pub fn run(
    channel: &Channel,
    place: &PlaceFile,
    means: Means<'_>,
    jobs: &[Job],
    first: usize,
    avoid: &Avoid,
) -> anyhow::Result<()> {
    let mut worker =
        Worker { place, control: means.control, avoid, sender: Sender::new(channel), buffer: Vec::new() };
    worker.buffer.reserve_exact(DIRECTORY_BUFFER);
    let done = worker.all(means.target, jobs, first);
    if let Err(Stop::Failed(what, error)) = done {
        let errno = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
        worker.sender.push(Item::Failed(what.to_owned(), errno))?;
    }
    Ok(worker.sender.flush()?)
}

/// Why the worker goes no further.
enum Stop {
    Failed(&'static str, io::Error),
    /// Nobody listens.
    Channel,
}

impl From<ChannelError> for Stop {
    fn from(_: ChannelError) -> Self {
        Self::Channel
    }
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Stop {
    move |error| Stop::Failed(what, error.into())
}

struct Worker<'a> {
    place: &'a PlaceFile,
    control: &'a ControlDevice,
    avoid: &'a Avoid,
    sender: Sender<'a>,
    buffer: Vec<u8>,
}

/// A superblock that is looked into.
struct Superblock {
    job: usize,
    device: Device,
    /// The mount that it is looked at through.
    mount_id: Option<u64>,
}

/// An entry of a directory.
struct Entry {
    name: CString,
    is_directory: bool,
    is_symlink: bool,
}

impl Worker<'_> {
    fn all(&mut self, target: &Target, jobs: &[Job], first: usize) -> Result<(), Stop> {
        target.enter_mounts().map_err(failed("enter the mount namespace"))?;
        for (number, job) in jobs.iter().enumerate().skip(first) {
            let last = self.job(number, job)?;
            self.sender.push(last)?;
        }
        Ok(())
    }

    /// Says all but the last item of a superblock, and returns that.
    fn job(&mut self, number: usize, job: &Job) -> Result<Item, Stop> {
        if self.avoid.has(job.device, b"") {
            return Ok(Item::End);
        }
        self.place.write(number, b"").map_err(failed("note the place"))?;
        let root = match self.control.open_mount(&job.path, job.device) {
            Ok(root) => root,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.sender.push(Item::Pending(TextPath::default()))?;
                return Ok(Item::End);
            }
            Err(error) => return Err(failed("open the root")(error)),
        };
        let (inode, entries) = self.list(root.as_fd()).map_err(failed("list the root"))?;
        if entries.is_empty() {
            return Ok(Item::Empty(inode));
        }
        self.sender.push(Item::Root(inode))?;
        let mount_id = mount_id(root.as_fd()).map_err(failed("look at the root"))?;
        let superblock = Superblock { job: number, device: job.device, mount_id };
        self.entries(&superblock, root.as_fd(), b"", entries)?;
        Ok(Item::End)
    }

    fn entries(
        &mut self,
        superblock: &Superblock,
        parent: BorrowedFd<'_>,
        path: &[u8],
        entries: Vec<Entry>,
    ) -> Result<(), Stop> {
        for entry in entries {
            let name = entry.name.as_bytes();
            let path = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            if entry.is_symlink {
                self.symlink(parent, &entry.name, path)?;
            } else if entry.is_directory {
                self.directory(superblock, parent, &entry.name, &path)?;
            }
        }
        Ok(())
    }

    fn symlink(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: Vec<u8>) -> Result<(), Stop> {
        match readlinkat(parent, name, Vec::new()) {
            Ok(target) => {
                let target = TextPath::from_bytes(target.into_bytes());
                Ok(self.sender.push(Item::Symlink(TextPath::from_bytes(path), target))?)
            }
            // Removed meanwhile.
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("read a symbolic link")(error)),
        }
    }

    fn directory(
        &mut self,
        superblock: &Superblock,
        parent: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
    ) -> Result<(), Stop> {
        let text = TextPath::from_bytes(path.to_vec());
        if self.avoid.has(superblock.device, path) {
            return Ok(self.sender.push(Item::Directory(text, None))?);
        }
        self.place.write(superblock.job, path).map_err(failed("note the place"))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = match openat(parent, name, flags, Mode::empty()) {
            Ok(place) => place,
            Err(Errno::NOENT) => return self.missing(parent, name, text),
            Err(error) => return Err(failed("look at a directory")(error)),
        };
        let found = superblock.look_at(place.as_fd()).map_err(failed("look at a directory"))?;
        self.sender.push(Item::Directory(text, found))?;
        if found.is_none() {
            return Ok(());
        }
        let Some(opened) = reopen(place).map_err(failed("open a directory"))? else { return Ok(()) };
        let (_, entries) = self.list(opened.as_fd()).map_err(failed("list a directory"))?;
        self.entries(superblock, opened.as_fd(), path, entries)
    }

    /// A directory that was listed and is not found: removed meanwhile, if it is listed no more.
    fn missing(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: TextPath) -> Result<(), Stop> {
        rustix::fs::seek(parent, rustix::fs::SeekFrom::Start(0)).map_err(failed("list a directory again"))?;
        let (_, entries) = self.list(parent).map_err(failed("list a directory again"))?;
        if entries.iter().any(|entry| entry.name.as_c_str() == name) {
            self.sender.push(Item::Directory(path.clone(), None))?;
            self.sender.push(Item::Pending(path))?;
        }
        Ok(())
    }

    /// The inode number of a directory, and what is in it, sorted.
    fn list(&mut self, dir: BorrowedFd<'_>) -> io::Result<(u64, Vec<Entry>)> {
        let mut inode = 0;
        let mut entries = Vec::new();
        let capacity = self.buffer.capacity();
        let mut used = 0;
        let mut list = RawDir::new(dir, self.buffer.spare_capacity_mut());
        while let Some(entry) = list.next() {
            let entry = entry?;
            let name = entry.file_name();
            used += record_size(name);
            match name.to_bytes() {
                b"." => inode = entry.ino(),
                b".." => {}
                _ => entries.push(Entry {
                    name: name.to_owned(),
                    is_directory: entry.file_type() == FileType::Directory,
                    is_symlink: entry.file_type() == FileType::Symlink,
                }),
            }
            // The kernel has filled the buffer as far as it could (dcache_readdir in fs/libfs.c), so where
            // there was room left, asking once more would only cost.
            if list.is_buffer_empty() && capacity - used.min(capacity) > LARGEST_RECORD {
                break;
            }
        }
        entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok((inode, entries))
    }
}

/// The size of the largest directory entry: 19 bytes before a name of 255, and padding.
const LARGEST_RECORD: usize = 280;

/// The size of a directory entry in the buffer (`struct linux_dirent64`).
fn record_size(name: &CStr) -> usize {
    (19 + name.to_bytes_with_nul().len()).next_multiple_of(8)
}

impl Superblock {
    /// The permission bits of a directory; `None` if it is covered by a mount, which hides them.
    fn look_at(&self, place: BorrowedFd<'_>) -> io::Result<Option<u32>> {
        let what = StatxFlags::MODE | StatxFlags::MNT_ID;
        let found = statx(place, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, what)?;
        let device = Device { major: found.stx_dev_major, minor: found.stx_dev_minor };
        let crossed = device != self.device
            || self.mount_id.is_some_and(|id| known_mount_id(&found).is_some_and(|found| found != id));
        Ok((!crossed).then_some(u32::from(found.stx_mode) & 0o7777))
    }
}

fn mount_id(dir: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let found = statx(dir, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)?;
    Ok(known_mount_id(&found))
}

/// Since Linux 5.8.
fn known_mount_id(found: &rustix::fs::Statx) -> Option<u64> {
    let is_known = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
    is_known.then_some(found.stx_mnt_id)
}

/// Opens a directory for reading; `None` if it is empty.
fn reopen(place: OwnedFd) -> io::Result<Option<OwnedFd>> {
    match openat(place, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
