//! The plan: what is done with each superblock of the image, decided before the first change from the
//! image, a report of what is there, and the masters that live. It changes nothing by itself.
//!
//! | file | what it has |
//! |---|---|
//! | `there.rs` | what is there, by what the planner asks for |
//! | `planner.rs` | the plan for one superblock |
//! | `undone.rs` | the same, to go back |
//! | `wishes.rs` | what the user asked for |
//! | `numbers.rs` | which device numbers are free, or become so |
//! | `error.rs` | why there is no plan |

mod error;
mod numbers;
mod planner;
mod there;
mod undone;
mod wishes;

use std::collections::{HashMap, HashSet};
use std::fmt;

use autofs_cr_common::doc::image::{Directory, Image};
use autofs_cr_common::doc::report::{self, Report};
use autofs_cr_common::model::{Device, Pid, State, TextPath};

use crate::before::Before;
use crate::layout::{self, Layout};
use crate::live::Masters;
use crate::parked::{Cover, Parked, Parking};
pub use error::PlanError;
pub use numbers::{Elsewhere, Numbers, OnIt, Seen, Who};
use planner::Planner;
use there::There;
pub use wishes::Wishes;

/// What is done with one superblock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// It is there, and as it should be.
    #[default]
    Keep,
    /// It is there; its master's fixup sets its pipe.
    Adopt,
    /// It is made connected to its living master.
    Connect,
    /// It is made, and connected by its master's fixup.
    Create,
    /// It is made catatonic, as it was.
    Leave,
    /// To go back: it was made where nothing was, and is taken away.
    Remove,
    /// To go back: it was adopted, and is cut off again as it was, with the timeout that it had.
    Reset,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "keep",
            Self::Adopt => "adopt",
            Self::Connect => "connect",
            Self::Create => "create",
            Self::Leave => "leave",
            Self::Remove => "remove",
            Self::Reset => "reset",
        })
    }
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Keep, Self::Adopt, Self::Connect, Self::Create, Self::Leave, Self::Remove, Self::Reset];

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
#[derive(Debug, Default)]
pub struct Item {
    /// What is done.
    pub action: Action,
    /// The superblock that has to go before.
    pub old: Option<Old>,
    /// The mounts of the image that show it, by index.
    pub mounts: Vec<usize>,
    /// Its device number has to be the one of the image.
    pub keeps_device: bool,
    /// Nothing was in its place before the first restore that worked on it.
    pub was_free: bool,
    /// What a restore that was killed moved away from it.
    pub parked: Vec<Parked>,
    /// What a restore that was killed covered it with.
    pub covers: Vec<Cover>,
    /// The superblock that stays in its place, if that need not be the one of the image.
    pub there: Option<Device>,
    /// Directories that are needed for what is mounted on it now, and that the image does not have.
    pub missing: Vec<Directory>,
    /// The process group of its living master, in the target's pid namespace.
    pub group: Option<Pid>,
    /// What the user should know of it.
    pub note: Option<String>,
}

impl Item {
    /// Whether it is only replaced when its master's fixup is there, so that nobody waits for the
    /// user to start one.
    pub fn is_held(&self) -> bool {
        self.action == Action::Create && self.old.is_some()
    }

    /// Whether a restore that was killed left something of it out of its place.
    pub fn is_unsettled(&self) -> bool {
        !self.parked.is_empty() || !self.covers.is_empty()
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
#[derive(Clone, Debug)]
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
    /// The device numbers of the image, which nothing else may take.
    pub wanted: HashSet<Device>,
    /// For each mount of the image, the item that it shows.
    pub item_of: Vec<usize>,
    /// For each mount of the image, the one of the image that it is nested in, if any.
    pub parents: Vec<Option<usize>>,
    /// Items that are made together, as their mounts are nested, each in the order of the image's mounts.
    pub groups: Vec<Vec<usize>>,
    /// The work places of restores that were killed: to be taken away.
    pub parkings: Vec<Parking>,
    /// That of them which this restore goes on in, as it is of the same image.
    pub goes_on_in: Option<usize>,
    /// What the user asked for.
    pub wishes: Wishes,
    /// What was there before the first change.
    pub before: Before,
    /// What the user should know of it.
    pub notes: Vec<String>,
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
    let goes_on_in = same_image(parkings, &image);
    let earlier = Earlier::of(parkings, goes_on_in);
    for superblock in &image.superblocks {
        let planner = Planner {
            image: &image,
            layout: &layout,
            there: &there,
            parkings,
            earlier: &earlier,
            masters,
            wishes,
            superblock,
        };
        let mut item = planner.item(layout.mounts_of(superblock.device))?;
        planner.add_left_behind(&mut item);
        notes.extend(item.note.clone());
        items.push(item);
        if there.asked.contains(&superblock.device) {
            notes.push(format!(
                "requests wait unread on superblock {}: who made them gets an error if it is replaced or adopted",
                superblock.device
            ));
        }
    }
    numbers::check(&image, &items, everywhere, &there)?;
    check_nothing_foreign(&image, &items, &there)?;
    let moved = parkings.iter().flat_map(|parking| &parking.mounts).filter(|parked| !parked.is_in_place());
    notes.extend(moved.map(|parked| match layout.around(&image, &parked.was_at) {
        Some(_) => format!(
            "{} is moved back from {}, where a killed restore left it",
            parked.was_at, parked.mount_point
        ),
        None => format!(
            "{} stands at {}, where a killed restore left it: move it back with mount --move",
            parked.was_at, parked.mount_point
        ),
    }));
    for (superblock, item) in image.superblocks.iter_mut().zip(&items) {
        superblock.directories.extend(item.missing.iter().cloned());
    }
    let wanted = image.superblocks.iter().map(|superblock| superblock.device).collect();
    let item_of = layout::item_of(&image, &items);
    let groups = layout.groups(&items, &item_of);
    let before = before(&image, &items, &there, &earlier);
    let parents = layout.parents;
    let parkings = parkings.to_vec();
    Ok(Plan { image, items, wanted, item_of, parents, groups, parkings, goes_on_in, wishes, before, notes })
}

/// The work place of a restore with the same image. Its record was made before the first change, so what is to be done is
/// gone on with there. The first one, if there are more.
fn same_image(parkings: &[Parking], image: &Image) -> Option<usize> {
    let places = parkings.iter().enumerate();
    let same = places.filter(|(_, parking)| !parking.is_finished && parking.image.as_ref() == Some(image));
    same.min_by_key(|(_, parking)| parking.id).map(|(index, _)| index)
}

/// What restores that were killed wrote down.
struct Earlier {
    before: Before,
    /// It is of the same image: it knows all that was there.
    is_whole: bool,
}

impl Earlier {
    fn of(parkings: &[Parking], same_image: Option<usize>) -> Self {
        if let Some(index) = same_image {
            return Self { before: parkings[index].before.clone(), is_whole: true };
        }
        let mut before = Before::default();
        parkings.iter().for_each(|parking| before.after(&parking.before));
        Self { before, is_whole: false }
    }
}

/// What was there before this restore, and before the `earlier` ones whose work it goes on with.
fn before(image: &Image, items: &[Item], there: &There<'_>, earlier: &Earlier) -> Before {
    if earlier.is_whole {
        return earlier.before.clone();
    }
    let mut before = Before::default();
    for (superblock, item) in image.superblocks.iter().zip(items) {
        if item.was_free {
            before.free.insert(superblock.device);
        }
        let adopted = there.report.superblock(superblock.device).filter(|_| item.action == Action::Adopt);
        before.timeouts.extend(adopted.map(|there| (superblock.device, there.options.timeout())));
        let old = item.old.as_ref().and_then(|old| there.report.superblock(old.device));
        let is_cut_off =
            |there: &report::Superblock| matches!(there.state, State::Catatonic | State::Orphaned);
        if adopted.or(old).is_some_and(is_cut_off) {
            before.cut_off.insert(superblock.device);
        }
    }
    before.after(&earlier.before);
    before
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
