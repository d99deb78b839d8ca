//! Stage 5: the image, as a pure function of what the stages before found.

mod inferred;
mod masters;
mod mounts;

use std::collections::HashMap;

use autofs_cr_common::doc::image::{Directory, End, Mode, Superblock, Symlink};
use autofs_cr_common::doc::report;
use autofs_cr_common::doc::{Format, Image, Report};
use autofs_cr_common::model::{Device, Pid, State};

use crate::contents::{Contents, Inside};
use crate::groups::Groups;

/// The permission bits of a directory that is covered by a mount, so that they cannot be seen:
/// automount(8) makes its directories with these.
const COVERED_MODE: u32 = 0o555;

/// What in a report does not fit together.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A superblock that is served has no master.
    #[error("superblock {0} of the report is {1}, but its master is not there")]
    NoMaster(Device, State),
    /// A superblock that is not catatonic has no pipe.
    #[error("superblock {0} of the report is {1}, but its pipe is not there")]
    NoPipe(Device, State),
}

/// Builds the image.
pub fn build(report: &Report, contents: &Contents, groups: &Groups) -> Result<Image, BuildError> {
    let inferred = inferred::directories(report);
    let masters = masters::Masters::of(report, groups)?;
    let nothing = Inside::default();
    let superblock = |found: &report::Superblock| {
        let mut inside = contents.get(&found.device).unwrap_or(&nothing).clone();
        for path in inferred.get(&found.device).into_iter().flatten() {
            inside.directories.entry(path.clone()).or_insert(None);
        }
        superblock(report, found, inside, &masters, groups)
    };
    let superblocks = report.superblocks.iter().map(superblock).collect();
    let masters = masters.into_list(report);
    Ok(Image { format: Format::CURRENT, masters, superblocks, mounts: mounts::ordered(report) })
}

fn superblock(
    report: &Report,
    found: &report::Superblock,
    inside: Inside,
    masters: &masters::Masters,
    groups: &Groups,
) -> Superblock {
    let is_catatonic = found.state == State::Catatonic;
    let master = found.master.and_then(|pid| report.process(pid));
    Superblock {
        device: found.device,
        options: found.options.clone(),
        state: found.state,
        master: masters.id_of(found.device).map(str::to_owned),
        pipe: found.pipe.filter(|_| !is_catatonic),
        pgrp: other_group(found, master, groups),
        inode: inside.inode,
        directories: inside.directories.into_iter().map(directory).collect(),
        symlinks: inside.symlinks.into_iter().map(|(path, target)| Symlink { path, target }).collect(),
        control_fds: master.map_or_else(Vec::new, |master| control_fds(master, found.device)),
    }
}

fn directory((path, mode): (autofs_cr_common::model::TextPath, Option<u32>)) -> Directory {
    Directory { path, mode: Mode(mode.unwrap_or(COVERED_MODE)) }
}

/// The group that may walk freely, where it is not the master's own.
fn other_group(found: &report::Superblock, master: Option<&report::Process>, groups: &Groups) -> Option<Pid> {
    match found.state {
        State::Delegated => {
            let group = groups.get(&found.device).copied();
            group.filter(|_| group != master.and_then(report::Process::own_group))
        }
        // A dead master's group is with the master.
        State::Orphaned | State::Connected | State::Catatonic | State::Unknown => None,
    }
}

fn control_fds(master: &report::Process, device: Device) -> Vec<End> {
    let on_it = master.control_fds.iter().filter(|control| control.device == device);
    on_it.map(|control| End { fd: control.fd, flags: control.flags }).collect()
}

/// Numbers things from 1, in the order in which they are asked for.
#[derive(Default)]
struct Numbering(HashMap<u32, u32>);

impl Numbering {
    fn number(&mut self, old: u32) -> u32 {
        let next = self.0.len() as u32 + 1;
        *self.0.entry(old).or_insert(next)
    }
}
