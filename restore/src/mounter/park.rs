//! The work place: a tmpfs that is mounted before the first change and unmounted after the last. What is mounted on a
//! superblock is parked there while that is replaced: it is moved there and back, so that it stays the same mount, with
//! all that is mounted on it and all that is open in it. And mounts there keep the pipes of masters open.
//!
//! Nothing of it needs a process that lives: who kills this one leaves all that the next restore needs.
//!
//! | in it | is |
//! |---|---|
//! | `image.yaml` | the image |
//! | `before` | what was there before |
//! | `N`, a mount, and `N.was-at`, a link | something that is parked, and where it was |
//! | `N`, an autofs mount | an open pipe |
//! | `cover` | an empty directory, of which covers are bind mounts |
//! | `copy-N`, a mount | a copy of a mount, see `lift.rs` |
//! | `at-work`, a link | the place at which mounts were changed last without moving any here |

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use autofs_cr_common::channel::{Channel, MAX_DESCRIPTORS};
use autofs_cr_common::model::{Device, TextPath};
use autofs_cr_common::sys::mount::{PropagationType, mount_setattr};
use autofs_cr_common::unfinished::{self, IMAGE};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, mkdirat, open, openat, symlinkat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::moves;
use super::place::{Root, is_mount_root, mount_id};
use super::superblock::device;
use super::tree::OnAutofs;
use super::unmount::uncover;
use crate::parked::{AT_WORK, BEFORE, COPY, Parking};

/// Where it may be made, the first that works: none that is on an autofs mount.
const FOLDERS: [&str; 3] = ["run", "tmp", "."];

/// The directory that covers show.
const COVER: &str = "cover";

/// A mounted work place.
#[derive(Debug)]
pub struct Park {
    folder: OwnedFd,
    name: String,
    mount: OwnedFd,
    /// The image in it, with a lock that tells the life of this process.
    life: File,
    /// How many directories there are in it.
    used: usize,
    /// Those in which a pipe is kept open.
    pipes: Vec<String>,
    /// Those on which copies of mounts are.
    copies: Vec<String>,
}

/// What is written down there.
#[derive(Debug)]
pub struct Notes<'a> {
    /// The image.
    pub image: &'a [u8],
    /// What was there before.
    pub before: &'a str,
    /// The options of the restore, for the source of the mount.
    pub options: &'a [String],
}

impl Park {
    /// Mounts it in the target's root, on a directory that has the number of the mount namespace in its name: nobody in
    /// another namespace uses that one. Its own device number is none of `wanted`.
    pub fn open(
        root: &Root,
        on_autofs: &OnAutofs,
        namespace: u64,
        wanted: &HashSet<Device>,
        notes: &Notes<'_>,
    ) -> io::Result<Self> {
        let mount = tmpfs_besides(wanted, &unfinished::source(notes.options))?;
        write(&mount, IMAGE, notes.image)?;
        write(&mount, BEFORE, notes.before.as_bytes())?;
        mkdirat(&mount, COVER, Mode::RWXU | Mode::from_raw_mode(0o055))?;
        let life = hold(&mount)?;
        let (folder, name) = make_directory(root, on_autofs, namespace)?;
        let place = open_place(&folder, &name)?;
        // A mount under a shared one would take what is parked along into other namespaces.
        let attached = moves::onto(&place, &mount)
            .and_then(|()| mount_setattr(&mount, None, Some(PropagationType::Private)));
        let park = Self { folder, name, mount, life, used: 0, pipes: Vec::new(), copies: Vec::new() };
        match attached {
            Ok(()) => Ok(park),
            Err(error) => {
                let _ = park.close();
                Err(error)
            }
        }
    }

    /// Goes on in that of a restore of the same image that was killed.
    pub fn go_on(root: &Root, parking: &Parking) -> io::Result<Self> {
        let (folder, name) = root.parent(&parking.mount_point)?;
        let name = name.to_str().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mount = openat(&folder, &*name, flags, Mode::empty())?;
        if mount_id(mount.as_fd())? != parking.id {
            return Err(io::Error::other("another mount is there now: try again"));
        }
        let life = hold(&mount)?;
        let pipes = parking.pipes.iter().filter_map(|pipe| pipe.mount_point.file_name()?.to_str());
        let pipes = pipes.map(str::to_owned).collect();
        let copies = parking.copies.iter().filter_map(|copy| copy.file_name()?.to_str());
        let copies = copies.map(str::to_owned).collect();
        let mut park = Self { folder: folder.try_clone()?, name, mount, life, used: 0, pipes, copies };
        // Nobody follows them any more.
        park.remove_copies()?;
        Ok(park)
    }

    /// Moves a mount here. A link beside it says where it was, for whoever finds it.
    pub fn store(&mut self, content: impl AsFd, was_at: &TextPath) -> io::Result<()> {
        let (name, place) = self.new_place("")?;
        symlinkat(was_at as &std::path::Path, &self.mount, format!("{name}.was-at"))?;
        moves::onto(&place, content)
    }

    /// Mounts an autofs superblock here, whose only use is that its pipe stays open.
    pub fn keep_pipe(&mut self, mount: impl AsFd) -> io::Result<()> {
        let (name, place) = self.new_place("")?;
        moves::onto(&place, mount)?;
        self.pipes.push(name);
        Ok(())
    }

    /// Notes the place at which the next changes are made.
    pub fn note_place(&self, place: &TextPath) -> io::Result<()> {
        match unlinkat(&self.mount, AT_WORK, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(symlinkat(place as &std::path::Path, &self.mount, AT_WORK)?)
    }

    /// Mounts a copy of a mount here, which leads others: what is unmounted in it is unmounted in those that follow it.
    pub fn add_copy(&mut self, mount: impl AsFd) -> io::Result<()> {
        // It is in the peer group of what it is a copy of, if that is in one.
        lead_nobody(&mount)?;
        let (name, place) = self.new_place(COPY)?;
        moves::onto(&place, &mount)?;
        self.copies.push(name);
        mount_setattr(&mount, None, Some(PropagationType::Shared))
    }

    /// Takes all copies away.
    pub fn remove_copies(&mut self) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let mut copies = std::mem::take(&mut self.copies).into_iter();
        copies.try_for_each(|name| remove_copy(&openat(&self.mount, name, flags, Mode::empty())?))
    }

    /// A new directory, with its name, which begins like this.
    fn new_place(&mut self, beginning: &str) -> io::Result<(String, OwnedFd)> {
        let name = loop {
            let name = format!("{beginning}{}", self.used);
            self.used += 1;
            match mkdirat(&self.mount, &*name, Mode::RWXU) {
                Ok(()) => break name,
                // It is from a restore that was killed.
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        };
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

    /// An empty directory, attached nowhere yet.
    pub fn cover(&self) -> io::Result<OwnedFd> {
        let empty = openat(&self.mount, COVER, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        moves::bind(&empty)
    }

    /// Takes it away. Nothing may be parked here any more.
    pub fn close(mut self) -> io::Result<()> {
        self.remove_copies()?;
        let Self { folder, name, mount, life, pipes, .. } = self;
        nix::unistd::fchdir(&mount)?;
        for pipe in &pipes {
            rustix::mount::unmount(&**pipe, UnmountFlags::NOFOLLOW)?;
        }
        // Says that nothing is left to do, before the lock is gone.
        mount_setattr(&mount, Some(MountAttrFlags::MOUNT_ATTR_RDONLY), None)?;
        // Not lazily: a mount that is still parked here must not be lost.
        nix::unistd::fchdir(&folder)?;
        drop((mount, life));
        match rustix::mount::unmount(&*name, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(unlinkat(&folder, &*name, AtFlags::REMOVEDIR)?)
    }
}

/// Says that this process is at work there. Only one can be.
fn hold(mount: &OwnedFd) -> io::Result<File> {
    let image = File::from(openat(mount, IMAGE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    flock(&image, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::other("another autofs-restore is at work there: wait for its end"))?;
    unfinished::hold(&image)?;
    Ok(image)
}

fn write(mount: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(mount, name, flags, Mode::RUSR | Mode::WUSR)?;
    io::Write::write_all(&mut File::from(file), bytes)
}

/// The directory that the work place is mounted on: one that a restore was killed with is used again, so that none is left
/// for ever.
fn make_directory(root: &Root, on_autofs: &OnAutofs, namespace: u64) -> io::Result<(OwnedFd, String)> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for folder in FOLDERS {
        let opened = open_folder(root, folder, on_autofs);
        match opened.and_then(|folder| Ok((first_free(&folder, namespace)?, folder))) {
            Ok((name, folder)) => return Ok((folder, name)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What is on an autofs mount may have to be parked itself.
fn open_folder(root: &Root, folder: &str, on_autofs: &OnAutofs) -> io::Result<OwnedFd> {
    // Without O_DIRECTORY, so that an autofs mount there is not triggered.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat(root, folder, flags, Mode::empty())?;
    if on_autofs.has(mount_id(place.as_fd())?) {
        return Err(io::Error::other("an autofs mount is in each place where it could be"));
    }
    Ok(openat(&place, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn open_place(folder: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(folder, name, flags, Mode::empty())?)
}

/// The first directory that nothing is mounted on.
fn first_free(folder: &OwnedFd, namespace: u64) -> io::Result<String> {
    for name in names(namespace) {
        match mkdirat(folder, &*name, Mode::RWXU) {
            Ok(()) => return Ok(name),
            Err(rustix::io::Errno::EXIST) if is_mount_root(open_place(folder, &name)?.as_fd())? => {}
            Err(rustix::io::Errno::EXIST) => return Ok(name),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// The names that restores use in a mount namespace; each that is killed may leave one.
fn names(namespace: u64) -> impl Iterator<Item = String> {
    const MOST: usize = 100;
    (0..MOST).map(move |number| match number {
        0 => format!("autofs-cr-parking-{namespace}"),
        number => format!("autofs-cr-parking-{namespace}.{number}"),
    })
}

/// Takes the directories away that restores of this mount namespace were killed with.
pub fn remove_directories(root: &Root, on_autofs: &OnAutofs, namespace: u64) {
    for folder in FOLDERS.into_iter().filter_map(|folder| open_folder(root, folder, on_autofs).ok()) {
        for name in names(namespace) {
            match unlinkat(&folder, &*name, AtFlags::REMOVEDIR) {
                // Something is mounted on it, or has been put into it.
                Ok(()) | Err(rustix::io::Errno::BUSY | rustix::io::Errno::NOTEMPTY) => {}
                Err(_) => break,
            }
        }
    }
}

/// How many fillers are open at a time: few, as descriptors may be scarce, and no more than fit into a message.
const MOST_FILLERS: usize = 64;
const _: () = assert!(MOST_FILLERS <= MAX_DESCRIPTORS);

/// A tmpfs that does not have one of these device numbers.
fn tmpfs_besides(wanted: &HashSet<Device>, source: &str) -> io::Result<OwnedFd> {
    // Fillers are kept until another number comes, as they are handed out lowest first. Messages that nobody reads keep
    // them: this process may not have as many descriptors as there are mounts.
    let (keeper, _unread) = Channel::pair()?;
    let mut fillers = Vec::new();
    loop {
        let made = tmpfs(source)?;
        if !wanted.contains(&device(&made)?) {
            return Ok(made);
        }
        fillers.push(made);
        if fillers.len() == MOST_FILLERS {
            let descriptors: Vec<_> = fillers.iter().map(AsFd::as_fd).collect();
            keeper.send(&(), &descriptors).map_err(io::Error::other)?;
            fillers.clear();
        }
    }
}

fn tmpfs(source: &str) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    fsconfig_set_string(context.as_fd(), "mode", "0700")?;
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// Takes a copy of a mount away, with what is mounted in it. Nobody follows it any more then.
fn remove_copy(copy: &OwnedFd) -> io::Result<()> {
    lead_nobody(copy)?;
    uncover(copy)
}

/// Makes a mount lead nobody: those that followed it are private again, as they were.
pub fn lead_nobody(copy: impl AsFd) -> io::Result<()> {
    mount_setattr(copy, None, Some(PropagationType::Private))
}

/// Takes a work place away that a killed restore left. Not if something is still parked there.
pub fn remove(parking: &Parking) -> io::Result<()> {
    for copy in &parking.copies {
        remove_copy(&open(&**copy, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?;
    }
    for pipe in &parking.pipes {
        rustix::mount::unmount(&*pipe.mount_point, UnmountFlags::NOFOLLOW)?;
    }
    rustix::mount::unmount(&*parking.mount_point, UnmountFlags::NOFOLLOW)?;
    std::fs::remove_dir(&parking.mount_point)
}
