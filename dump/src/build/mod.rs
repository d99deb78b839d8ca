//! Stage 6: the image, as a pure function of what the stages before found. Most of it can be built
//! while the contents are still being read.

mod inferred;
mod masters;
mod mounts;

use std::collections::HashMap;

use autofs_cr_common::doc::image::{Directory, End, Mode, Superblock, Symlink};
use autofs_cr_common::doc::report;
use autofs_cr_common::doc::{Format, Image, Report};
use autofs_cr_common::model::{Device, Pid, State, TextPath};

use crate::contents::Contents;
use crate::groups::Groups;
use inferred::Inferred;
use masters::Masters;

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

/// An image without what is inside the superblocks.
pub struct Outline {
    image: Image,
    /// Directories of which other mounts tell.
    inferred: Inferred,
}

/// Builds all of the image that the report alone tells.
pub fn outline(report: &Report, groups: &Groups) -> Result<Outline, BuildError> {
    let masters = Masters::of(report, groups)?;
    let superblock = |found| superblock(report, found, &masters, groups);
    let superblocks = report.superblocks.iter().map(superblock).collect();
    let mounts = mounts::ordered(report);
    let image = Image { format: Format::CURRENT, masters: masters.into_list(report), superblocks, mounts };
    Ok(Outline { image, inferred: inferred::directories(report) })
}

impl Outline {
    /// Adds what is inside the superblocks.
    pub fn fill(mut self, mut contents: Contents) -> Image {
        for superblock in &mut self.image.superblocks {
            let mut inside = contents.remove(&superblock.device).unwrap_or_default();
            for path in self.inferred.remove(&superblock.device).unwrap_or_default() {
                inside.directories.entry(path).or_insert(None);
            }
            superblock.inode = inside.inode;
            superblock.directories = inside.directories.into_iter().map(directory).collect();
            superblock.symlinks =
                inside.symlinks.into_iter().map(|(path, target)| Symlink { path, target }).collect();
        }
        self.image
    }
}

fn superblock(report: &Report, found: &report::Superblock, masters: &Masters, groups: &Groups) -> Superblock {
    let is_catatonic = found.state == State::Catatonic;
    let master = found.master.and_then(|pid| report.process(pid));
    Superblock {
        device: found.device,
        options: found.options.clone(),
        state: found.state,
        master: masters.id_of(found.device).map(str::to_owned),
        pipe: found.pipe.filter(|_| !is_catatonic),
        pgrp: other_group(found, master, groups),
        inode: None,
        directories: Vec::new(),
        symlinks: Vec::new(),
        control_fds: master.map_or_else(Vec::new, |master| control_fds(master, found.device)),
    }
}

fn directory((path, mode): (TextPath, Option<u32>)) -> Directory {
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
    master.control_fds_on(device).map(|control| End { fd: control.fd, flags: control.flags }).collect()
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

#[cfg(test)]
mod tests;
