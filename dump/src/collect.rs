//! Stage 1: the report, and the process whose namespaces it is about.

use anyhow::{Context, Result, bail, ensure};
use autofs_cr_common::cli::Voice;
use autofs_cr_common::doc;
use autofs_cr_common::doc::report::{Mount, Namespace, Report};
use autofs_cr_common::model::Pid;
use autofs_cr_common::proc::mountinfo::lines;
use autofs_cr_common::proc::{Absence, Proc, absence};
use autofs_cr_common::scan::{Needs, Scope, scan};
use autofs_cr_common::target::Target;

use crate::cli::Cli;
use crate::sound;

/// A report that is about one namespace and still true.
pub struct Collected {
    /// With the superblocks and mounts of this namespace alone.
    pub report: Report,
    /// The namespace.
    pub namespace: Namespace,
    /// The process through which it is looked at.
    pub target: Target,
}

/// The state is no more what the report says.
#[derive(Debug, thiserror::Error)]
#[error("{0} of the report is gone or another one; scan anew")]
pub struct Changed(String);

impl Changed {
    fn process(pid: Pid) -> Self {
        Self(format!("process {pid}"))
    }
}

/// Reads the report, or makes one.
pub fn collect(cli: &Cli, proc: &Proc, voice: Voice) -> Result<Collected> {
    if cli.input.input.is_some() {
        return from_input(cli, proc);
    }
    let report = scan(proc, cli.pid.map_or(Scope::Own, Scope::Of), Needs::IMAGE)?;
    report.hidden.iter().for_each(|hidden| voice.detail(format_args!("not visible: {hidden}")));
    let namespace = report.namespaces.first().context("the scan found no mount namespace")?.clone();
    let target = Target::open(namespace.process)?;
    // The target is held by its pidfd now, and not by an id that can be used again.
    let is_it = namespace.process == Pid::this() || is_same(proc, namespace.process, namespace.start_time)?;
    ensure!(is_it && target.mount_namespace() == namespace.id, Changed::process(namespace.process));
    Ok(Collected { report, namespace, target })
}

fn from_input(cli: &Cli, proc: &Proc) -> Result<Collected> {
    let mut report: Report = doc::read(cli.input.input.as_deref())?;
    sound::check(&report)?;
    let (namespace, target) = match cli.pid {
        Some(pid) => namespace_of(&report, pid)?,
        None => only_namespace(proc, &report)?,
    };
    restrict(&mut report, namespace.id);
    check_processes(proc, &report)?;
    check_mounts(proc, &report, &target)?;
    Ok(Collected { report, namespace, target })
}

/// The namespace of a process that the caller names.
fn namespace_of(report: &Report, pid: Pid) -> Result<(Namespace, Target)> {
    let target = Target::open(pid)?;
    let found = report.namespaces.iter().find(|namespace| namespace.id == target.mount_namespace());
    let found =
        found.with_context(|| format!("the report does not have the mount namespace of process {pid}"))?;
    Ok((Namespace { pid_namespace: target.pid_namespace(), ..found.clone() }, target))
}

/// The one namespace of the report, through the process that the report names; where that has ended,
/// and it is the own one, through this process.
fn only_namespace(proc: &Proc, report: &Report) -> Result<(Namespace, Target)> {
    let [namespace] = report.namespaces.as_slice() else {
        bail!(
            "the report is about {} mount namespaces; name a process of the one that is meant with --pid",
            report.namespaces.len()
        );
    };
    let mut namespace = namespace.clone();
    if !is_same(proc, namespace.process, namespace.start_time)? {
        let own = Target::open(Pid::this())?;
        ensure!(
            (own.mount_namespace(), own.pid_namespace()) == (namespace.id, namespace.pid_namespace),
            Changed::process(namespace.process)
        );
        namespace.process = Pid::this();
    }
    let target = Target::open(namespace.process)?;
    // The target is held by its pidfd now, and not by an id that can be used again.
    let is_it = namespace.process == Pid::this() || is_same(proc, namespace.process, namespace.start_time)?;
    ensure!(is_it && target.mount_namespace() == namespace.id, Changed::process(namespace.process));
    Ok((namespace, target))
}

/// Whether a process still is the one that a report means.
fn is_same(proc: &Proc, pid: Pid, start_time: u64) -> Result<bool> {
    match proc.process(pid).and_then(|dir| dir.stat()) {
        Ok(stat) => Ok(stat.start_time == start_time),
        Err(error) if absence(&error) == Some(Absence::Gone) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot look at process {pid} of the report")),
    }
}

/// Forgets all but one namespace.
fn restrict(report: &mut Report, namespace: u64) {
    if report.namespaces.len() == 1 {
        return;
    }
    report.mounts.retain(|mount| mount.namespace == namespace);
    report.content.retain(|content| content.namespace == namespace);
    let mut devices: Vec<_> = report.mounts.iter().map(|mount| mount.device).collect();
    devices.sort_unstable();
    report.superblocks.retain(|superblock| devices.binary_search(&superblock.device).is_ok());
}

/// The masters must still be the processes that the report means.
fn check_processes(proc: &Proc, report: &Report) -> Result<()> {
    let mut masters: Vec<Pid> =
        report.superblocks.iter().filter_map(|superblock| superblock.master).collect();
    masters.sort_unstable();
    masters.dedup();
    for process in masters.into_iter().filter_map(|master| report.process(master)) {
        ensure!(is_same(proc, process.pid, process.start_time)?, Changed::process(process.pid));
    }
    Ok(())
}

/// The mounts must still be there: their paths are walked later, and a walk to where nothing is
/// mounted any more could start a mount.
pub fn check_mounts(proc: &Proc, report: &Report, target: &Target) -> Result<()> {
    let pid = target.pid();
    let read = proc.process(pid).and_then(|dir| dir.mountinfo());
    let text = read.with_context(|| format!("cannot read the mounts of process {pid}"))?;
    let mut now = std::collections::HashMap::new();
    for line in lines(&text) {
        let line = line.with_context(|| format!("cannot understand the mounts of process {pid}"))?;
        now.insert(line.id, line);
    }
    let is_there = |mount: &Mount| {
        now.get(&mount.id).is_some_and(|line| {
            line.is_autofs()
                && line.device() == Some(mount.device)
                && line.is_at(mount.mount_point.as_bytes())
        })
    };
    match report.mounts.iter().find(|mount| !is_there(mount)) {
        Some(gone) => bail!(Changed(format!("mount '{}'", gone.mount_point))),
        None => Ok(()),
    }
}
