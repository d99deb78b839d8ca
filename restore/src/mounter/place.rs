//! Finding the places where mounts go, inside the target's root.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use autofs_cr_common::model::TextPath;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, openat2, statx,
};

use super::moves;

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
    #[error("cannot reach mount point {path}")]
    Io { path: TextPath, source: io::Error },
}

/// What a place is.
struct Facts {
    is_directory: bool,
    is_mount_root: bool,
    mount_id: u64,
}

/// A place where a mount can go.
#[derive(Debug)]
pub enum Place<'a> {
    /// A name in a directory: many places are in one, so that few descriptors and short walks do.
    Named(BorrowedFd<'a>, &'a OsStr),
    /// The place itself.
    Open(OwnedFd),
}

impl Place<'_> {
    /// Mounts there what is attached nowhere yet.
    pub fn attach(&self, mount: impl AsFd) -> io::Result<()> {
        match self {
            Self::Named(directory, name) => moves::into(directory, name, mount),
            Self::Open(place) => moves::onto(place, mount),
        }
    }
}

/// How many directories are kept open at most.
const MOST_DIRECTORIES: usize = 256;

/// The root directory of the target, which this process is in.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// Directories that places were looked up in, by their paths.
    directories: HashMap<Vec<u8>, Rc<OwnedFd>>,
}

impl Root {
    /// Opens the root directory of this process.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open("/", flags, Mode::empty())?, directories: HashMap::new() })
    }

    /// What is at `path`: a place where an image's mount can go. `covers` says whether the image has it
    /// on the root of another mount.
    pub fn place<'a>(&'a mut self, path: &'a TextPath, covers: bool) -> Result<Place<'a>, PlaceError> {
        let (directory, name) = self.named(path)?;
        let facts = examine(directory, name).map_err(|source| explain(path, source))?;
        check(path, &facts, covers)?;
        Ok(Place::Named(directory, name))
    }

    /// A place that [`place`](Self::place) has found before.
    pub fn found_place<'a>(&'a mut self, path: &'a TextPath) -> Result<Place<'a>, PlaceError> {
        self.named(path).map(|(directory, name)| Place::Named(directory, name))
    }

    /// The directory that a path is in, and its name there.
    fn named<'a>(&'a mut self, path: &'a TextPath) -> Result<(BorrowedFd<'a>, &'a OsStr), PlaceError> {
        let parts = path.parent().zip(path.file_name());
        let (parent, name) = parts.ok_or_else(|| PlaceError::Missing(path.clone()))?;
        let key = parent.as_os_str().as_bytes();
        if !self.directories.contains_key(key) {
            let directory =
                self.look_up(parent, OFlags::DIRECTORY).map_err(|source| explain(path, source))?;
            self.remember(parent, Rc::new(directory));
        }
        Ok((self.directories[key].as_fd(), name))
    }

    /// The id of the top mount at `path`.
    pub fn top_id(&mut self, path: &TextPath) -> Result<u64, PlaceError> {
        let (directory, name) = self.named(path)?;
        mount_id_at(directory, name).map_err(|source| explain(path, source))
    }

    /// The directory that a path is in, and its name there.
    pub fn parent<'p>(&self, path: &'p TextPath) -> io::Result<(Rc<OwnedFd>, &'p OsStr)> {
        let parts = path.parent().zip(path.file_name());
        let (parent, name) = parts.ok_or(io::ErrorKind::InvalidInput)?;
        let directory = match self.directories.get(parent.as_os_str().as_bytes()) {
            Some(directory) => Rc::clone(directory),
            None => Rc::new(self.look_up(parent, OFlags::DIRECTORY)?),
        };
        Ok((directory, name))
    }

    /// Has the next mount at `path` go into this directory, wherever that is then: it takes the place of one that was in it.
    pub fn keep_parent(&mut self, path: &TextPath, directory: Rc<OwnedFd>) {
        if let Some(parent) = path.parent() {
            self.remember(parent, directory);
        }
    }

    /// Lets go of what is open below a mount, which keeps that busy.
    pub fn forget_below(&mut self, mount_point: &TextPath) {
        let is_below = |path: &[u8]| Path::new(OsStr::from_bytes(path)).starts_with(mount_point as &Path);
        self.directories.retain(|path, _| !is_below(path));
    }

    fn remember(&mut self, path: &Path, directory: Rc<OwnedFd>) {
        if self.directories.len() >= MOST_DIRECTORIES {
            self.directories.clear();
        }
        self.directories.insert(path.as_os_str().as_bytes().to_vec(), directory);
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
        // Without O_DIRECTORY, so that an autofs mount there is not triggered.
        let fd = self.look_up(path, OFlags::NOFOLLOW)?;
        let id = mount_id(fd.as_fd())?;
        Ok((fd, id))
    }

    /// Opens a place as such.
    fn look_up(&self, path: &Path, more: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.fd, path, OFlags::PATH | OFlags::CLOEXEC | more, Mode::empty(), resolve)?)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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
    examine(fd, OsStr::new("")).map(|facts| facts.mount_id)
}

/// The id of the mount that a name in a directory leads to.
pub fn mount_id_at(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<u64> {
    examine(directory, name).map(|facts| facts.mount_id)
}

/// Whether a descriptor is on the root of a mount.
pub fn is_mount_root(fd: BorrowedFd<'_>) -> io::Result<bool> {
    examine(fd, OsStr::new("")).map(|facts| facts.is_mount_root)
}

/// Looks at a name in a directory, or with an empty one at what is open.
fn examine(at: BorrowedFd<'_>, name: &OsStr) -> io::Result<Facts> {
    let flags =
        AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = statx(at, name, flags, StatxFlags::TYPE | StatxFlags::MNT_ID)?;
    Ok(Facts {
        is_directory: FileType::from_raw_mode(found.stx_mode.into()) == FileType::Directory,
        is_mount_root: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        mount_id: found.stx_mnt_id,
    })
}

fn check(path: &TextPath, facts: &Facts, covers: bool) -> Result<(), PlaceError> {
    match facts {
        Facts { is_directory: false, .. } => Err(PlaceError::NoDirectory(path.clone())),
        Facts { is_mount_root: true, .. } if !covers => Err(PlaceError::Covered(path.clone())),
        Facts { is_mount_root: false, .. } if covers => Err(PlaceError::Bare(path.clone())),
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
