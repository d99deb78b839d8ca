//! Asking the kernel what came of it, after the fixups say that they are done.

use std::collections::HashMap;

use autofs_cr_common::model::{Device, KernelPipe, SuperOptions};
use autofs_cr_common::proc::{ProcessDir, mountinfo};

use crate::live::{Masters, ReadPipe};
use crate::plan::{Action, Plan};

/// What mountinfo says of the autofs mounts that are there: the pipes of their superblocks.
#[derive(Debug, Default)]
pub struct Found {
    by_device: HashMap<Device, KernelPipe>,
    /// The last one at each place, as what is made is the newest there.
    by_mount_point: HashMap<Vec<u8>, KernelPipe>,
}

/// Reads it.
pub fn read(process: &ProcessDir) -> anyhow::Result<Found> {
    let text = process.mountinfo()?;
    let mut found = Found::default();
    for line in mountinfo::lines(&text) {
        let line = line?;
        if let Some(device) = line.device().filter(|_| line.is_autofs()) {
            let options = SuperOptions::parse(&String::from_utf8_lossy(line.super_options))?;
            found.by_device.insert(device, options.pipe);
            found.by_mount_point.insert(mountinfo::unescape(line.mount_point).into_owned(), options.pipe);
        }
    }
    Ok(found)
}

/// What is not as planned, a sentence each. A superblock that was made with any number is known by its
/// first mount point.
pub fn problems(plan: &Plan, masters: &Masters, found: &Found) -> Vec<String> {
    let mut problems = Vec::new();
    for (item, superblock) in plan.items.iter().zip(&plan.image.superblocks) {
        let place = item.mounts.first().map(|&mount| &plan.image.mounts[mount].mount_point);
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
