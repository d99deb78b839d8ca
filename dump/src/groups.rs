//! Stage 4: the process groups of the superblocks, as the target numbers them.
//!
//! A report has the numbers of its writer. Those of living processes are translated by /proc, but a
//! group can outlive all its members here. The kernel writes `pgrp=` for whoever reads mountinfo, so a
//! child that is born in the target's pid namespace reads it there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use autofs_cr_common::channel::Channel;
use autofs_cr_common::child::Child;
use autofs_cr_common::doc::Report;
use autofs_cr_common::model::{Device, Pid, State, SuperOptions};
use autofs_cr_common::proc::Proc;
use autofs_cr_common::proc::mountinfo::lines;

use crate::collect::Collected;

/// The process groups of the superblocks, in the target's pid namespace, where they are needed.
pub type Groups = HashMap<Device, Pid>;

/// How many groups one message has.
const BATCH: usize = 4096;
const DEADLINE: Duration = Duration::from_secs(10);

/// Finds the groups of the superblocks whose master does not tell them.
pub fn find(proc: &Proc, collected: &Collected) -> Result<Groups> {
    let needed = needed(&collected.report);
    if needed.is_empty() {
        return Ok(Groups::default());
    }
    let own = proc.this().and_then(|dir| dir.pid_namespace()).context("cannot read the own pid namespace")?;
    if own == collected.target.pid_namespace() {
        return Ok(needed.into_iter().collect());
    }
    let mut translated =
        in_target(proc, collected).context("cannot read the process groups of the mounts")?;
    let wanted: HashMap<Device, Pid> = needed.into_iter().collect();
    translated.retain(|device, _| wanted.contains_key(device));
    Ok(translated)
}

fn needed(report: &Report) -> Vec<(Device, Pid)> {
    let superblocks = report.superblocks.iter();
    superblocks
        .filter(|superblock| matches!(superblock.state, State::Orphaned | State::Delegated))
        .filter_map(|superblock| Some((superblock.device, superblock.pgrp?)))
        .collect()
}

fn in_target(proc: &Proc, collected: &Collected) -> Result<Groups> {
    let dir = proc.process(collected.target.pid())?;
    collected.target.enter_pids()?;
    let child = Child::spawn(|channel| {
        let text = dir.mountinfo()?;
        tell(&channel, &text)
    })?;
    let mut groups = Groups::new();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (batch, _): (Vec<(Device, Pid)>, _) = child.receive(Some(deadline))?;
        if batch.is_empty() {
            return Ok(groups);
        }
        groups.extend(batch);
    }
}

fn tell(channel: &Channel, mountinfo: &[u8]) -> Result<()> {
    let group = |line: autofs_cr_common::proc::mountinfo::Line<'_>| {
        let options = SuperOptions::parse(std::str::from_utf8(line.super_options).ok()?).ok()?;
        Some((line.device()?, Pid::new(options.pgrp)?))
    };
    let lines = lines(mountinfo).filter_map(Result::ok).filter(|line| line.is_autofs());
    let groups: Vec<(Device, Pid)> = lines.filter_map(group).collect();
    for batch in groups.chunks(BATCH) {
        channel.send(&batch, &[])?;
    }
    channel.send(&[(); 0], &[])?;
    Ok(())
}
