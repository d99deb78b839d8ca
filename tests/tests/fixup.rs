//! autofs-fixup: connecting masters, live ones and such that are started for it.
//!
//! The tests publish a segment themselves, as restore does, with superblocks that they made catatonic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use autofs_cr_common::doc::image::End;
use autofs_cr_common::doc::stage::{Stage, Waiting};
use autofs_cr_common::doc::{self, Format};
use autofs_cr_common::masters::MasterKind;
use autofs_cr_common::model::{FdFlags, MountType, Pid, TextPath};
use autofs_cr_common::proc::Proc;
use autofs_cr_common::segment::{self, Outcome, Owner, Plan, Progress, Segment, Superblock};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{
    DEADLINE, Finished, Master, MasterOptions, MountReport, Report, Sandbox, TestCommand, Tool, TouchError,
    program,
};
use nix::errno::Errno;

/// A sandbox, and what a restore would have published about the masters in it.
struct World {
    sandbox: Sandbox,
    plan: Plan,
}

impl World {
    fn new() -> Result<Self> {
        Self::of(Sandbox::new()?)
    }

    fn of(sandbox: Sandbox) -> Result<Self> {
        let plan = Plan {
            coordinator: segment::Process { pid: Pid::this(), start_time: start_time(Pid::this())? },
            timeout: DEADLINE,
            masters: Vec::new(),
            superblocks: Vec::new(),
        };
        Ok(Self { sandbox, plan })
    }

    fn master(&self, options: MasterOptions) -> Result<Master> {
        self.sandbox.master(options)
    }

    /// Makes the master's mounts catatonic, and adds them to the plan.
    fn cut_off(&mut self, id: &str, master: &mut Master) -> Result<Report> {
        let report = master.report()?;
        self.add(id, &report)?;
        let process = segment::Process { pid: master.pid(), start_time: start_time(master.pid())? };
        let added = self.plan.masters.last_mut().context("no master")?;
        added.process = Some(process);
        added.pid = Some(master.pid_inside());
        added.pipes = pipes(master.pid(), &report)?;
        for mount in &report.mounts {
            self.catatonic(mount);
        }
        Ok(report)
    }

    fn add(&mut self, id: &str, report: &Report) -> Result<()> {
        let pipes = read_fds(report);
        for mount in &report.mounts {
            self.plan.superblocks.push(Superblock {
                device: mount.device.parse()?,
                mount_type: mount_type(&self.sandbox, &mount.path),
                master: self.plan.masters.len(),
                pipe: pipes.iter().position(|fd| *fd == mount.read_fd).context("no such pipe")?,
                mount_point: TextPath::from(mount.path.clone()),
                control_fds: mount.control_fd.map(end).into_iter().collect(),
            });
        }
        let pipes = pipes.into_iter().map(|fd| segment::Pipe { read_end: end(fd), write_end: None });
        self.plan.masters.push(segment::Master {
            id: id.to_owned(),
            kind: MasterKind::Unknown,
            pid: None,
            process: None,
            pipes: pipes.collect(),
        });
        Ok(())
    }

    /// The superblock of a report turns catatonic.
    fn catatonic(&self, mount: &MountReport) {
        self.probe("catatonic").arg(&mount.path).arg(&mount.device).run().assert_success();
    }

    fn probe(&self, step: &str) -> TestCommand {
        self.sandbox.command(program("autofs-probe")).arg(step)
    }

    /// Publishes the plan, with everything created.
    fn publish(&self) -> Result<Owner> {
        let owner = Segment::create(&self.plan)?;
        for index in 0..self.plan.superblocks.len() {
            owner.advance(index, Progress::Created)?;
        }
        Ok(owner)
    }

    fn fixup(&self, owner: &Owner) -> TestCommand {
        Tool::fixup().about(&self.sandbox).stdin(stage(owner))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path(name)
    }

    fn option(&self, path: &Path, option: &str) -> Option<String> {
        let line = self.sandbox.mount_line(path)?;
        let options = line.rsplit(' ').next()?;
        let found = options.split(',').find_map(|word| word.strip_prefix(option)?.strip_prefix('='));
        found.map(str::to_owned)
    }
}

/// The stage document of a segment.
fn stage(owner: &Owner) -> Vec<u8> {
    let waiting = owner.masters().iter().enumerate().map(|(index, master)| Waiting {
        id: master.id.clone(),
        command: TextPath::from_bytes(b"reference-master".to_vec()),
        pid: master.process.map(|process| process.pid),
        superblocks: owner.superblocks_of(index).count(),
    });
    let stage =
        Stage { format: Format::CURRENT, segment: Some(owner.address()), masters: waiting.collect() };
    let mut text = Vec::new();
    doc::write(&stage, &mut text).expect("a document");
    text
}

fn start_time(pid: Pid) -> Result<u64> {
    Ok(Proc::open()?.process(pid)?.stat()?.start_time)
}

fn end(fd: i32) -> End {
    End { fd, flags: FdFlags { nonblock: false, cloexec: true } }
}

fn read_fds(report: &Report) -> Vec<i32> {
    let mut fds: Vec<i32> = report.mounts.iter().map(|mount| mount.read_fd).collect();
    fds.dedup();
    fds
}

fn pipes(pid: Pid, report: &Report) -> Result<Vec<segment::Pipe>> {
    let proc = Proc::open()?;
    let process = proc.process(pid)?;
    let descriptors = process.descriptors()?;
    let ends = read_fds(report).into_iter().map(|fd| {
        let flags = descriptors.info(fd)?.fd_flags();
        Ok(segment::Pipe { read_end: End { fd, flags }, write_end: None })
    });
    ends.collect()
}

fn mount_type(sandbox: &Sandbox, path: &Path) -> MountType {
    let line = sandbox.mount_line(path).unwrap_or_default();
    let has = |word: &str| line.rsplit(' ').next().unwrap_or_default().split(',').any(|found| found == word);
    match (has("direct"), has("offset")) {
        (true, _) => MountType::Direct,
        (_, true) => MountType::Offset,
        _ => MountType::Indirect,
    }
}

/// All superblocks are connected.
fn assert_connected(owner: &Owner) {
    for index in 0..owner.superblocks().len() {
        assert_eq!(owner.progress(index), Ok(Progress::Connected), "superblock {index}");
    }
}

/// What must be the same before and after: descriptors, signals, and what each thread is blocked in.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    descriptors: BTreeMap<String, String>,
    signals: BTreeMap<String, String>,
    blocked_in: BTreeMap<String, String>,
}

impl Traces {
    fn of(pid: Pid) -> Result<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let mut descriptors = BTreeMap::new();
        for entry in std::fs::read_dir(directory.join("fd"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let info = std::fs::read_to_string(directory.join("fdinfo").join(&name))?;
            let flags = info.lines().find(|line| line.starts_with("flags:")).unwrap_or_default();
            descriptors.insert(name, format!("{} {flags}", std::fs::read_link(entry.path())?.display()));
        }
        let mut signals = BTreeMap::new();
        let mut blocked_in = BTreeMap::new();
        for entry in std::fs::read_dir(directory.join("task"))? {
            let path = entry?.path();
            let thread = path.display().to_string();
            let status = std::fs::read_to_string(path.join("status"))?;
            let lines = status.lines().filter(|line| line.starts_with("Sig") || line.starts_with("TracerPid"));
            signals.insert(thread.clone(), lines.collect::<Vec<_>>().join(" "));
            blocked_in.insert(thread, system_call(&path)?);
        }
        Ok(Self { descriptors, signals, blocked_in })
    }

    /// When every thread is blocked, as after a while.
    fn at_rest(pid: Pid) -> Result<Self> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let traces = Self::of(pid)?;
            let at_rest = traces.blocked_in.values().all(|call| call != "running");
            if at_rest || Instant::now() > deadline {
                return Ok(traces);
            }
            std::thread::yield_now();
        }
    }
}

/// The system call that a thread is blocked in: its number, arguments, stack pointer and instruction
/// pointer.
fn system_call(task: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(task.join("syscall"))?.trim().to_owned())
}

/// A master is cut off, the fixup connects it, and nothing but that shows.
fn connects(options: MasterOptions, names: &[&str]) -> Result<()> {
    let mut world = World::new()?;
    let mut master = world.master(options)?;
    let report = world.cut_off("m", &mut master)?;
    let before = Traces::at_rest(master.pid())?;
    let owner = world.publish()?;
    let count = report.mounts.len();
    let plural = if count == 1 { "" } else { "s" };
    world
        .fixup(&owner)
        .run()
        .assert_success()
        .assert_stderr_contains(&format!("connected {count} mount{plural} of 1 master"));
    assert_connected(&owner);
    assert_eq!(Traces::at_rest(master.pid())?, before);
    for mount in &report.mounts {
        assert_eq!(world.option(&mount.path, "pgrp"), Some(master.pid().to_string()));
    }
    for name in names {
        world.sandbox.read(world.path(name).join("served-by"))?;
    }
    world.sandbox.assert_nothing_blocked();
    master.assert_undisturbed();
    let counters = master.report()?.counters;
    assert_eq!(counters.served, names.len() as u64, "{counters:?}");
    assert_eq!(read_fds(&master.report()?), read_fds(&report));
    Ok(())
}

fn three() -> MasterOptions {
    MasterOptions::new().direct("d").indirect("i").offset("o")
}

const THREE: [&str; 3] = ["d", "i/key", "o"];

#[test]
fn a_master_blocked_in_read_is_connected() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    connects(three().arg("--wait=read"), &THREE)
}

#[test]
fn a_master_blocked_in_poll_is_connected() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    connects(three().arg("--wait=poll"), &THREE)?;
    connects(three().arg("--wait=poll-timeout"), &THREE)
}

#[test]
fn a_master_blocked_in_epoll_wait_is_connected() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    connects(three().arg("--wait=epoll"), &THREE)
}

#[test]
fn a_master_blocked_in_a_futex_is_connected() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    connects(three().arg("--wait=futex"), &THREE)
}

#[test]
fn a_master_with_many_threads_is_connected() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    connects(three().arg("--threads=20"), &THREE)
}

#[test]
fn a_master_like_systemd_is_connected() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    connects(three().like_systemd(), &THREE)
}

#[test]
fn a_master_like_automount_is_connected() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    connects(three().like_automount(), &THREE)
}
