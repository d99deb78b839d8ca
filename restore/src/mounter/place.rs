//! Finding the places where mounts go, inside the target's root.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use autofs_cr_common::model::TextPath;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, openat2, statx,
};

/// Why a place cannot be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("mount point {0} does not exist; make the directory, or mount what it is in")]
    Missing(TextPath),
    #[error("mount point {0} is no directory")]
    NoDirectory(TextPath),
    #[error("{0} is in the way: something is mounted there that the image does not have; unmount it first")]
    Covered(TextPath),
    #[error("the image has {0} on top of another mount, and nothing is mounted there")]
    Bare(TextPath),
    #[error("cannot reach mount point {path}: {source}")]
    Io { path: TextPath, source: io::Error },
}

/// What a place is.
struct Place {
    is_directory: bool,
    is_mount_root: bool,
    mount_id: u64,
}

/// The root directory of the target, which this process is in.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// Opens the root directory of this process.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open("/", flags, Mode::empty())?))
    }

    /// What is at `path`: a place where an image's mount can go. `covers` says whether the image has it
    /// on the root of another mount.
    pub fn place(&self, path: &TextPath, covers: bool) -> Result<OwnedFd, PlaceError> {
        let place = self.look_up(path).map_err(|source| explain(path, source))?;
        check(path, &place, covers)?;
        Ok(place)
    }

    /// The top mount at `path`, if it has this id.
    pub fn mount(&self, path: &TextPath, id: u64) -> io::Result<OwnedFd> {
        let (fd, found) = self.top(path)?;
        if found != id {
            return Err(io::Error::other("it is covered by another mount; unmount that first"));
        }
        Ok(fd)
    }

    /// The top mount at `path`, and its id.
    pub fn top(&self, path: &TextPath) -> io::Result<(OwnedFd, u64)> {
        let fd = self.look_up(path)?;
        let id = mount_id(fd.as_fd())?;
        Ok((fd, id))
    }

    /// Opens a place as such. Without O_DIRECTORY, so that an autofs mount there is not triggered.
    fn look_up(&self, path: &TextPath) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.0, path as &Path, flags, Mode::empty(), resolve)?)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A directory inside a mount that this process made.
pub fn inside(mount: BorrowedFd<'_>, relative: &Path, path: &TextPath) -> Result<OwnedFd, PlaceError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let relative = if relative == Path::new("") { Path::new(".") } else { relative };
    openat2(mount, relative, flags, Mode::empty(), resolve).map_err(|source| explain(path, source.into()))
}

/// The id of the mount that a descriptor is on.
pub fn mount_id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    examine(fd).map(|place| place.mount_id)
}

fn examine(fd: BorrowedFd<'_>) -> io::Result<Place> {
    let found =
        statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE | StatxFlags::MNT_ID)?;
    Ok(Place {
        is_directory: FileType::from_raw_mode(found.stx_mode.into()) == FileType::Directory,
        is_mount_root: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        mount_id: found.stx_mnt_id,
    })
}

fn check(path: &TextPath, fd: &OwnedFd, covers: bool) -> Result<(), PlaceError> {
    let place = examine(fd.as_fd()).map_err(|source| explain(path, source))?;
    match place {
        Place { is_directory: false, .. } => Err(PlaceError::NoDirectory(path.clone())),
        Place { is_mount_root: true, .. } if !covers => Err(PlaceError::Covered(path.clone())),
        Place { is_mount_root: false, .. } if covers => Err(PlaceError::Bare(path.clone())),
        _ => Ok(()),
    }
}

fn explain(path: &TextPath, source: io::Error) -> PlaceError {
    match source.kind() {
        io::ErrorKind::NotFound => PlaceError::Missing(path.clone()),
        io::ErrorKind::NotADirectory => PlaceError::NoDirectory(path.clone()),
        _ => PlaceError::Io { path: path.clone(), source },
    }
}
