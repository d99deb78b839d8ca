//! The plan for one superblock.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use autofs_cr_common::advice;
use autofs_cr_common::doc::image::{Directory, Image, Mode, Superblock};
use autofs_cr_common::doc::report;
use autofs_cr_common::masters::{Identity, MasterKind};
use autofs_cr_common::model::{Device, Pid, State, TextPath};

use super::there::There;
use super::{Action, Content, Earlier, Item, Old, OldMount, PlanError, Wishes};
use crate::layout::Layout;
use crate::live::{Live, Masters, ReadPipe};
use crate::parked::{Parked, Parking};

/// The mode of a directory that is made for what is mounted on it, as automount(8) makes them.
const KEY_MODE: Mode = Mode(0o555);

/// Plans one superblock.
pub(super) struct Planner<'a> {
    pub(super) image: &'a Image,
    pub(super) layout: &'a Layout,
    pub(super) there: &'a There<'a>,
    pub(super) parkings: &'a [Parking],
    pub(super) earlier: &'a Earlier,
    pub(super) masters: &'a Masters,
    pub(super) wishes: Wishes,
    pub(super) superblock: &'a Superblock,
}

impl Planner<'_> {
    pub(super) fn item(&self, mounts: Vec<usize>) -> Result<Item, PlanError> {
        let found = self.found(&mounts)?;
        if self.wishes.undo {
            return self.undone(found, mounts);
        }
        let served_anyway = found.and_then(|found| self.served_anyway(found));
        if let Some(served) = served_anyway.filter(|_| !self.wishes.replace) {
            return Ok(self.left_alone(served, mounts));
        }
        if self.live().is_some() && self.pipe().is_none() && self.superblock.state != State::Catatonic {
            return Err(self.not_read(&mounts, served_anyway.is_some()));
        }
        match found {
            Some(device) if !self.wishes.replace => self.in_place(device, mounts),
            found => self.made(found, mounts),
        }
    }

    /// A new one is made, where `found` has to go if there is one.
    pub(super) fn made(&self, found: Option<Device>, mounts: Vec<usize>) -> Result<Item, PlanError> {
        let old = found.map(|device| self.old(device, &mounts)).transpose()?;
        let parked = self.parked(&mounts);
        let content = old.iter().flat_map(|old| old.content.iter().map(|content| &content.mount_point));
        let inside = self.inside(content.chain(parked.iter().map(|parked| &parked.was_at)), &mounts);
        let action = self.anew(old.is_some(), !inside.is_empty(), &mounts)?;
        let missing = self.missing(&inside);
        let group = self.live().and_then(|_| self.group());
        let keeps_device = self.identity() != Identity::None || action == Action::Leave;
        Ok(Item { action, old, mounts, keeps_device, parked, missing, group, ..Item::default() })
    }

    pub(super) fn first_mount_point(&self, mounts: &[usize]) -> TextPath {
        mounts.first().map(|&index| self.image.mounts[index].mount_point.clone()).unwrap_or_default()
    }

    /// The superblock that the image's mount points show now.
    fn found(&self, mounts: &[usize]) -> Result<Option<Device>, PlanError> {
        let mut found: Option<Device> = None;
        let mut missing = None;
        for &index in mounts {
            let mount_point = &self.image.mounts[index].mount_point;
            let there = self.there.at.get(mount_point).and_then(|stack| stack.get(self.layout.layers[index]));
            match (there, found) {
                (Some(there), Some(first)) if first != there.device => {
                    return Err(PlanError::Mixed {
                        mount_point: mount_point.clone(),
                        first,
                        second: there.device,
                    });
                }
                (Some(there), _) => found = Some(there.device),
                (None, _) => missing = Some(mount_point.clone()),
            }
        }
        match (found, missing) {
            (Some(_), Some(missing)) if !self.wishes.replace && !self.wishes.undo => {
                Err(PlanError::PartlyThere { mount_point: self.first_mount_point(mounts), missing })
            }
            (found, _) => Ok(found),
        }
    }

    /// Something is there and shall stay.
    fn in_place(&self, found: Device, mounts: Vec<usize>) -> Result<Item, PlanError> {
        let mount_point = self.first_mount_point(&mounts);
        let wanted = self.superblock.device;
        if found != wanted && self.identity() != Identity::None {
            return Err(PlanError::InTheWay { mount_point, found, wanted });
        }
        let there = self.there.report.superblock(found);
        if !there.is_some_and(|there| there.options.made_like(&self.superblock.options)) {
            return Err(PlanError::MadeOtherwise { mount_point, device: found });
        }
        let is_right = there.is_some_and(|there| self.is_right(there));
        let action = match self.superblock.state {
            _ if is_right => Action::Keep,
            // One that serves while the image has it catatonic is not shut down for that.
            State::Catatonic => Action::Keep,
            State::Delegated => return Err(self.delegated(mount_point)),
            _ => Action::Adopt,
        };
        if let Some(there) = there.filter(|there| action == Action::Adopt && there.state.is_served()) {
            let pipes = self.live().map(|live| &live.pipes);
            let is_own = pipes
                .is_some_and(|pipes| pipes.values().any(|pipe| there.pipe == Some(pipe.write_end.inode)));
            if !is_own {
                let server =
                    there.master.map_or("another process".to_owned(), |pid| format!("process {pid}"));
                return Err(PlanError::ServedByAnother { mount_point, server, master: self.master_name() });
            }
        }
        let parked = self.parked(&mounts);
        Ok(Item { action, mounts, keeps_device: true, parked, ..Item::default() })
    }

    /// Whether a superblock that is there is connected as the image says.
    fn is_right(&self, there: &report::Superblock) -> bool {
        match self.superblock.state {
            State::Catatonic => there.state == State::Catatonic,
            state => {
                there.state == state
                    && self.pipe().is_some_and(|pipe| there.pipe == Some(pipe.write_end.inode))
            }
        }
    }

    /// The superblock that is there, if it is served by the successor of a master that does not serve the one of
    /// the image any more: the same known program, with other pipes.
    fn served_anyway(&self, found: Device) -> Option<&report::Superblock> {
        let there = self.there.report.superblock(found).filter(|there| there.state.is_served())?;
        let kind = self.there.report.process(there.master?)?.kind;
        let is_successor = self.pipe().is_none() && kind == self.kind() && kind != MasterKind::Unknown;
        let is_alike = there.options.mount_type == self.superblock.options.mount_type;
        (is_successor && is_alike && self.superblock.state != State::Catatonic).then_some(there)
    }

    /// What serves is left as it is.
    fn left_alone(&self, there: &report::Superblock, mounts: Vec<usize>) -> Item {
        let server = there.master.and_then(|pid| self.there.report.process(pid));
        let server =
            server.map(|process| format!("{}[{}]", process.command, process.pid)).unwrap_or_default();
        let note = format!(
            "{} is served by {server} with another pipe than that of {} in the image, and left as it is",
            self.first_mount_point(&mounts),
            self.master_name()
        );
        let keeps_device = there.device == self.superblock.device;
        let parked = self.parked(&mounts);
        Item { mounts, keeps_device, parked, note: Some(note), ..Item::default() }
    }

    /// Its master lives, but does not read its pipe any more.
    fn not_read(&self, mounts: &[usize], is_served_anyway: bool) -> PlanError {
        let (mount_point, master) = (self.first_mount_point(mounts), self.master_name());
        if is_served_anyway {
            return PlanError::ServedSince { mount_point, master };
        }
        let target = self.there.report.namespaces.first().map(|namespace| namespace.process);
        let restart = self.kind().restart(&[&mount_point]).map(|command| advice::at(target, &command));
        let advice = restart.unwrap_or_else(|| "restart it, and dump again".to_owned());
        PlanError::NotRead { mount_point, master, advice }
    }

    fn live(&self) -> Option<&Live> {
        self.masters.of(self.superblock)
    }

    /// The pipe, as its living master reads it.
    fn pipe(&self) -> Option<&ReadPipe> {
        self.masters.pipe_of(self.superblock)
    }

    fn kind(&self) -> MasterKind {
        let master = self.superblock.master.as_deref().and_then(|id| self.image.master(id));
        master.map_or(MasterKind::Unknown, |master| master.kind)
    }

    fn identity(&self) -> Identity {
        let known = self.kind().identity(self.superblock.options.mount_type);
        self.wishes.identity.unwrap_or(known)
    }

    pub(super) fn old(&self, device: Device, mounts: &[usize]) -> Result<Old, PlanError> {
        let places: HashSet<&TextPath> =
            mounts.iter().map(|&index| &self.image.mounts[index].mount_point).collect();
        let there = self.there.of.get(&device).map_or(&[][..], Vec::as_slice);
        if let Some(other) = there.iter().find(|mount| !places.contains(&mount.mount_point)) {
            return Err(PlanError::AlsoMounted { device, mount_point: other.mount_point.clone() });
        }
        let content = there.iter().filter_map(|mount| self.there.content.get(&mount.id)).flatten();
        let covers = self.parkings.iter().flat_map(|parking| &parking.covers);
        let covers: HashSet<u64> = covers.map(|cover| cover.id).collect();
        let content = content.filter(|content| !covers.contains(&content.id));
        Ok(Old {
            device,
            mounts: there.iter().map(|mount| OldMount::of(mount)).collect(),
            content: content
                .map(|content| Content { id: content.id, mount_point: content.mount_point.clone() })
                .collect(),
        })
    }

    /// Adds what a restore that was killed left, and what was there before it.
    pub(super) fn add_left_behind(&self, item: &mut Item) {
        let places: HashSet<&TextPath> =
            item.mounts.iter().map(|&index| &self.image.mounts[index].mount_point).collect();
        let covers = self.parkings.iter().flat_map(|parking| &parking.covers);
        item.covers = covers.filter(|cover| places.contains(&cover.mount_point)).cloned().collect();
        let is_free = item.action.makes() && item.old.is_none() && item.parked.is_empty();
        let was_free = self.earlier.before.free.contains(&self.superblock.device);
        item.was_free = was_free || (is_free && !self.earlier.is_whole);
        let Some(old) = &mut item.old else { return };
        // It is back on the old one when that is taken away.
        let parked = item.parked.iter().map(|parked| (parked.id, &parked.was_at));
        let carried = item.covers.iter().filter_map(|cover| Some((cover.carries?, &cover.mount_point)));
        let known: HashSet<u64> = old.content.iter().map(|content| content.id).collect();
        let left = parked.chain(carried).filter(|(id, _)| !known.contains(id));
        old.content.extend(left.map(|(id, place)| Content { id, mount_point: place.clone() }));
        old.content.sort_by_key(|content| content.id);
    }

    /// What a killed restore moved away from these mounts.
    pub(super) fn parked(&self, mounts: &[usize]) -> Vec<Parked> {
        let all = self.parkings.iter().flat_map(|parking| &parking.mounts);
        all.filter(|parked| {
            self.layout.around(self.image, &parked.was_at).is_some_and(|mount| mounts.contains(&mount))
        })
        .cloned()
        .collect()
    }

    /// The directories of the superblock, as from its root, that these places are in: they have to be in the new
    /// one too, also if the image was made before.
    fn inside<'p>(&self, places: impl Iterator<Item = &'p TextPath>, mounts: &[usize]) -> Vec<PathBuf> {
        let outer = |path: &TextPath| {
            let mounts = mounts.iter().map(|&index| &self.image.mounts[index]);
            let around = mounts.filter(|mount| path.starts_with(&mount.mount_point));
            around.max_by_key(|mount| mount.mount_point.as_bytes().len())
        };
        let inside = places.filter_map(|place| {
            let mount = outer(place)?;
            let below = place.strip_prefix(&mount.mount_point).ok()?;
            Some(mount.root.strip_prefix("/").ok()?.join(below))
        });
        inside.filter(|path| !path.as_os_str().is_empty()).collect()
    }

    /// Those of these directories, and those they are in, that the image does not have; parents first.
    fn missing(&self, inside: &[PathBuf]) -> Vec<Directory> {
        let known: HashSet<&Path> =
            self.superblock.directories.iter().map(|directory| &*directory.path).collect();
        let ancestors = inside.iter().flat_map(|path| path.ancestors());
        let missing: BTreeSet<&Path> =
            ancestors.filter(|path| !path.as_os_str().is_empty() && !known.contains(path)).collect();
        missing.into_iter().map(|path| Directory { path: path.into(), mode: KEY_MODE }).collect()
    }

    /// A new superblock is made.
    fn anew(&self, replaces: bool, has_inside: bool, mounts: &[usize]) -> Result<Action, PlanError> {
        if self.superblock.state == State::Catatonic {
            return Ok(Action::Leave);
        }
        let mount_point = || self.first_mount_point(mounts);
        let live = self.live();
        if replaces && live.is_some() && self.identity() == Identity::Inode {
            let (mount_point, master, renew) = (mount_point(), self.master_name(), self.kind().renew());
            return Err(PlanError::NeedsInode { mount_point, master, renew });
        }
        if live.is_some() && !has_inside && self.can_connect(replaces) {
            return Ok(Action::Connect);
        }
        if self.superblock.state == State::Delegated {
            return Err(self.delegated(mount_point()));
        }
        Ok(Action::Create)
    }

    /// Whether it can be made connected at once: nothing has to be made inside, which is for its own
    /// process group, and no control fd has to be pointed to it.
    fn can_connect(&self, replaces: bool) -> bool {
        let superblock = self.superblock;
        let is_empty = superblock.directories.is_empty() && superblock.symlinks.is_empty();
        let has_control_fds = replaces && !superblock.control_fds.is_empty();
        is_empty && !has_control_fds && !self.wishes.fixup_only && self.group().is_some()
    }

    /// The process group that the image wants, in the target's pid namespace.
    fn group(&self) -> Option<Pid> {
        self.superblock.pgrp.or_else(|| self.live()?.own_group)
    }

    fn master_name(&self) -> String {
        self.superblock.master.clone().unwrap_or_default()
    }

    fn delegated(&self, mount_point: TextPath) -> PlanError {
        let group = self.superblock.pgrp.map_or("not visible".to_owned(), |group| group.to_string());
        PlanError::Delegated { mount_point, group, master: self.master_name() }
    }
}
