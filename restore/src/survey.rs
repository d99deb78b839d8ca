//! What is there: the target, a report of its autofs mounts, the masters that live, and which device
//! numbers are taken on the host.

use std::collections::{HashMap, HashSet};

use anyhow::Context;
use autofs_cr_common::doc::{Format, Image, Report};
use autofs_cr_common::model::{Device, Pid};
use autofs_cr_common::proc::{Proc, mountinfo};
use autofs_cr_common::scan::{Scope, scan};
use autofs_cr_common::target::Target;

use crate::live::{self, Masters};
use crate::plan::Taken;

/// What is there.
#[derive(Debug)]
pub struct Survey {
    /// The process whose namespaces are worked in; none if they are fresh.
    pub target: Option<Target>,
    /// The autofs mounts in the target's mount namespace.
    pub report: Report,
    /// The masters that live.
    pub masters: Masters,
    /// The device numbers that are taken.
    pub taken: Taken,
}

/// Looks at the namespaces of process `pid`.
pub fn of_process(proc: &Proc, pid: Pid, image: &Image) -> anyhow::Result<Survey> {
    let target = Target::open(pid)?;
    let report = scan(proc, Scope::Of(pid))?;
    let masters = live::find(proc, image, target.pid_namespace()).context("cannot look for the masters")?;
    let taken = taken_devices(proc, image)?;
    Ok(Survey { target: Some(target), report, masters, taken })
}

/// Looks at fresh namespaces: nothing is there, but device numbers may be taken.
pub fn of_fresh(proc: &Proc, image: &Image) -> anyhow::Result<Survey> {
    let report = Report {
        format: Format::CURRENT,
        hidden: Vec::new(),
        namespaces: Vec::new(),
        processes: Vec::new(),
        superblocks: Vec::new(),
        mounts: Vec::new(),
        content: Vec::new(),
        requests: Vec::new(),
    };
    Ok(Survey { target: None, report, masters: Masters::default(), taken: taken_devices(proc, image)? })
}

/// Which of the image's device numbers any mount has, in any mount namespace that can be seen.
fn taken_devices(proc: &Proc, image: &Image) -> anyhow::Result<Taken> {
    let wanted: HashSet<Device> = image.superblocks.iter().map(|superblock| superblock.device).collect();
    let mut taken = HashMap::new();
    let mut seen = HashSet::new();
    for pid in proc.pids().context("cannot list the processes")? {
        let Ok(process) = proc.process(pid) else { continue };
        let Ok(namespace) = process.mount_namespace() else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        // A process that ended meanwhile is the only one through which its namespace was seen.
        let Ok(text) = process.mountinfo() else { continue };
        for line in mountinfo::lines(&text).flatten() {
            if let Some(device) = line.device().filter(|device| wanted.contains(device)) {
                let place = String::from_utf8_lossy(&mountinfo::unescape(line.mount_point)).into_owned();
                taken.entry(device).or_insert_with(|| format!("{place} (seen by process {pid})"));
            }
        }
    }
    Ok(Taken(taken))
}
