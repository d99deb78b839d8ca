//! Connecting masters that live to their mounts again, as a restore has it done: through a segment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Context;
use autofs_cr_common::doc::image::End;
use autofs_cr_common::doc::report;
use autofs_cr_common::model::{Device, Pid};
use autofs_cr_common::segment::{Master, Pipe, Plan, Process, Progress, Segment, Superblock};

use super::World;
use super::hung::Hung;
use crate::mounts::Mounts;
use crate::side_by_side::Work;

/// Has masters make the pipes of these superblocks anew; those that are connected then. What went wrong with
/// others is told.
pub fn reconnect(world: &World, hung: &[&Hung<'_>]) -> anyhow::Result<BTreeSet<Device>> {
    let plan = plan(world, hung)?;
    if plan.superblocks.is_empty() {
        return Ok(BTreeSet::new());
    }
    let owner = Segment::create(&plan).context("cannot make a segment")?;
    owner.advance_all(0..plan.superblocks.len(), Progress::Created)?;
    owner.hide().context("cannot take the name of the segment away")?;
    let work =
        Work { segment: &owner, device: &world.device, timeout: Some(plan.timeout), voice: world.voice };
    work.run(&(0..plan.masters.len()).collect::<Vec<_>>())?;
    let is_connected = |index: &usize| owner.progress(*index) == Ok(Progress::Connected);
    let connected = (0..plan.superblocks.len()).filter(is_connected);
    Ok(connected.map(|index| plan.superblocks[index].device).collect())
}

fn plan(world: &World, hung: &[&Hung<'_>]) -> anyhow::Result<Plan> {
    let this = world.proc.this().and_then(|this| this.stat()).context("cannot look at this process")?;
    let mut plan = Plan {
        coordinator: Process { pid: Pid::this(), start_time: this.start_time },
        timeout: world.end().saturating_duration_since(Instant::now()),
        masters: Vec::new(),
        superblocks: Vec::new(),
    };
    let mut masters: BTreeMap<Pid, (usize, Option<Mounts>)> = BTreeMap::new();
    for one in hung {
        let (Some(master), Some(end)) = (one.master(), one.read_end()) else { continue };
        let (index, mounts) = masters.entry(master.pid).or_insert_with(|| {
            plan.masters.push(described(master));
            let mounts = world.proc.process(master.pid).map_err(anyhow::Error::from);
            (plan.masters.len() - 1, mounts.and_then(|dir| Mounts::read(&dir)).ok())
        });
        let device = one.superblock.device;
        let seen = mounts.as_ref().and_then(|mounts| mounts.place_of(device, one.place()));
        plan.superblocks.push(Superblock {
            device,
            mount_type: one.superblock.options.mount_type,
            master: *index,
            pipe: pipe(&mut plan.masters[*index], end),
            mount_point: seen.unwrap_or_else(|| one.place().clone()),
            control_fds: control_fds(master, one),
        });
    }
    Ok(plan)
}

fn described(master: &report::Process) -> Master {
    Master {
        id: format!("{}-{}", master.command, master.pid),
        kind: master.kind,
        pid: master.own_id(),
        process: Some(Process { pid: master.pid, start_time: master.start_time }),
        pipes: Vec::new(),
    }
}

/// The index of a pipe of a master.
fn pipe(master: &mut Master, end: &report::PipeEnd) -> usize {
    let known = master.pipes.iter().position(|pipe| pipe.read_end.fd == end.fd);
    known.unwrap_or_else(|| {
        master.pipes.push(Pipe { read_end: End { fd: end.fd, flags: end.flags }, write_end: None });
        master.pipes.len() - 1
    })
}

fn control_fds(master: &report::Process, one: &Hung<'_>) -> Vec<End> {
    master.control_fds_on(one.superblock.device).map(|end| End { fd: end.fd, flags: end.flags }).collect()
}
