//! Taking an old superblock away from below what is mounted on it: that stays in its place, and the new superblock goes
//! beneath it. Who uses it sees no gap, also where the device number is to be kept.
//!
//! umount(2) does not take a mount away that something is mounted on. But an unmount that **propagates** does: what was on
//! the mount comes down to its place (`propagate_umount` in fs/pnode.c). So a copy of the mount in which the place is has an
//! empty directory mounted at the same place, and for as long as it takes to unmount that, the mount follows the copy.
//!
//! ```text
//! the mount    place: old, content              place: content
//!     ^ follows                        ------>
//! its copy     place: empty directory           place: nothing
//! ```

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use autofs_cr_common::doc::report::Within;
use autofs_cr_common::model::{MountType, TextPath};
use autofs_cr_common::sys::mount::{PropagationType, mount_setattr, parent_mount};
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::mount::{UnmountFlags, unmount};

use super::park::{Park, lead_nobody};
use super::place::{is_mount_root, mount_id};
use super::take::PATIENCE;
use super::unmount::within;
use super::{Mounter, moves};
use crate::plan::{Old, OldMount};

/// How many copies are kept at most, each for the places in one directory.
const MOST_COPIES: usize = 16;

/// The directories in which old superblocks can be taken away like that; none for those where it does not work.
#[derive(Debug, Default)]
pub(super) struct Lifts(HashMap<PathBuf, Option<Ground>>);

/// A directory with places in it.
#[derive(Debug)]
struct Ground {
    /// The mount that the directory is in: its root.
    mount: OwnedFd,
    /// A mount that follows the copy: from it the other learns whom to follow.
    follower: OwnedFd,
    /// The same directory in the copy.
    directory: OwnedFd,
}

impl Ground {
    /// Makes the copy, in the work place.
    fn new(park: &mut Park, directory: &OwnedFd, path: &Path) -> io::Result<Self> {
        let (mount, inside) = mount_of(directory, path)?;
        let copy = moves::bind(&mount)?;
        park.add_copy(&copy)?;
        let follower = moves::bind(&copy)?;
        mount_setattr(&follower, None, Some(PropagationType::Slave))?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let copied = openat2(&copy, Path::new(".").join(inside), flags, Mode::empty(), resolve)?;
        let (one, other) = (fstat(directory)?, fstat(&copied)?);
        match (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) {
            true => Ok(Self { mount, follower, directory: copied }),
            false => Err(io::Error::other("a directory was exchanged")),
        }
    }

    /// Takes the lowest mount with this name in the directory away. One that is in use stays (EBUSY).
    fn lift(&self, name: &OsStr, cover: OwnedFd) -> io::Result<()> {
        moves::into(&self.directory, name, &cover)?;
        // It would keep it busy.
        drop(cover);
        let unmount = |flags| within(&self.directory, || Ok(unmount(name, UnmountFlags::NOFOLLOW | flags)?));
        // Only a private mount can follow another.
        let lifted = moves::follow(&self.mount, &self.follower).and_then(|()| {
            let unmounted = unmount(UnmountFlags::empty());
            lead_nobody(&self.mount).and(unmounted)
        });
        lifted.or_else(|error| unmount(UnmountFlags::DETACH).and(Err(error)))
    }
}

/// The root of the mount that a directory is in, and the path from there.
fn mount_of<'p>(directory: &OwnedFd, path: &'p Path) -> io::Result<(OwnedFd, &'p Path)> {
    let mut at = directory.try_clone()?;
    for outer in path.ancestors() {
        if is_mount_root(at.as_fd())? {
            return Ok((at, path.strip_prefix(outer).unwrap_or(Path::new(""))));
        }
        at = openat(&at, "..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    }
    // Not even the root directory of the target is one.
    Err(io::ErrorKind::Unsupported.into())
}

impl Mounter<'_> {
    /// Takes the old superblock of an item away from below what is mounted on it, if that can be done.
    pub(super) fn lift_old(&mut self, item: usize, old: &Old) -> anyhow::Result<bool> {
        let Some(OldMount { mount_point, .. }) = self.liftable(item, old) else { return Ok(false) };
        let Some(content) = self.content_on(item, mount_point)? else { return Ok(false) };
        self.open_park()?.note_place(mount_point)?;
        // An open descriptor of it would keep it busy.
        self.taken.remove(&item);
        let lifted = self.lift_soon(mount_point)
            && parent_mount(&content).ok() == Some(mount_id(self.root.parent(mount_point)?.0.as_fd())?);
        if lifted {
            let above = Some((content, mount_point.clone()));
            self.taken.insert(item, super::take::Taken { above, ..Default::default() });
        } else {
            self.find_again(item)?;
        }
        Ok(lifted)
    }

    /// The only mount of an old superblock, if there is nothing about it that asks for another way.
    fn liftable<'o>(&self, item: usize, old: &'o Old) -> Option<&'o OldMount> {
        let planned = &self.plan.items[item];
        let ([mount], [old_mount]) = (planned.mounts.as_slice(), old.mounts.as_slice()) else { return None };
        let mount = &self.plan.image.mounts[*mount];
        let is_plain = mount.within == Within::Other && !mount.covers && mount.root.as_bytes() == b"/";
        // Keys of an indirect one are somewhere inside.
        let is_trigger = self.plan.image.superblocks[item].options.mount_type != MountType::Indirect;
        let is_alone = !self.outer.contains(planned.mounts.first()?) && old.content.len() <= 1;
        let is_settled = !planned.is_unsettled() && !old_mount.is_shared;
        (is_plain && is_trigger && is_alone && is_settled).then_some(old_mount)
    }

    /// What is mounted on the root of an old superblock, if that is a single mount, and the old superblock is the lowest at
    /// its place.
    fn content_on(&self, item: usize, mount_point: &TextPath) -> io::Result<Option<OwnedFd>> {
        let root = self.taken.get(&item).and_then(|taken| taken.roots.first());
        let Some(root) = root else { return Ok(None) };
        let (top, _) = self.root.top(mount_point)?;
        let directory = self.root.parent(mount_point)?.0;
        let is_on_old = parent_mount(&top).ok() == Some(root.id);
        let is_lowest = || parent_mount(&root.fd).ok() == mount_id(directory.as_fd()).ok();
        Ok((is_on_old && is_lowest()).then_some(top))
    }

    /// Takes the lowest mount at a place away, and waits as long as somebody may just be passing through it.
    fn lift_soon(&mut self, mount_point: &TextPath) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lift(mount_point) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                lifted => return lifted.is_ok(),
            }
        }
    }

    fn lift(&mut self, mount_point: &TextPath) -> io::Result<()> {
        let (directory, name) = self.root.parent(mount_point)?;
        let path = mount_point.parent().unwrap_or(Path::new("/"));
        let Some(park) = &mut self.park else { return Err(io::ErrorKind::Unsupported.into()) };
        let Lifts(grounds) = &mut self.lifts;
        if !grounds.contains_key(path) {
            if grounds.len() >= MOST_COPIES {
                grounds.clear();
                park.remove_copies()?;
            }
            grounds.insert(path.to_owned(), Ground::new(park, &directory, path).ok());
        }
        let Some(Some(ground)) = grounds.get(path) else { return Err(io::ErrorKind::Unsupported.into()) };
        let lifted = ground.lift(name, park.cover()?);
        // What does not work here does not work for the next one either.
        if lifted.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::ResourceBusy) {
            grounds.insert(path.to_owned(), None);
        }
        lifted
    }
}
