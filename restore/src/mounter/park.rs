//! A place for what is mounted on a superblock, while that is replaced. It is moved there and back, so
//! that it stays the same mount, with all that is mounted on it and all that is open in it.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use autofs_cr_common::model::{Device, TextPath};
use autofs_cr_common::sys::mount::{PropagationType, mount_setattr};
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, symlinkat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::moves;
use super::place::Root;
use super::superblock::device;

/// What mountinfo shows as the source of the place.
pub const SOURCE: &str = "autofs-cr-parking";

/// Where the place may be made, the first that works.
const FOLDERS: [&str; 3] = ["run", "tmp", "."];

/// The directory that covers show.
const COVER: &str = "cover";

/// A mounted tmpfs with a directory for each mount that is parked.
#[derive(Debug)]
pub struct Park {
    folder: OwnedFd,
    name: String,
    mount: OwnedFd,
    parked: usize,
}

impl Park {
    /// Makes the place, in a new directory in the target's root. Its own device number is none of
    /// `wanted`.
    pub fn open(root: &Root, wanted: &HashSet<Device>) -> io::Result<Self> {
        let name = format!("autofs-cr-parking-{}", nix::unistd::getpid());
        let folder = make_directory(root, &name)?;
        let place = openat(&folder, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let mount = tmpfs_besides(wanted)?;
        // A mount under a shared one would take what is parked along into other namespaces.
        let attached = moves::onto(&place, &mount)
            .and_then(|()| mount_setattr(&mount, None, Some(PropagationType::Private)));
        let park = Self { folder, name, mount, parked: 0 };
        match attached {
            Ok(()) => Ok(park),
            Err(error) => {
                let _ = park.close();
                Err(error)
            }
        }
    }

    /// Moves a mount here. A link beside it says where it was, for whoever finds it.
    pub fn store(&mut self, content: impl AsFd, was_at: &TextPath) -> io::Result<()> {
        let (name, place) = self.new_place()?;
        symlinkat(was_at as &std::path::Path, &self.mount, format!("{name}.was-at"))?;
        moves::onto(&place, content)
    }

    /// A new directory, with its name.
    fn new_place(&mut self) -> io::Result<(String, OwnedFd)> {
        let name = self.parked.to_string();
        self.parked += 1;
        mkdirat(&self.mount, &*name, Mode::RWXU)?;
        let place = openat(&self.mount, &*name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok((name, place))
    }

    /// Covers what lies beneath the mount `top`, which goes on to be on top: when that is moved away, everybody sees an
    /// empty directory. Since Linux 6.5.
    pub fn cover_beneath(&self, top: impl AsFd) -> io::Result<OwnedFd> {
        let cover = self.cover()?;
        moves::beneath(top, &cover)?;
        Ok(cover)
    }

    /// Covers a mount: everybody sees an empty directory.
    pub fn cover_on(&self, root: impl AsFd) -> io::Result<OwnedFd> {
        let cover = self.cover()?;
        moves::onto(root, &cover)?;
        Ok(cover)
    }

    fn cover(&self) -> io::Result<OwnedFd> {
        match mkdirat(&self.mount, COVER, Mode::RWXU | Mode::from_raw_mode(0o055)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let empty = openat(&self.mount, COVER, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        moves::bind(&empty)
    }

    /// Mounts a new mount here, where nobody sees it yet; the name of the place.
    pub fn stage(&mut self, mount: impl AsFd) -> io::Result<String> {
        let (name, place) = self.new_place()?;
        moves::onto(&place, mount)?;
        Ok(name)
    }

    /// Takes such a mount away. Changes the current directory.
    pub fn unstage(&self, name: &str) -> io::Result<()> {
        nix::unistd::fchdir(&self.mount)?;
        Ok(rustix::mount::unmount(name, UnmountFlags::NOFOLLOW)?)
    }

    /// Takes the place away. Nothing may be parked here any more.
    pub fn close(self) -> io::Result<()> {
        let Self { folder, name, mount, .. } = self;
        drop(mount);
        // Not lazily: a mount that is still parked here must not be lost.
        nix::unistd::fchdir(&folder)?;
        match rustix::mount::unmount(&*name, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(unlinkat(&folder, &*name, AtFlags::REMOVEDIR)?)
    }
}

fn make_directory(root: &Root, name: &str) -> io::Result<OwnedFd> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for folder in FOLDERS {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(root, folder, flags, Mode::empty())
            .and_then(|folder| mkdirat(&folder, name, Mode::RWXU).map(|()| folder));
        match made {
            Ok(folder) => return Ok(folder),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// A tmpfs that does not have one of these device numbers.
fn tmpfs_besides(wanted: &HashSet<Device>) -> io::Result<OwnedFd> {
    let mut fillers = Vec::new();
    loop {
        let made = tmpfs()?;
        if !wanted.contains(&device(&made)?) {
            return Ok(made);
        }
        // Kept until another number comes: they are handed out lowest first.
        fillers.push(made);
    }
}

fn tmpfs() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", SOURCE)?;
    fsconfig_set_string(context.as_fd(), "mode", "0700")?;
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// Takes a place away that a killed restore left. Not if something is still parked there.
pub fn remove(place: &TextPath) -> io::Result<()> {
    rustix::mount::unmount(&**place, UnmountFlags::NOFOLLOW)?;
    std::fs::remove_dir(place)
}
