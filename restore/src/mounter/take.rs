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

use super::superblock;
use super::unmount::{Site, uncover};
use super::{Mounter, moves};
use crate::plan::{Action, Content};

/// A superblock that is to go, or that parked mounts belong on.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Its mounts that are still there.
    pub roots: Vec<Root>,
    /// What was mounted on it and is parked, in the order of mountinfo.
    pub parked: VecDeque<(OwnedFd, TextPath)>,
    /// What was mounted on it and has stayed in its place, where the old superblock was taken away from below it.
    pub above: Option<(OwnedFd, TextPath)>,
    /// What covers its place until the new superblock is there with its content.
    pub place_cover: Option<(OwnedFd, TextPath)>,
}

impl Taken {
    /// Whether something is to be mounted on the new superblock.
    pub fn has_content(&self) -> bool {
        !self.parked.is_empty()
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

/// How long a mount may be busy that nobody can get at any more.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

impl Mounter<'_> {
    /// Takes the old superblock of an item away.
    pub(super) fn take(&mut self, item: usize) -> anyhow::Result<()> {
        let Some(old) = &self.plan.items[item].old else { return Ok(()) };
        if self.plan.items[item].action == Action::Remove {
            return self.remove(item);
        }
        if old.content.is_empty()
            && let Some(root) = self.take_bare(item)?
        {
            return self.unmount_old(item, root);
        }
        if self.lift_old(item, old)? {
            return Ok(());
        }
        self.park_content(item, &old.content)?;
        while let Some(root) = self.taken.get(&item).and_then(|taken| taken.roots.last()) {
            let (mount_point, top, is_shared) = (root.mount_point.clone(), root.top()?, root.is_shared);
            self.park_late_content(item, &mount_point, top, is_shared)?;
            let root = self.taken.get_mut(&item).and_then(|taken| taken.roots.pop());
            root.map_or(Ok(()), |root| self.unmount_old(item, root))?;
        }
        // At once: until then the place is bare.
        self.cover_place(item)
    }

    /// The only mount of an old superblock with nothing inside, if nothing is mounted on it.
    fn take_bare(&mut self, item: usize) -> anyhow::Result<Option<Root>> {
        let Some(Taken { roots, parked, .. }) = self.taken.get_mut(&item) else { return Ok(None) };
        let ([Root { mount_point, id, cover: None, .. }], true) = (roots.as_slice(), parked.is_empty())
        else {
            return Ok(None);
        };
        let is_bare = self.root.top_id(mount_point)? == *id;
        Ok(is_bare.then(|| roots.pop()).flatten())
    }

    /// Unmounts one of its mounts. Not lazily: what is in use would live on and keep the device number, and
    /// someone who waits for an answer would wait for ever. So if this fails, it goes on as it was.
    fn unmount_old(&mut self, item: usize, root: Root) -> anyhow::Result<()> {
        if let Some(holder) = self.holder(&root)? {
            let what = format!("it is in use by {holder}; leave out --replace to keep it, or try again");
            self.taken.entry(item).or_default().roots.push(root);
            bail!(what);
        }
        self.root.forget_below(&root.mount_point);
        let found = match &root.cover {
            Some(_) => Site::find(&self.root, &root.mount_point, root.top()?),
            None => Site::of_known(&self.root, &root.mount_point, root.id),
        };
        let site = match found {
            Ok(site) => {
                // The new one has to go where this one was, also when that is renamed meanwhile.
                self.root.keep_parent(&root.mount_point, site.directory());
                site.of(root.id)
            }
            Err(error) => {
                self.taken.entry(item).or_default().roots.push(root);
                return Err(error).context("cannot unmount it");
            }
        };
        let Root { mount_point, id, is_shared, fd, cover } = root;
        let unmounted = match cover {
            Some(cover) => {
                // Who comes between the end of the cover and its own sees an empty directory, and asks for nothing.
                self.device.make_catatonic(fd.as_fd()).context("cannot make it catatonic")?;
                drop(fd);
                uncover(cover.mount()).and_then(|()| {
                    drop(cover);
                    unmount_soon(&site)
                })
            }
            None => {
                drop(fd);
                site.unmount()
            }
        };
        let Err(error) = unmounted else { return Ok(()) };
        let device = self.plan.items[item].old.as_ref().map(|old| old.device).unwrap_or_default();
        let fd = site.open_mount(&self.device, device).context("cannot open it again")?;
        if let Some(taken) = self.taken.get_mut(&item) {
            taken.roots.push(Root { mount_point, id, is_shared, fd, cover: None });
        }
        if error.kind() == io::ErrorKind::ResourceBusy {
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
        let device = superblock::device(&root.fd)?;
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
    pub(super) fn prepare_parking(&mut self, item: usize, mount_point: &TextPath) -> anyhow::Result<()> {
        self.open_park()?;
        let roots = self.taken.get(&item).map_or(&[][..], |taken| &taken.roots);
        for root in roots.iter().filter(|root| root.is_shared) {
            // A mount cannot be moved away from a shared one.
            mount_setattr(&root.fd, None, Some(PropagationType::Private))
                .with_context(|| format!("cannot move what is mounted at {mount_point} aside"))?;
        }
        Ok(())
    }

    /// Puts back what a restore that was killed moved away from the superblock, where that is there still.
    pub(super) fn settle(&mut self, item: usize) -> anyhow::Result<()> {
        let plan = self.plan;
        for cover in &plan.items[item].covers {
            if let Some(id) = cover.carries {
                // It lies beneath what is mounted on the superblock.
                let content = self.root.mount(&cover.mount_point, id)?;
                self.store(item, content, &cover.mount_point)?;
            }
            let Some(top) = self.find_cover(cover)? else { continue };
            let mut roots = self.taken.get_mut(&item).into_iter().flat_map(|taken| &mut taken.roots);
            match roots.find(|root| root.mount_point == cover.mount_point) {
                Some(root) => root.cover = Some(Cover::On(top)),
                None => uncover(top)?,
            }
        }
        match self.taken.get(&item) {
            Some(taken) if !taken.roots.is_empty() => self.bring_back(item),
            _ => Ok(()),
        }
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
    /// no new one, and takes the cover away that has been over it meanwhile.
    pub(super) fn bring_back(&mut self, item: usize) -> anyhow::Result<()> {
        let Some(mut taken) = self.taken.remove(&item) else { return Ok(()) };
        let mut result = Ok(());
        while let (Ok(()), Some((content, mount_point))) = (&result, taken.parked.front()) {
            let moved = match taken.cover_at(mount_point) {
                Some(cover) => moves::beneath(cover, content).map_err(anyhow::Error::from),
                None => self
                    .place_for_content(item, &taken, mount_point)
                    .and_then(|place| Ok(moves::onto(&place, content)?)),
            };
            result =
                moved.with_context(|| format!("cannot move what was mounted at {mount_point} back there"));
            if result.is_ok() {
                taken.parked.pop_front();
            }
        }
        if let Some((cover, mount_point)) = taken.place_cover.take() {
            let uncovered = uncover(cover);
            result =
                result.and(uncovered.with_context(|| format!("cannot take the cover of {mount_point} away")));
        }
        for root in &mut taken.roots {
            result = result.and(root.uncover());
        }
        self.taken.insert(item, taken);
        result
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

impl Taken {
    /// What covers this place, where content goes beneath it.
    fn cover_at(&self, mount_point: &TextPath) -> Option<&OwnedFd> {
        let of_roots =
            self.roots.iter().filter_map(|root| Some((root.cover.as_ref()?.mount(), &root.mount_point)));
        let of_place = self.place_cover.iter().map(|(cover, place)| (cover, place));
        of_roots.chain(of_place).find(|(_, place)| *place == mount_point).map(|(cover, _)| cover)
    }
}

impl Root {
    /// The id of what is on top at its place.
    fn top(&self) -> io::Result<u64> {
        self.cover.as_ref().map_or(Ok(self.id), |cover| super::place::mount_id(cover.mount().as_fd()))
    }

    /// Takes away a cover that is still there.
    fn uncover(&mut self) -> anyhow::Result<()> {
        if let Some(cover) = self.cover.take() {
            uncover(cover.mount())
                .with_context(|| format!("cannot take the cover of {} away", self.mount_point))?;
        }
        Ok(())
    }
}

/// Unmounts what is catatonic and in nobody's use. Somebody who walks by makes it busy for an instant, and so does a service
/// that has just started with a copy of it: then it is let go lazily. Its device number is free when they are through.
fn unmount_soon(site: &Site) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match site.unmount() {
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy => return Err(error),
            Err(_) if Instant::now() < deadline => std::thread::yield_now(),
            Err(_) => return site.detach(),
            Ok(()) => return Ok(()),
        }
    }
}
