//! Taking an old superblock away: what is mounted on it is parked, and its mounts are taken down.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use autofs_cr_common::model::TextPath;
use autofs_cr_common::proc::Proc;
use autofs_cr_common::sys::mount::{PropagationType, mount_setattr};
use rustix::mount::{UnmountFlags, unmount};

use super::park::Park;
use super::{Mounter, moves};
use crate::plan::Content;

/// A superblock that is to go, or that parked mounts belong on.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Its mounts that are still there.
    pub roots: Vec<Root>,
    /// What was mounted on it and is parked, in the order of mountinfo.
    pub parked: VecDeque<(OwnedFd, TextPath)>,
    /// What of it is on the new mount already, before that is in its place.
    pub loaded: Vec<(OwnedFd, TextPath)>,
}

impl Taken {
    /// Whether something is to be mounted on the new superblock, or was.
    pub fn has_content(&self) -> bool {
        !self.parked.is_empty() || !self.loaded.is_empty()
    }
}

/// A mount of such a superblock.
#[derive(Debug)]
pub(super) struct Root {
    /// Where it is.
    pub mount_point: TextPath,
    /// Its mount id.
    pub id: u64,
    /// It was in a peer group.
    pub is_shared: bool,
    /// Its root, open for reading.
    pub fd: OwnedFd,
    /// What covers it while its content is parked, so that nobody asks for that to be mounted.
    pub cover: Option<Cover>,
}

/// An empty directory over a superblock.
#[derive(Debug)]
pub(super) enum Cover {
    /// It was put beneath what was mounted on the root, before that was moved away. Nothing else of the superblock can
    /// be in use.
    Beneath(OwnedFd),
    /// It was put on the root, below which content was. A process can be in the superblock, and use it.
    On(OwnedFd),
}

impl Cover {
    fn mount(&self) -> &OwnedFd {
        match self {
            Self::Beneath(mount) | Self::On(mount) => mount,
        }
    }
}

/// How often something may be mounted on a mount while that is taken away.
const TRIES: usize = 8;

/// How long a mount may be busy that nobody can get at any more.
const PATIENCE: Duration = Duration::from_millis(50);

impl Mounter<'_> {
    /// Takes the old superblock of an item away.
    pub(super) fn take(&mut self, item: usize) -> anyhow::Result<()> {
        let Some(old) = &self.plan.items[item].old else { return Ok(()) };
        self.park_content(item, &old.content)?;
        while let Some(root) = self.taken.get(&item).and_then(|taken| taken.roots.last()) {
            let (mount_point, top, is_shared) = (root.mount_point.clone(), root.top()?, root.is_shared);
            self.park_late_content(item, &mount_point, top, is_shared)?;
            let root = self.taken.get_mut(&item).and_then(|taken| taken.roots.pop());
            root.map_or(Ok(()), |root| self.unmount_old(item, root))?;
        }
        Ok(())
    }

    /// Unmounts one of its mounts. Not lazily: what is in use would live on and keep the device number, and
    /// someone who waits for an answer would wait for ever. So if this fails, it goes on as it was.
    fn unmount_old(&mut self, item: usize, root: Root) -> anyhow::Result<()> {
        if let Some(holder) = self.holder(&root)? {
            let what = format!("it is in use by {holder}; leave out --replace to keep it, or try again");
            self.taken.entry(item).or_default().roots.push(root);
            bail!(what);
        }
        let Root { mount_point, id, is_shared, fd, cover } = root;
        let unmounted = match cover {
            Some(cover) => {
                // Who comes between the end of the cover and its own sees an empty directory, and asks for nothing.
                self.device.make_catatonic(fd.as_fd()).context("cannot make it catatonic")?;
                drop((fd, cover));
                unmount_cover(&mount_point).and_then(|()| unmount_soon(&mount_point))
            }
            None => {
                drop(fd);
                unmount(&*mount_point, UnmountFlags::NOFOLLOW)
            }
        };
        let Err(error) = unmounted else { return Ok(()) };
        let device = self.plan.items[item].old.as_ref().map(|old| old.device).unwrap_or_default();
        let fd = self.open_mount(&mount_point, device)?;
        if let Some(taken) = self.taken.get_mut(&item) {
            taken.roots.push(Root { mount_point, id, is_shared, fd, cover: None });
        }
        if error == rustix::io::Errno::BUSY {
            bail!(
                "it is in use: a process waits for it, or has it open or as its current directory (fuser -m shows \
                 which), or something was mounted in it just now; leave out --replace to keep it, or try again"
            );
        }
        Err(error).context("cannot unmount it")
    }

    /// A process that has something of a covered superblock open, or is in it. Nobody can come to it any more, so if
    /// there is none now, there will be none.
    fn holder(&self, root: &Root) -> anyhow::Result<Option<String>> {
        let Some(Cover::On(_)) = root.cover else { return Ok(None) };
        let device = super::superblock::device(&root.fd)?;
        // The current directory is the /proc of restore.
        let proc = Proc::at(Path::new(".")).context("cannot open /proc")?;
        for pid in proc.pids().context("cannot list the processes")? {
            // One that has just ended holds nothing.
            let Ok(process) = proc.process(pid) else { continue };
            if proc.reader() != Some(pid) && process.is_on(device) {
                let command = process.stat().map(|stat| stat.command).unwrap_or_default();
                return Ok(Some(format!("process {pid} ({command})")));
            }
        }
        Ok(None)
    }

    /// Parks what was mounted on top of a mount since it was looked at.
    fn park_late_content(
        &mut self,
        item: usize,
        mount_point: &TextPath,
        id: u64,
        is_shared: bool,
    ) -> anyhow::Result<()> {
        for _ in 0..TRIES {
            let (top, top_id) = self.root.top(mount_point).context("cannot look at its mount point")?;
            if top_id == id {
                return Ok(());
            }
            if is_shared {
                // Copies of it would stay in other namespaces, which the plan did not see.
                bail!("something was mounted on it just now: try again");
            }
            self.prepare_parking(item, mount_point)?;
            self.store(item, top, mount_point)?;
        }
        bail!("something is mounted on it again and again")
    }

    /// Moves what is mounted on the old superblock aside: from the last, as what is mounted later may be
    /// on what was mounted before.
    fn park_content(&mut self, item: usize, contents: &[Content]) -> anyhow::Result<()> {
        // First all of them: by their paths they cannot be reached any more when they are covered.
        let found = contents.iter().rev().map(|content| Ok((content, self.find_content(content)?)));
        let mounts = found.collect::<anyhow::Result<Vec<_>>>()?;
        if let Some((last, _)) = mounts.first() {
            self.prepare_parking(item, &last.mount_point)?;
            self.cover(item, &mounts);
        }
        for (content, mount) in mounts {
            self.store(item, mount, &content.mount_point)?;
        }
        Ok(())
    }

    /// Makes sure that mounts can be moved aside.
    fn prepare_parking(&mut self, item: usize, mount_point: &TextPath) -> anyhow::Result<()> {
        self.open_park()?;
        let roots = self.taken.get(&item).map_or(&[][..], |taken| &taken.roots);
        for root in roots.iter().filter(|root| root.is_shared) {
            // A mount cannot be moved away from a shared one.
            mount_setattr(&root.fd, None, Some(PropagationType::Private))
                .with_context(|| format!("cannot move what is mounted at {mount_point} aside"))?;
        }
        Ok(())
    }

    /// The place for what is moved aside, made when it is needed first.
    pub(super) fn open_park(&mut self) -> anyhow::Result<&mut Park> {
        let park = match self.park.take() {
            Some(park) => park,
            None => Park::open(&self.root, &self.plan.wanted)
                .context("cannot make a place for what is mounted on autofs mounts")?,
        };
        Ok(self.park.insert(park))
    }

    /// Covers the superblock whose content is to be moved away, as who asks for that has the master mount it once
    /// more. Where that cannot be (beneath a mount before Linux 6.5), it goes without.
    fn cover(&mut self, item: usize, content: &[(&Content, OwnedFd)]) {
        let (Some(taken), Some(park)) = (self.taken.get_mut(&item), &self.park) else { return };
        for root in &mut taken.roots {
            let on_root = content.iter().filter(|(content, _)| content.mount_point == root.mount_point);
            root.cover = match on_root.collect::<Vec<_>>().as_slice() {
                [] => park.cover_on(&root.fd).ok().map(Cover::On),
                [(_, top)] => park.cover_beneath(top).ok().map(Cover::Beneath),
                // The lowest of them is on the superblock, and is not what is on top.
                _ => None,
            };
        }
    }

    /// Moves one mount aside. There has to be a place for it.
    pub(super) fn store(
        &mut self,
        item: usize,
        mount: OwnedFd,
        mount_point: &TextPath,
    ) -> anyhow::Result<()> {
        let what = || format!("cannot move what is mounted at {mount_point} aside");
        let (Some(taken), Some(park)) = (self.taken.get_mut(&item), &mut self.park) else { return Ok(()) };
        park.store(&mount, mount_point).with_context(what)?;
        taken.parked.push_front((mount, mount_point.clone()));
        Ok(())
    }

    /// Moves what was mounted on the old superblock onto the new one, or back onto the old one if there is
    /// no new one.
    pub(super) fn bring_back(&mut self, item: usize) -> anyhow::Result<()> {
        let Some(mut taken) = self.taken.remove(&item) else { return Ok(()) };
        let mut result = Ok(());
        while let (Ok(()), Some((content, mount_point))) = (&result, taken.parked.front()) {
            let covered = taken.roots.iter_mut().find(|root| root.mount_point == *mount_point);
            let moved = match covered.and_then(|root| root.cover.take()) {
                Some(Cover::Beneath(cover)) => replace_cover(content, cover, mount_point),
                Some(Cover::On(_)) | None => self
                    .place_for_content(item, &taken, mount_point)
                    .and_then(|place| Ok(moves::onto(&place, content)?)),
            };
            result =
                moved.with_context(|| format!("cannot move what was mounted at {mount_point} back there"));
            if result.is_ok() {
                taken.parked.pop_front();
            }
        }
        for root in &mut taken.roots {
            result = result.and(root.uncover());
        }
        self.taken.insert(item, taken);
        result
    }

    /// Moves what is parked for an item onto its new mount, which is in nobody's sight yet. Nothing is inside
    /// that, so all of it goes onto its root.
    pub(super) fn load(&mut self, item: usize, new: &OwnedFd) -> anyhow::Result<()> {
        let Some(taken) = self.taken.get_mut(&item) else { return Ok(()) };
        while let Some((content, mount_point)) = taken.parked.front() {
            moves::onto(new, content).with_context(|| {
                format!("cannot move what was mounted at {mount_point} onto the new mount")
            })?;
            taken.loaded.extend(taken.parked.pop_front());
        }
        Ok(())
    }

    /// Parks what [`load`](Self::load) has moved once more, and takes the new mount away from its stage.
    pub(super) fn unload(&mut self, item: usize, stage: &str) -> anyhow::Result<()> {
        let (Some(taken), Some(park)) = (self.taken.get_mut(&item), &mut self.park) else { return Ok(()) };
        while let Some((content, mount_point)) = taken.loaded.pop() {
            park.store(&content, &mount_point)?;
            taken.parked.push_front((content, mount_point));
        }
        park.unstage(stage)?;
        Ok(nix::unistd::fchdir(&self.proc_dir)?)
    }

    fn place_for_content(&self, item: usize, taken: &Taken, path: &TextPath) -> anyhow::Result<OwnedFd> {
        let planned = &self.plan.items[item];
        let new = planned
            .mounts
            .iter()
            .filter_map(|index| Some((&self.plan.image.mounts[*index].mount_point, self.made.get(*index)?)));
        let old = taken.roots.iter().map(|root| (&root.mount_point, root.fd.as_fd()));
        let (outer, mount) = new
            .chain(old)
            .filter(|(outer, _)| path.starts_with(outer))
            .max_by_key(|(outer, _)| outer.as_bytes().len())
            .context("the mount that it was on is gone")?;
        Ok(super::place::inside(mount, super::prepare::relative(outer, path), path)?)
    }

    /// Makes the mounts that are still there shared again, if they were.
    pub(super) fn share_again(&self, item: usize) -> Option<String> {
        let roots = self.taken.get(&item).map_or(&[][..], |taken| &taken.roots);
        let shared = roots.iter().filter(|root| root.is_shared);
        let failed = shared.filter_map(|root| {
            mount_setattr(&root.fd, None, Some(PropagationType::Shared)).err().map(|error| (root, error))
        });
        failed.map(|(root, error)| format!("{} cannot be shared again: {error}", root.mount_point)).next()
    }
}

impl Root {
    /// The id of what is on top at its place.
    fn top(&self) -> io::Result<u64> {
        self.cover.as_ref().map_or(Ok(self.id), |cover| super::place::mount_id(cover.mount().as_fd()))
    }

    /// Takes away a cover that is still there.
    fn uncover(&mut self) -> anyhow::Result<()> {
        if self.cover.take().is_some() {
            unmount_cover(&self.mount_point)
                .with_context(|| format!("cannot take the cover of {} away", self.mount_point))?;
        }
        Ok(())
    }
}

/// Puts content back beneath a cover, and takes that away.
fn replace_cover(content: &OwnedFd, cover: OwnedFd, mount_point: &TextPath) -> anyhow::Result<()> {
    moves::beneath(&cover, content)?;
    drop(cover);
    Ok(unmount_cover(mount_point)?)
}

/// Lazily, as somebody may be walking by; there is nothing in it that could be lost.
pub(super) fn unmount_cover(mount_point: &TextPath) -> rustix::io::Result<()> {
    unmount(&**mount_point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
}

/// Unmounts what is catatonic and in nobody's use. Somebody who walks by makes it busy for an instant, and so does a service
/// that has just started with a copy of it: then it is let go lazily. Its device number is free when they are through.
fn unmount_soon(mount_point: &TextPath) -> rustix::io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match unmount(&**mount_point, UnmountFlags::NOFOLLOW) {
            Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => std::thread::yield_now(),
            Err(rustix::io::Errno::BUSY) => {
                return unmount(&**mount_point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
            }
            result => return result,
        }
    }
}
