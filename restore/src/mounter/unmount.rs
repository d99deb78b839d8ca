//! Unmounting what is meant and nothing else. Who may rename a directory above a mount point can have its path lead to another
//! mount at any time. So no path is walked here that is longer than a name.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use autofs_cr_common::model::{Device, TextPath};
use autofs_cr_common::sys::autofs::ControlDevice;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::UnmountFlags;
use rustix::process::fchdir;

use super::place::{Root, mount_id_at};

/// What is told when a path leads to another mount than the one that is meant.
pub const OTHER_MOUNT: &str = "another mount is there now: a directory above it was exchanged, or something was mounted on it; try again";

/// A mount by the directory that it is in. Unlike a descriptor of the mount it does not keep it busy.
#[derive(Debug)]
pub struct Site {
    directory: Rc<OwnedFd>,
    name: OsString,
    id: u64,
}

impl Site {
    /// Finds the mount with this id, which has to be the top one at its place.
    pub fn find(root: &Root, mount_point: &TextPath, id: u64) -> io::Result<Self> {
        let site = Self::of_known(root, mount_point, id)?;
        site.check().map(|()| site)
    }

    /// The same where that is known: it is looked at when it is unmounted.
    pub fn of_known(root: &Root, mount_point: &TextPath, id: u64) -> io::Result<Self> {
        let (directory, name) = root.parent(mount_point)?;
        Ok(Self { directory, name: name.to_owned(), id })
    }

    /// The mount with this id that it covers, for when it is gone.
    pub fn of(self, id: u64) -> Self {
        Self { id, ..self }
    }

    /// The directory that it is in.
    pub fn directory(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.directory)
    }

    /// Unmounts it. What is in use stays (EBUSY).
    pub fn unmount(&self) -> io::Result<()> {
        self.unmount_with(UnmountFlags::empty())
    }

    /// Unmounts it, also while somebody uses it.
    pub fn detach(&self) -> io::Result<()> {
        self.unmount_with(UnmountFlags::DETACH)
    }

    /// Opens the root of an autofs mount that is there still.
    pub fn open_mount(&self, control: &ControlDevice, device: Device) -> io::Result<OwnedFd> {
        // The kernel takes a path only if it has a slash.
        let path = CString::new([b"./", self.name.as_bytes()].concat())?;
        within(&self.directory, || control.open_mount(&path, device))
    }

    fn unmount_with(&self, flags: UnmountFlags) -> io::Result<()> {
        self.check()?;
        within(&self.directory, || Ok(rustix::mount::unmount(&*self.name, UnmountFlags::NOFOLLOW | flags)?))
    }

    fn check(&self) -> io::Result<()> {
        match mount_id_at(self.directory.as_fd(), &self.name)? == self.id {
            true => Ok(()),
            false => Err(io::Error::other(OTHER_MOUNT)),
        }
    }
}

/// Takes a cover away, whatever is in its place. Lazily, as somebody may be walking by; there is nothing in it that could
/// be lost.
pub fn uncover(cover: impl AsFd) -> io::Result<()> {
    within(cover, || Ok(rustix::mount::unmount(OsStr::new("."), UnmountFlags::DETACH)?))
}

/// Does something in another current directory.
pub fn within<T>(directory: impl AsFd, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    fchdir(directory)?;
    let done = work();
    fchdir(before)?;
    done
}
