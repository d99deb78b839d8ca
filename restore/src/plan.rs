//! The plan: what is done with each superblock of the image, decided before the first change from the
//! image, a report of what is there, and the masters that live. It changes nothing by itself.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use autofs_cr_common::doc::image::{Directory, Image, Mode, Superblock};
use autofs_cr_common::doc::report::{self, Report};
use autofs_cr_common::masters::Identity;
use autofs_cr_common::model::{Device, Pid, State, TextPath};

use crate::layout::{self, Layout};
use crate::live::{Live, Masters};
use crate::parked::{Parked, Parking};

/// The mode of a directory that is made for what is mounted on it, as automount(8) makes them.
const KEY_MODE: Mode = Mode(0o555);

/// What the user asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// Replace autofs mounts that are in the way.
    pub replace: bool,
    /// Connect only by a fixup, also where it is not needed.
    pub fixup_only: bool,
    /// What every master compares, in place of what is known of its kind.
    pub identity: Option<Identity>,
}

/// What is done with one superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is there, and as it should be.
    Keep,
    /// It is there; its master's fixup sets its pipe.
    Adopt,
    /// It is made connected to its living master.
    Connect,
    /// It is made, and connected by its master's fixup.
    Create,
    /// It is made catatonic, as it was.
    Leave,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "keep",
            Self::Adopt => "adopt",
            Self::Connect => "connect",
            Self::Create => "create",
            Self::Leave => "leave",
        })
    }
}

impl Action {
    /// Whether a new superblock is made.
    pub fn makes(self) -> bool {
        matches!(self, Self::Connect | Self::Create | Self::Leave)
    }

    /// Whether a fixup has to come.
    pub fn needs_fixup(self) -> bool {
        matches!(self, Self::Adopt | Self::Create)
    }
}

/// The plan for one superblock of the image, at the same index.
#[derive(Debug)]
pub struct Item {
    /// What is done.
    pub action: Action,
    /// The superblock that has to go before.
    pub old: Option<Old>,
    /// The mounts of the image that show it, by index.
    pub mounts: Vec<usize>,
    /// Its device number has to be the one of the image.
    pub keeps_device: bool,
    /// What a restore that was killed moved away from it.
    pub parked: Vec<Parked>,
    /// Directories that are needed for what is mounted on it now, and that the image does not have.
    pub missing: Vec<Directory>,
    /// The process group of its living master, in the target's pid namespace.
    pub group: Option<Pid>,
}

impl Item {
    /// Whether it is only replaced when its master's fixup is there, so that nobody waits for the
    /// user to start one.
    pub fn is_held(&self) -> bool {
        self.action == Action::Create && self.old.is_some()
    }
}

/// A superblock that is in the way.
#[derive(Debug)]
pub struct Old {
    /// Its device number.
    pub device: Device,
    /// Its mounts.
    pub mounts: Vec<OldMount>,
    /// What is mounted on it, in the order of mountinfo.
    pub content: Vec<Content>,
}

/// A mount of a superblock that is in the way.
#[derive(Debug)]
pub struct OldMount {
    /// Its mount id.
    pub id: u64,
    /// Where it is.
    pub mount_point: TextPath,
    /// It is in a peer group.
    pub is_shared: bool,
}

/// Something that is moved from the old superblock to the new one.
#[derive(Debug)]
pub struct Content {
    /// Its mount id.
    pub id: u64,
    /// Where it is.
    pub mount_point: TextPath,
}

impl OldMount {
    fn of(mount: &report::Mount) -> Self {
        let is_shared = mount.propagation.shared.is_some();
        Self { id: mount.id, mount_point: mount.mount_point.clone(), is_shared }
    }
}

/// The whole plan.
#[derive(Debug)]
pub struct Plan {
    /// The image.
    pub image: Image,
    /// What is done with its superblocks.
    pub items: Vec<Item>,
    /// For each mount of the image, the item that it shows.
    pub item_of: Vec<usize>,
    /// For each mount of the image, the one of the image that it is nested in, if any.
    pub parents: Vec<Option<usize>>,
    /// Items that are made together, as their mounts are nested, each in the order of the image's mounts.
    pub groups: Vec<Vec<usize>>,
    /// Where a restore that was killed parked mounts: to be taken away.
    pub parkings: Vec<TextPath>,
    /// What the user should know of it.
    pub notes: Vec<String>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(
        "{mount_point} is in the way: an autofs mount with device {found} is mounted there, and the image wants {wanted}; \
         use --replace to replace it"
    )]
    InTheWay { mount_point: TextPath, found: Device, wanted: Device },
    #[error(
        "{mount_point}: superblock {device} is there, but was made with other options than the image says; \
         use --replace to replace it"
    )]
    MadeOtherwise { mount_point: TextPath, device: Device },
    #[error("{mount_point} shows superblock {first}, another mount of the same image entry shows {second}")]
    Mixed { mount_point: TextPath, first: Device, second: Device },
    #[error(
        "superblock {device} is to be replaced, but is also mounted at {mount_point}, which the image does not have; \
         unmount that, or dump again"
    )]
    AlsoMounted { device: Device, mount_point: TextPath },
    #[error(
        "superblock {device} is to be replaced, but the autofs mount {mount_point} is on it, which the image does not have; \
         unmount that, or dump again"
    )]
    Foreign { device: Device, mount_point: TextPath },
    #[error(
        "{mount_point}: {master} compares the inode number of its mount, which cannot be chosen for a new one: \
         leave out --replace, so that the superblock is kept (or say --identity device, if you know that it does not)"
    )]
    NeedsInode { mount_point: TextPath, master: String },
    #[error("device {device} of the image is taken by {what}, which is not replaced")]
    DeviceTaken { device: Device, what: String },
    #[error(
        "{mount_point} is delegated: its process group is {group}, and its reader {master} is not in it; \
         that can only be made anew while both live, and with nothing inside it"
    )]
    Delegated { mount_point: TextPath, group: String, master: String },
    #[error(
        "superblock {device} is to be replaced, but {what} shows it too, where it would stay and keep its device number: \
         end that, or leave out --replace, so that the superblock is kept"
    )]
    Elsewhere { device: Device, what: String },
    #[error(
        "{mount_point} is served by {server}, and not by {master} of the image; use --replace to take it over"
    )]
    ServedByAnother { mount_point: TextPath, server: String, master: String },
    #[error("{mount_point} is only partly there: {missing} is missing; unmount it, or use --replace")]
    PartlyThere { mount_point: TextPath, missing: TextPath },
}

/// Makes the plan. `report` is of the target's mount namespace; for a fresh one it is empty.
pub fn plan(
    mut image: Image,
    report: &Report,
    everywhere: &Numbers,
    parkings: &[Parking],
    masters: &Masters,
    wishes: Wishes,
) -> Result<Plan, PlanError> {
    let there = There::new(report);
    let layout = Layout::of(&image);
    let mut items = Vec::with_capacity(image.superblocks.len());
    let mut notes = masters.doubts.clone();
    for superblock in &image.superblocks {
        let planner =
            Planner { image: &image, layout: &layout, there: &there, parkings, masters, wishes, superblock };
        items.push(planner.item(layout.mounts_of(superblock.device))?);
        if there.asked.contains(&superblock.device) {
            notes.push(format!(
                "requests wait unread on superblock {}: who made them gets an error if it is replaced or adopted",
                superblock.device
            ));
        }
    }
    check_devices(&image, &items, everywhere)?;
    check_nothing_foreign(&image, &items, &there)?;
    notes.extend(parkings.iter().flat_map(|parking| &parking.mounts).map(|parked| {
        match layout.around(&image, &parked.was_at) {
            Some(_) => format!(
                "{} is moved back from {}, where a killed restore left it",
                parked.was_at, parked.mount_point
            ),
            None => format!(
                "{} stands at {}, where a killed restore left it: move it back with mount --move",
                parked.was_at, parked.mount_point
            ),
        }
    }));
    for (superblock, item) in image.superblocks.iter_mut().zip(&items) {
        superblock.directories.extend(item.missing.iter().cloned());
    }
    let item_of = layout::item_of(&image, &items);
    let groups = layout.groups(&items, &item_of);
    let parkings = parkings.iter().map(|parking| parking.mount_point.clone()).collect();
    Ok(Plan { image, items, item_of, parents: layout.parents, groups, parkings, notes })
}

/// The device numbers that mounts anywhere on the host have, with a word on where.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Those that any mount has.
    pub taken: HashMap<Device, String>,
    /// Those of superblocks that stay in another mount namespace when they are unmounted in the target's.
    pub stay: HashMap<Device, String>,
}

/// What is there, by what the planner asks for.
struct There<'a> {
    report: &'a Report,
    /// The autofs mounts at a mount point, in stacking order.
    at: HashMap<&'a TextPath, Vec<&'a report::Mount>>,
    of: HashMap<Device, Vec<&'a report::Mount>>,
    content: HashMap<u64, Vec<&'a report::Content>>,
    /// Superblocks with requests that nobody has read.
    asked: HashSet<Device>,
}

impl<'a> There<'a> {
    fn new(report: &'a Report) -> Self {
        let mut there = Self {
            report,
            at: HashMap::new(),
            of: HashMap::new(),
            content: HashMap::new(),
            asked: report.requests.iter().map(|request| request.device).collect(),
        };
        for mount in &report.mounts {
            there.at.entry(&mount.mount_point).or_default().push(mount);
            there.of.entry(mount.device).or_default().push(mount);
        }
        for content in &report.content {
            there.content.entry(content.parent).or_default().push(content);
        }
        there.sort_stacks();
        there
    }

    /// Puts the mounts at one place into the order in which they cover each other. mountinfo has them by their
    /// ids, and a mount that was moved is older than what it is on.
    fn sort_stacks(&mut self) {
        let mounts = self.report.mounts.iter().map(|mount| (mount.id, mount.parent));
        let parents: HashMap<u64, u64> =
            mounts.chain(self.report.content.iter().map(|content| (content.id, content.parent))).collect();
        // A cycle of parents, which only a report that was made up has, is as long as there are mounts.
        let depth = |mount: &&report::Mount| {
            let ancestors = std::iter::successors(Some(mount.id), |id| parents.get(id).copied());
            ancestors.take(parents.len()).count()
        };
        self.at
            .values_mut()
            .filter(|stack| stack.len() > 1)
            .for_each(|stack| stack.sort_by_cached_key(depth));
    }
}

/// Plans one superblock.
struct Planner<'a> {
    image: &'a Image,
    layout: &'a Layout,
    there: &'a There<'a>,
    parkings: &'a [Parking],
    masters: &'a Masters,
    wishes: Wishes,
    superblock: &'a Superblock,
}

impl Planner<'_> {
    fn item(&self, mounts: Vec<usize>) -> Result<Item, PlanError> {
        let found = self.found(&mounts)?;
        let old = match found {
            Some(device) if !self.wishes.replace => {
                return self.in_place(device, mounts);
            }
            Some(device) => Some(self.old(device, &mounts)?),
            None => None,
        };
        let parked = self.parked(&mounts);
        let content = old.iter().flat_map(|old| old.content.iter().map(|content| &content.mount_point));
        let inside = self.inside(content.chain(parked.iter().map(|parked| &parked.was_at)), &mounts);
        let action = self.anew(old.is_some(), !inside.is_empty(), &mounts)?;
        let missing = self.missing(&inside);
        let group = self.live().and_then(|_| self.group());
        let keeps_device = self.identity() != Identity::None || action == Action::Leave;
        Ok(Item { action, old, mounts, keeps_device, parked, missing, group })
    }

    fn first_mount_point(&self, mounts: &[usize]) -> TextPath {
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
            (Some(_), Some(missing)) if !self.wishes.replace => {
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
            let is_own = pipes.is_some_and(|pipes| pipes.values().any(|pipe| there.pipe == Some(pipe.inode)));
            if !is_own {
                let server =
                    there.master.map_or("another process".to_owned(), |pid| format!("process {pid}"));
                return Err(PlanError::ServedByAnother { mount_point, server, master: self.master_name() });
            }
        }
        let parked = self.parked(&mounts);
        Ok(Item { action, old: None, mounts, keeps_device: true, parked, missing: Vec::new(), group: None })
    }

    /// Whether a superblock that is there is connected as the image says.
    fn is_right(&self, there: &report::Superblock) -> bool {
        let pipe = self.live().zip(self.superblock.pipe).and_then(|(live, pipe)| live.pipes.get(&pipe));
        match self.superblock.state {
            State::Catatonic => there.state == State::Catatonic,
            state => there.state == state && pipe.is_some_and(|pipe| there.pipe == Some(pipe.inode)),
        }
    }

    fn live(&self) -> Option<&Live> {
        self.masters.live.get(self.superblock.master.as_deref()?)
    }

    fn identity(&self) -> Identity {
        let kind = self.superblock.master.as_deref().and_then(|id| self.image.master(id));
        let known =
            kind.map_or(Identity::Device, |master| master.kind.identity(self.superblock.options.mount_type));
        self.wishes.identity.unwrap_or(known)
    }

    fn old(&self, device: Device, mounts: &[usize]) -> Result<Old, PlanError> {
        let places: HashSet<&TextPath> =
            mounts.iter().map(|&index| &self.image.mounts[index].mount_point).collect();
        let there = self.there.of.get(&device).map_or(&[][..], Vec::as_slice);
        if let Some(other) = there.iter().find(|mount| !places.contains(&mount.mount_point)) {
            return Err(PlanError::AlsoMounted { device, mount_point: other.mount_point.clone() });
        }
        let content = there.iter().filter_map(|mount| self.there.content.get(&mount.id)).flatten();
        Ok(Old {
            device,
            mounts: there.iter().map(|mount| OldMount::of(mount)).collect(),
            content: content
                .map(|content| Content { id: content.id, mount_point: content.mount_point.clone() })
                .collect(),
        })
    }

    /// What a killed restore moved away from these mounts.
    fn parked(&self, mounts: &[usize]) -> Vec<Parked> {
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
            return Err(PlanError::NeedsInode { mount_point: mount_point(), master: self.master_name() });
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

/// Whether the device numbers of new superblocks are free, or become so.
fn check_devices(image: &Image, items: &[Item], everywhere: &Numbers) -> Result<(), PlanError> {
    let freed: HashSet<Device> = items.iter().filter_map(|item| Some(item.old.as_ref()?.device)).collect();
    for (superblock, item) in image.superblocks.iter().zip(items) {
        let device = superblock.device;
        let wanted = item.action.makes() && item.keeps_device && !freed.contains(&device);
        if let Some((device, what)) =
            item.old.as_ref().and_then(|old| everywhere.stay.get_key_value(&old.device))
        {
            return Err(PlanError::Elsewhere { device: *device, what: what.clone() });
        }
        if let Some(what) = everywhere.taken.get(&device).filter(|_| wanted) {
            return Err(PlanError::DeviceTaken { device, what: what.clone() });
        }
    }
    Ok(())
}

/// An autofs mount that is not in the image must not go with one that is replaced.
fn check_nothing_foreign(image: &Image, items: &[Item], there: &There<'_>) -> Result<(), PlanError> {
    let known: HashSet<&TextPath> = image.mounts.iter().map(|mount| &mount.mount_point).collect();
    let replaced: HashMap<u64, Device> = items
        .iter()
        .filter_map(|item| item.old.as_ref())
        .flat_map(|old| there.of.get(&old.device).into_iter().flatten().map(|mount| (mount.id, old.device)))
        .collect();
    for mount in &there.report.mounts {
        if let Some(&device) = replaced.get(&mount.parent).filter(|_| !known.contains(&mount.mount_point)) {
            return Err(PlanError::Foreign { device, mount_point: mount.mount_point.clone() });
        }
    }
    Ok(())
}
