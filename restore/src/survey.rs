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
use crate::parked::{self, Parking};
use crate::plan::Numbers;

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

/// Looks at the namespaces of process `pid`.
pub fn of_process(proc: &Proc, pid: Pid, image: &Image) -> anyhow::Result<Survey> {
    let target = Target::open(pid)?;
    let report = scan(proc, Scope::Of(pid))?;
    let masters = live::find(proc, image, target.pid_namespace()).context("cannot look for the masters")?;
    let numbers = numbers(proc, image, &report, Some(&target))?;
    let parkings = parked::find(proc, &target).context("cannot look for what a killed restore left")?;
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
    };
    let numbers = numbers(proc, image, &report, None)?;
    Ok(Survey { target: None, report, parkings: Vec::new(), masters: Masters::default(), numbers })
}

/// Which device numbers any mount has, in any mount namespace that can be seen.
fn numbers(proc: &Proc, image: &Image, report: &Report, target: Option<&Target>) -> anyhow::Result<Numbers> {
    let there = report.superblocks.iter().map(|superblock| superblock.device);
    let wanted: HashSet<Device> =
        image.superblocks.iter().map(|superblock| superblock.device).chain(there).collect();
    let mut numbers = Numbers::default();
    let mut groups = HashSet::new();
    let mut seen = HashSet::new();
    if let Some(target) = target {
        let text = proc.process(target.pid())?.mountinfo().context("cannot read the mounts of the target")?;
        groups = Namespace::read(&text, target.pid()).look(&wanted, None, &mut numbers);
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
        Namespace::read(&text, pid).look(&wanted, Some(&groups), &mut numbers);
    }
    Ok(numbers)
}

/// The mounts of one namespace.
struct Namespace<'a> {
    lines: Vec<mountinfo::Line<'a>>,
    pid: Pid,
}

impl<'a> Namespace<'a> {
    fn read(text: &'a [u8], pid: Pid) -> Self {
        Self { lines: mountinfo::lines(text).flatten().collect(), pid }
    }

    /// Notes the wanted devices that are mounted here. `groups` are the peer groups that the target's autofs
    /// mounts are mounted in: for another namespace. Gives those of this one.
    fn look(
        &self,
        wanted: &HashSet<Device>,
        groups: Option<&HashSet<u32>>,
        numbers: &mut Numbers,
    ) -> HashSet<u32> {
        let found = self.lines.iter().filter_map(|line| Some((line, line.device()?)));
        let found: Vec<_> = found.filter(|(_, device)| wanted.contains(device)).collect();
        let mut own_groups = HashSet::new();
        if found.is_empty() {
            return own_groups;
        }
        let by_id: HashMap<u64, &mountinfo::Line<'_>> =
            self.lines.iter().map(|line| (line.id, line)).collect();
        let covered: HashSet<u64> = self.lines.iter().map(|line| line.parent).collect();
        for (line, device) in found {
            let place = String::from_utf8_lossy(&mountinfo::unescape(line.mount_point)).into_owned();
            let what = || format!("{place} (seen by process {})", self.pid);
            numbers.taken.entry(device).or_insert_with(what);
            let outer = by_id.get(&line.parent).map(|outer| outer.propagation()).unwrap_or_default();
            own_groups.extend(outer.shared);
            let Some(groups) = groups.filter(|_| line.is_autofs()) else { continue };
            // An unmount reaches this copy by the peer group of what it is on, unless something is on it.
            let is_linked = outer.shared.iter().chain(&outer.slave_of).any(|group| groups.contains(group));
            if !is_linked || covered.contains(&line.id) {
                numbers.stay.entry(device).or_insert_with(what);
            }
        }
        own_groups
    }
}
