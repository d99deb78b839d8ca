//! Which superblocks are to be freed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::{Access, Mount, PipeEnd, Process, Superblock, Waiter, WaiterRole};
use autofs_cr_common::masters::MasterKind;
use autofs_cr_common::model::{MountType, State, TextPath};
use autofs_cr_common::pipe::WriteEnd;
use autofs_cr_common::proc::Proc;

use crate::live;

/// A superblock that is to be freed, and a mount that shows it.
#[derive(Clone, Copy, Debug)]
pub struct Hung<'a> {
    pub superblock: &'a Superblock,
    mount: &'a Mount,
    report: &'a Report,
}

/// The superblocks at these places; without one, all whose master is gone.
pub fn select<'a>(report: &'a Report, places: &[PathBuf], is_other: bool) -> anyhow::Result<Vec<Hung<'a>>> {
    let mut hung: Vec<Hung<'a>> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut add = |mount: &'a Mount| {
        let superblock = report.superblock(mount.device).context("the report is not complete")?;
        if seen.insert(mount.device) {
            hung.push(Hung { superblock, mount, report });
        }
        anyhow::Ok(superblock.state)
    };
    let is_orphaned = |mount: &&Mount| {
        report.superblock(mount.device).is_some_and(|superblock| superblock.state == State::Orphaned)
    };
    if places.is_empty() {
        // What no path leads to is reached by another mount of the same superblock, if there is one.
        let (buried, free): (Vec<_>, Vec<_>) =
            report.mounts.iter().filter(is_orphaned).partition(|mount| mount.buried);
        free.into_iter().chain(buried).try_for_each(|mount| add(mount).map(drop))?;
    }
    for place in places {
        let path = absolute(place, is_other)?;
        let there: Vec<&Mount> = report.mounts.iter().filter(|mount| *mount.mount_point == *path).collect();
        if there.is_empty() {
            bail!("{}: {}", place.display(), not_there(report, &path));
        }
        for mount in there {
            if add(mount)? == State::Unknown {
                let reason = &report.superblock(mount.device).map(|found| found.reason.as_str());
                bail!("{}: its state is {}", place.display(), reason.unwrap_or("unknown"));
            }
        }
    }
    Ok(hung)
}

/// The path as mountinfo writes it. Links are not followed: nothing is walked.
fn absolute(place: &Path, is_other: bool) -> anyhow::Result<PathBuf> {
    if is_other && !place.is_absolute() {
        bail!("{}: with --pid a place has to be absolute, as from the root of that process", place.display());
    }
    std::path::absolute(place).with_context(|| format!("cannot tell where {} is", place.display()))
}

fn not_there(report: &Report, path: &Path) -> String {
    let around = report.mounts.iter().map(|mount| &mount.mount_point);
    let around = around.filter(|place| path.starts_with(place)).max_by_key(|place| place.as_bytes().len());
    match around {
        Some(place) => format!("it is no autofs mount, but inside of the one at {place}"),
        None => "it is no autofs mount (it has to be written as mountinfo has it, without links)".to_owned(),
    }
}

impl<'a> Hung<'a> {
    /// Where it is, from the root of the namespace's process.
    pub fn place(&self) -> &'a TextPath {
        &self.mount.mount_point
    }

    /// Who waits on it.
    pub fn waiters(&self) -> impl Iterator<Item = &'a Waiter> + use<'a> {
        self.report.waiters_on(self.superblock.device)
    }

    /// Who asked first: while one such waits on a direct mount, a walk of anybody else blocks.
    pub fn first(&self) -> impl Iterator<Item = &'a Waiter> + use<'a> {
        self.waiters().filter(|waiter| waiter.role == WaiterRole::First)
    }

    /// Who asked first on a mount that could not be told, as behind a symbolic link: it may be this one.
    pub fn perhaps_first(&self) -> impl Iterator<Item = &'a Waiter> + use<'a> {
        let waiters = self.report.waiters.iter();
        waiters.filter(|waiter| waiter.role == WaiterRole::First && waiter.device.is_none())
    }

    /// Whether a walk from outside is sure to block: one that waits for an expire could not even be killed.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked_by_first() || (self.is_direct() && self.waiters().any(is_in_expire))
    }

    /// Whether a walk blocks until who asked first is gone.
    pub fn is_blocked_by_first(&self) -> bool {
        self.is_direct() && self.first().next().is_some() && !self.waiters().any(is_in_expire)
    }

    fn is_direct(&self) -> bool {
        self.superblock.options.mount_type != MountType::Indirect
    }

    /// Who serves it.
    pub fn master(&self) -> Option<&'a Process> {
        self.report.process(self.superblock.master?)
    }

    /// Where its master reads its pipe.
    pub fn read_end(&self) -> Option<&'a PipeEnd> {
        let is_it = |end: &&PipeEnd| Some(end.pipe) == self.superblock.pipe && end.access != Access::Write;
        self.master()?.pipe_ends.iter().find(is_it)
    }

    /// The descriptors on it that some process has.
    pub fn descriptors(&self) -> impl Iterator<Item = (&'a Process, i32)> + use<'a> {
        let device = self.superblock.device;
        self.report.processes.iter().flat_map(move |process| {
            let on_it = process.control_fds_on(device);
            on_it.map(move |end| (process, end.fd))
        })
    }

    /// A write end of its pipe, if that is read.
    pub fn write_end(&self, proc: &Proc) -> Option<WriteEnd> {
        let (master, end) = (self.master()?, self.read_end()?);
        live::Process::open(proc, master.pid, master.start_time).ok()?.write_end(end.fd).ok()
    }

    /// The command that has its master start anew, where that is known.
    pub fn restart(&self) -> Option<String> {
        MasterKind::of_source(&self.mount.source).restart(&[self.place()])
    }

    /// Type, place and device, for people.
    pub fn name(&self) -> String {
        format!("{} {} {}", self.superblock.options.mount_type, self.place(), self.superblock.device)
    }
}

fn is_in_expire(waiter: &Waiter) -> bool {
    waiter.role == WaiterRole::Expire
}
