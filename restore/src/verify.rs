//! Asking the kernel what came of it, after the fixups say that they are done.

use std::collections::{HashMap, HashSet};

use autofs_cr_common::model::{Device, KernelPipe, OptionsReader, TextPath};
use autofs_cr_common::proc::{ProcessDir, mountinfo};

use crate::live::{Masters, ReadPipe};
use crate::plan::{Action, Item, Plan};

/// What mountinfo says of the autofs mounts that are there: the pipes of their superblocks.
#[derive(Debug, Default)]
pub struct Found<'p> {
    by_device: HashMap<Device, KernelPipe>,
    /// The last one at each place where the device number says nothing, as what is made is the newest there.
    by_mount_point: HashMap<&'p [u8], KernelPipe>,
}

/// Reads it, as far as it matters for the plan.
pub fn read<'p>(process: &ProcessDir, plan: &'p Plan) -> anyhow::Result<Found<'p>> {
    let text = process.mountinfo()?;
    let of_any_number = plan.items.iter().filter(|item| !item.keeps_device);
    let places = of_any_number.filter_map(|item| first_place(plan, item));
    let places: HashSet<&[u8]> = places.map(TextPath::as_bytes).collect();
    let mut found = Found::default();
    let mut reader = OptionsReader::default();
    for line in mountinfo::lines(&text) {
        let line = line?;
        let Some(device) = line.device().filter(|_| line.is_autofs()) else { continue };
        let pipe = reader.read(line.super_options)?.pipe;
        found.by_device.insert(device, pipe);
        if let Some(place) = places.get(&*mountinfo::unescape(line.mount_point)) {
            found.by_mount_point.insert(place, pipe);
        }
    }
    Ok(found)
}

fn first_place<'p>(plan: &'p Plan, item: &Item) -> Option<&'p TextPath> {
    item.mounts.first().map(|&mount| &plan.image.mounts[mount].mount_point)
}

/// What is not as planned, a sentence each. A superblock that was made with any number is known by its
/// first mount point.
pub fn problems(plan: &Plan, masters: &Masters, found: &Found<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    for (item, superblock) in plan.items.iter().zip(&plan.image.superblocks) {
        let place = first_place(plan, item);
        let pipe = match place {
            Some(place) if !item.keeps_device => found.by_mount_point.get(place.as_bytes()),
            _ => found.by_device.get(&superblock.device),
        };
        let wrong = match pipe {
            _ if item.action == Action::Remove => None,
            None => Some("is not mounted"),
            Some(pipe) => wrong_pipe(item.action, *pipe, masters.pipe_of(superblock)),
        };
        if let Some(wrong) = wrong {
            let place = place.map(ToString::to_string).unwrap_or_default();
            problems.push(format!("{place} ({}) {wrong}", superblock.device));
        }
    }
    problems
}

/// `expected` is the pipe of a living master.
fn wrong_pipe(action: Action, pipe: KernelPipe, expected: Option<&ReadPipe>) -> Option<&'static str> {
    match (action, pipe) {
        (Action::Keep | Action::Leave | Action::Remove | Action::Reset, _) => None,
        (_, KernelPipe::Inode(inode)) => {
            let is_right = expected.is_none_or(|expected| expected.write_end.inode == inode);
            (!is_right).then_some("is connected to another pipe of its master")
        }
        (_, KernelPipe::None) => Some("is catatonic"),
        (_, KernelPipe::NotShown) => {
            Some("cannot be checked: this kernel shows no pipe_ino (CONFIG_CHECKPOINT_RESTORE is off)")
        }
    }
}
