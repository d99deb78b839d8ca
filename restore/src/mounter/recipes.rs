//! What the superblocks of a plan are made with.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, anyhow};
use autofs_cr_common::doc::image::{Mount, Superblock};
use autofs_cr_common::model::Pid;
use rustix::mount::MountAttrFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{getgid, getuid};

use super::superblock::Recipe;
use crate::attributes;
use crate::live::Masters;
use crate::plan::{Action, Plan};

/// All that recipes are made from.
#[derive(Debug)]
pub struct Recipes<'a> {
    plan: &'a Plan,
    masters: &'a Masters,
    /// The pipe of superblocks that are not connected yet.
    write_end: OwnedFd,
    _read_end: OwnedFd,
    /// The process group of the mounter.
    pub group: Pid,
    /// Its user and group.
    pub maker: (u32, u32),
}

impl<'a> Recipes<'a> {
    /// With a pipe that nobody reads.
    pub fn new(plan: &'a Plan, masters: &'a Masters) -> anyhow::Result<Self> {
        let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let group = Pid::from_nix(nix::unistd::getpgrp())
            .context("the process group of the mounter is not visible in its namespace")?;
        let maker = (getuid().as_raw(), getgid().as_raw());
        Ok(Self { plan, masters, write_end, _read_end: read_end, group, maker })
    }

    /// That of one item, by `action`, which is the planned one or a substitute for it.
    pub fn of(&self, item: usize, action: Action) -> anyhow::Result<Recipe<'_>> {
        let superblock = &self.plan.image.superblocks[item];
        let planned = &self.plan.items[item];
        let &first = planned.mounts.first().context("no mount shows it")?;
        let mount = &self.plan.image.mounts[first];
        let (pipe, group) = match action {
            Action::Connect => (write_end_of(self.masters, superblock)?, planned.group.unwrap_or(self.group)),
            _ => (self.write_end.as_fd(), self.group),
        };
        Ok(Recipe {
            options: &superblock.options,
            source: &mount.source,
            pipe,
            group,
            // A read-only mount takes no directories: that comes when it is attached.
            attributes: attributes_of(mount) - MountAttrFlags::MOUNT_ATTR_RDONLY,
            maker: self.maker,
        })
    }
}

/// The attributes of a mount.
pub fn attributes_of(mount: &Mount) -> MountAttrFlags {
    // Every option was parsed when the image was checked.
    attributes::parse(&mount.options).unwrap_or(MountAttrFlags::empty())
}

/// A write end of the pipe that the living master of a superblock reads.
fn write_end_of<'m>(masters: &'m Masters, superblock: &Superblock) -> anyhow::Result<BorrowedFd<'m>> {
    masters
        .pipe_of(superblock)
        .map(|pipe| pipe.write_end.fd.as_fd())
        .ok_or_else(|| anyhow!("its master does not live"))
}
