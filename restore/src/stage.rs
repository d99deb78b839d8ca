//! Publishing what the fixups need: the segment and the stage document.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use autofs_cr_common::doc::image::{End, Image, Master};
use autofs_cr_common::doc::stage::{Stage, Waiting};
use autofs_cr_common::doc::{self, Format, Output};
use autofs_cr_common::model::{FdFlags, Pid};
use autofs_cr_common::proc::Proc;
use autofs_cr_common::segment::{self, Locator, Owner, Segment};

use crate::live::Masters;
use crate::plan::Plan;

/// The segment of a restore, and which of its superblocks is which item of the plan.
#[derive(Debug)]
pub struct Published {
    /// The segment. Its name is taken away when this is dropped.
    pub segment: Owner,
    /// The same once more, for threads that may outlive the work.
    pub watch: Arc<Segment>,
    /// The item of the plan, by the index in the segment.
    pub items: Vec<usize>,
}

/// Makes the segment, if any superblock waits for a fixup.
pub fn publish(plan: &Plan, masters: &Masters, timeout: Duration) -> anyhow::Result<Option<Published>> {
    let items: Vec<usize> =
        (0..plan.items.len()).filter(|&item| plan.items[item].action.needs_fixup()).collect();
    if items.is_empty() {
        return Ok(None);
    }
    let start_time =
        Proc::open().and_then(|proc| proc.this()?.stat()).context("cannot read /proc/self/stat")?;
    let coordinator = segment::Process { pid: Pid::this(), start_time: start_time.start_time };
    let numbers: HashMap<&str, usize> =
        plan.image.masters.iter().enumerate().map(|(index, master)| (master.id.as_str(), index)).collect();
    let superblocks = items.iter().map(|&item| superblock(plan, item, &numbers)).collect();
    let controls = control_fds(&plan.image);
    let of = |master: &Master| controls.get(&*master.id).map_or(&[][..], Vec::as_slice);
    let described = plan.image.masters.iter().map(|master| describe(master, masters, of(master))).collect();
    let published = segment::Plan { coordinator, timeout, masters: described, superblocks };
    let segment = Segment::create(&published)?;
    let watch = Segment::open(&Locator::Name(segment.name().clone()))?;
    Ok(Some(Published { segment, watch: Arc::new(watch), items }))
}

fn superblock(plan: &Plan, item: usize, numbers: &HashMap<&str, usize>) -> segment::Superblock {
    let superblock = &plan.image.superblocks[item];
    let master = superblock.master.as_deref().and_then(|id| numbers.get(id)).copied().unwrap_or_default();
    let pipes = &plan.image.masters[master].pipes;
    let pipe = pipes.iter().position(|pipe| Some(pipe.inode) == superblock.pipe).unwrap_or_default();
    let mount = plan.items[item].mounts.first().map(|&mount| plan.image.mounts[mount].mount_point.clone());
    segment::Superblock {
        device: superblock.device,
        mount_type: superblock.options.mount_type,
        master,
        pipe,
        mount_point: mount.unwrap_or_default(),
        control_fds: superblock.control_fds.clone(),
    }
}

fn describe(master: &Master, masters: &Masters, control_fds: &[End]) -> segment::Master {
    let live = masters.live.get(&master.id);
    let mut chosen = read_ends(master, control_fds);
    if let Some(live) = live {
        for (pipe, read_end) in master.pipes.iter().zip(&mut chosen) {
            read_end.fd = live.pipes.get(&pipe.inode).map_or(read_end.fd, |pipe| pipe.read_end);
        }
    }
    let pipes = master.pipes.iter().zip(chosen);
    segment::Master {
        id: master.id.clone(),
        kind: master.kind,
        pid: master.pid.filter(|_| live.is_some()),
        process: live.map(|live| segment::Process { pid: live.pid, start_time: live.start_time }),
        pipes: pipes.map(|(pipe, read_end)| segment::Pipe { read_end, write_end: pipe.write_end }).collect(),
    }
}

/// The control fds of each master, by its id.
fn control_fds(image: &Image) -> HashMap<&str, Vec<End>> {
    let mut controls: HashMap<&str, Vec<End>> = HashMap::new();
    for superblock in &image.superblocks {
        let master = superblock.master.as_deref().unwrap_or_default();
        controls.entry(master).or_default().extend(&superblock.control_fds);
    }
    controls
}

/// The numbers of the read ends. For a pipe that had no reader when the image was made, the lowest number
/// from 3 on that the master has no other use for.
fn read_ends(master: &Master, control_fds: &[End]) -> Vec<End> {
    let known = master.pipes.iter().flat_map(|pipe| pipe.read_end.iter().chain(&pipe.write_end));
    let used: HashSet<i32> = known.chain(control_fds).map(|end| end.fd).collect();
    let mut free = (3..).filter(|fd| !used.contains(fd)).map(|fd| End { fd, flags: FdFlags::default() });
    master.pipes.iter().filter_map(|pipe| pipe.read_end.or_else(|| free.next())).collect()
}

/// Writes the stage document.
pub fn announce(
    plan: &Plan,
    masters: &Masters,
    published: Option<&Published>,
    out: Output,
) -> anyhow::Result<()> {
    let mut waits: HashMap<&str, usize> = HashMap::new();
    for (item, superblock) in plan.items.iter().zip(&plan.image.superblocks) {
        if item.action.needs_fixup() {
            *waits.entry(superblock.master.as_deref().unwrap_or_default()).or_default() += 1;
        }
    }
    let waiting = plan.image.masters.iter().map(|master| Waiting {
        id: master.id.clone(),
        command: master.command.clone(),
        pid: masters.live.get(&master.id).map(|live| live.pid),
        superblocks: waits.get(&*master.id).copied().unwrap_or_default(),
    });
    let stage = Stage {
        format: Format::CURRENT,
        segment: published.map(|published| published.segment.address()),
        masters: waiting.filter(|waiting| waiting.superblocks > 0).collect(),
    };
    write(&stage, out).context("cannot write the stage document")
}

fn write(stage: &Stage, mut out: Output) -> anyhow::Result<()> {
    doc::write(stage, &mut out)?;
    out.flush()?;
    out.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use autofs_cr_common::doc::image::Pipe;
    use autofs_cr_common::masters::MasterKind;
    use autofs_cr_common::model::TextPath;

    use super::*;

    fn end(fd: i32) -> End {
        End { fd, flags: FdFlags::default() }
    }

    fn master(ends: impl Iterator<Item = Option<i32>>) -> Master {
        let pipe = |(inode, fd): (u64, Option<i32>)| Pipe {
            inode,
            read_end: fd.map(end),
            write_end: None,
            requests: Vec::new(),
        };
        Master {
            id: "m".into(),
            kind: MasterKind::Unknown,
            command: TextPath::default(),
            pid: None,
            pgrp: None,
            session: None,
            pipes: (1..).zip(ends).map(pipe).collect(),
        }
    }

    #[test]
    fn a_chosen_number_is_no_one_elses() {
        let master = master([None, Some(4), None, Some(3)].into_iter());
        let chosen: Vec<i32> = read_ends(&master, &[end(5), end(7)]).iter().map(|end| end.fd).collect();
        assert_eq!(chosen, [6, 4, 8, 3]);
    }

    #[test]
    fn many_pipes_without_a_reader_take_no_long_time() {
        let started = Instant::now();
        assert_eq!(read_ends(&master((0..100_000).map(|_| None)), &[]).len(), 100_000);
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
