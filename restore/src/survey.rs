//! What is there: the target, a report of its autofs mounts, the masters that live, and which device
//! numbers are taken on the host.

use std::collections::HashSet;

use anyhow::Context;
use autofs_cr_common::doc::{Format, Image, Report};
use autofs_cr_common::model::{Device, Pid};
use autofs_cr_common::proc::Proc;
use autofs_cr_common::scan::{Needs, scan_process};
use autofs_cr_common::target::Target;

use crate::copies::Look;
use crate::live::{self, Masters};
use crate::parked::{self, Parking};
use crate::plan::{Numbers, Who};

/// A target, and what its mounts are: what can be looked at while the image is not known.
#[derive(Debug)]
pub struct Sight {
    target: Target,
    report: Report,
    mountinfo: Vec<u8>,
}

/// Looks at the namespaces of a process.
pub fn look(proc: &Proc, pid: Pid) -> anyhow::Result<Sight> {
    let target = Target::open(pid)?;
    let (report, mountinfo) = scan_process(proc, pid, Needs::IMAGE)?;
    Ok(Sight { target, report, mountinfo })
}

/// What is there.
#[derive(Debug)]
pub struct Survey {
    /// The process whose namespaces are worked in; none if they are fresh.
    pub target: Option<Target>,
    /// The autofs mounts in the target's mount namespace.
    pub report: Report,
    /// What a killed restore left parked.
    pub parkings: Vec<Parking>,
    /// The masters that live.
    pub masters: Masters,
    /// The device numbers that are taken.
    pub numbers: Numbers,
}

/// Looks at all else that matters for an image.
pub fn of_process(proc: &Proc, sight: Sight, image: &Image) -> anyhow::Result<Survey> {
    let Sight { target, report, mountinfo } = sight;
    let masters =
        live::find(proc, image, target.pid_namespace(), &report).context("cannot look for the masters")?;
    let numbers = numbers(proc, image, &report, Some((&target, &mountinfo)))?;
    let parkings =
        parked::find(proc, &target, &mountinfo).context("cannot look for what a killed restore left")?;
    Ok(Survey { target: Some(target), report, parkings, masters, numbers })
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
        waiters: Vec::new(),
        unseen_threads: 0,
        strangers: Vec::new(),
    };
    let numbers = numbers(proc, image, &report, None)?;
    Ok(Survey { target: None, report, parkings: Vec::new(), masters: Masters::default(), numbers })
}

/// Which device numbers any mount has, in any mount namespace that can be seen.
fn numbers(
    proc: &Proc,
    image: &Image,
    report: &Report,
    target: Option<(&Target, &[u8])>,
) -> anyhow::Result<Numbers> {
    let there = report.superblocks.iter().map(|superblock| superblock.device);
    let wanted: HashSet<Device> =
        image.superblocks.iter().map(|superblock| superblock.device).chain(there).collect();
    let mut look = Look::new(&wanted);
    let mut seen = HashSet::new();
    if let Some((target, mountinfo)) = target {
        look.at_target(mountinfo, || who(proc, target.pid()));
        seen.insert(target.mount_namespace());
    }
    for pid in proc.pids().context("cannot list the processes")? {
        let Ok(process) = proc.process(pid) else { continue };
        let Ok(namespace) = process.mount_namespace() else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        // A process that ended meanwhile is the only one through which its namespace was seen.
        let Ok(text) = process.mountinfo() else { continue };
        look.at_other(&text, || who(proc, pid));
    }
    Ok(look.end())
}

/// A process, as messages name it.
fn who(proc: &Proc, pid: Pid) -> Who {
    let command = proc.process(pid).and_then(|process| process.stat()).map(|stat| stat.command);
    let process = match command {
        Ok(command) => format!("{command}[{pid}]"),
        Err(_) => format!("process {pid}"),
    };
    let runs_in = proc.process(pid).and_then(|process| process.runs_in()).unwrap_or_default();
    let unit = runs_in.unit.map(|unit| unit.to_string());
    // To stop a slice would stop others too.
    Who { process, unit: unit.filter(|unit| !unit.ends_with(".slice")) }
}
