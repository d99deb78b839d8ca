//! autofs-fixup: connecting masters, live ones and such that are started for it.
//!
//! The tests publish a segment themselves, as restore does, with superblocks that they made catatonic.

use std::fs::File;
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
use autofs_cr_tests::sandbox::traces::Traces;
use autofs_cr_tests::sandbox::{
    DEADLINE, Finished, Master, MasterOptions, MountReport, Report, Sandbox, TestCommand, Tool, TouchError,
    program,
};
use nix::errno::Errno;

/// A sandbox, and what a restore would have published about the masters in it.
struct World {
    sandbox: Sandbox,
    plan: Plan,
    /// As restore holds them: a master whose pipe has no write end any more sees a hang-up.
    write_ends: Vec<File>,
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
        Ok(Self { sandbox, plan, write_ends: Vec::new() })
    }

    fn master(&self, options: MasterOptions) -> Result<Master> {
        self.sandbox.master(options)
    }

    /// Makes the master's mounts catatonic, and adds them to the plan.
    fn cut_off(&mut self, id: &str, master: &mut Master) -> Result<Report> {
        let report = self.adopt(id, master)?;
        for mount in &report.mounts {
            self.catatonic(mount);
        }
        Ok(report)
    }

    /// Adds the master's mounts to the plan as they are.
    fn adopt(&mut self, id: &str, master: &mut Master) -> Result<Report> {
        let report = master.report()?;
        self.add(id, &report)?;
        let process = segment::Process { pid: master.pid(), start_time: start_time(master.pid())? };
        let added = self.plan.masters.last_mut().context("no master")?;
        added.process = Some(process);
        added.pid = Some(master.pid_inside());
        added.pipes = pipes(master.pid(), &report)?;
        for fd in read_fds(&report) {
            let path = format!("/proc/{}/fd/{fd}", master.pid());
            self.write_ends.push(File::options().write(true).open(path)?);
        }
        Ok(report)
    }

    /// Takes a master's mounts over into the plan, after the master was killed: another one shall come.
    fn orphan(&mut self, id: &str, mut master: Master) -> Result<Report> {
        let report = master.report()?;
        self.add(id, &report)?;
        for mount in &report.mounts {
            self.catatonic(mount);
        }
        master.kill()?;
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

    /// Makes a new, catatonic superblock where there was one. Nothing may touch it before, as its master
    /// is stopped.
    fn mount_again(&self, master: &Master, mount: &MountReport, kind: &str) -> Result<String> {
        let script = "exec 9>/proc/$0/fd/$1 && mount -i -t autofs -o fd=9,pgrp=$0,$2 again $3";
        let [pid, fd] = [master.pid_inside().to_string(), mount.read_fd.to_string()];
        let path = mount.path.display().to_string();
        self.sandbox.run(["sh", "-c", script, &pid, &fd, kind, &path]).assert_success();
        let line = self.sandbox.mount_line(&path).context("it is not mounted")?;
        let device = line.split(' ').nth(2).context("no device")?.to_owned();
        self.probe("catatonic").args([&path, &device]).run().assert_success();
        Ok(device)
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
    let stage = Stage { format: Format::CURRENT, segment: Some(owner.address()), masters: waiting.collect() };
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
    before.assert_left_by(master.pid())?;
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

#[test]
fn the_read_end_and_its_number_stay_also_with_a_pipe_for_each_mount() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    for write_end in ["keep", "close"] {
        let options = three().args(["--pipes=each", "--read-fd=40", "--nonblock"]);
        connects(options.arg(format!("--write-end={write_end}")), &THREE)?;
    }
    Ok(())
}

#[test]
fn masters_are_connected_side_by_side() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut world = World::new()?;
    let mut masters = Vec::new();
    for number in 0..6 {
        let options = MasterOptions::new().direct(format!("d{number}")).indirect(format!("i{number}"));
        let mut master = world.master(options)?;
        world.cut_off(&format!("m{number}"), &mut master)?;
        masters.push(master);
    }
    let owner = world.publish()?;
    let finished = world.fixup(&owner).run().assert_success();
    finished.assert_stderr_contains("connected 12 mounts of 6 masters");
    assert_connected(&owner);
    for (number, mut master) in masters.into_iter().enumerate() {
        world.sandbox.touch(world.path(&format!("d{number}")))?;
        world.sandbox.touch(world.path(&format!("i{number}/key")))?;
        master.assert_undisturbed();
        assert_eq!(master.report()?.counters.served, 2);
    }
    Ok(())
}

#[test]
fn one_master_that_fails_does_not_keep_the_others() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut world = World::new()?;
    let mut good = world.master(MasterOptions::new().direct("good"))?;
    let mut bad = world.master(MasterOptions::new().direct("bad"))?;
    world.cut_off("bad", &mut bad)?;
    world.cut_off("good", &mut good)?;
    let pid = bad.pid();
    let owner = world.publish()?;
    bad.kill()?;
    let finished = world.fixup(&owner).run().assert_code(1);
    finished
        .assert_stderr_contains(&format!(
            "master bad (process {pid}): process {pid} of the restore has ended"
        ))
        .assert_stderr_contains("connected 1 of 2 mounts");
    assert_eq!(owner.progress(0), Ok(Progress::Failed(Errno::ESRCH)));
    assert_eq!(owner.progress(1), Ok(Progress::Connected));
    world.sandbox.touch(world.path("good"))?;
    Ok(())
}

#[test]
fn only_the_master_of_pid_is_connected() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut world = World::new()?;
    let mut one = world.master(MasterOptions::new().direct("one"))?;
    let mut other = world.master(MasterOptions::new().direct("other"))?;
    world.cut_off("one", &mut one)?;
    world.cut_off("other", &mut other)?;
    let owner = world.publish()?;
    world.fixup(&owner).arg("--pid").arg(other.pid().to_string()).run().assert_success();
    assert_eq!(owner.progress(0), Ok(Progress::Created));
    assert_eq!(owner.progress(1), Ok(Progress::Connected));
    let variable = Tool::fixup().env(segment::VARIABLE, owner.name().to_string());
    variable.arg("-p").arg(one.pid().to_string()).run().assert_success();
    assert_connected(&owner);
    Ok(())
}

#[test]
fn inside_its_namespaces_a_master_is_found_by_its_own_id() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut world = World::new()?;
    let mut master = world.master(MasterOptions::new().direct("d"))?;
    world.cut_off("m", &mut master)?;
    let owner = world.publish()?;
    let inside = world.sandbox.command(program("autofs-fixup")).stdin(stage(&owner));
    inside.arg("--pid").arg(master.pid_inside().to_string()).run().assert_success();
    world.sandbox.touch(world.path("d"))?;
    master.assert_undisturbed();
    Ok(())
}

/// What a descriptor of a process is open on.
fn device_of(pid: Pid, fd: i32) -> Result<String> {
    let pidfd = autofs_cr_common::target::open_pidfd(pid)?;
    let copy = rustix::process::pidfd_getfd(&pidfd, fd, rustix::process::PidfdGetfdFlags::empty())?;
    let device = rustix::fs::fstat(&copy)?.st_dev;
    Ok(autofs_cr_common::model::Device::from_stat(device).to_string())
}

/// Waits until a superblock has come this far.
fn wait_for(owner: &Owner, index: usize, wanted: Progress) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let seen = owner.wake_value();
        let progress = owner.progress(index).expect("a progress");
        if progress == wanted {
            return;
        }
        assert!(!progress.is_final(), "superblock {index} is {progress} and not {wanted}");
        assert!(Instant::now() < deadline, "superblock {index} is still {progress} and not {wanted}");
        owner.wait(seen, Duration::from_millis(100)).expect("wait");
    }
}

fn wait_until_claimed(owner: &Owner) {
    let deadline = Instant::now() + DEADLINE;
    while !owner.is_claimed(0).expect("look at the lock") {
        assert!(Instant::now() < deadline, "no fixup came");
        let seen = owner.wake_value();
        owner.wait(seen, Duration::from_millis(5)).expect("wait");
    }
}

#[test]
fn control_fds_are_pointed_to_the_new_superblock() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    for kind in ["direct", "indirect"] {
        let mut world = World::new()?;
        let options = match kind {
            "direct" => MasterOptions::new().direct("m"),
            _ => MasterOptions::new().indirect("m"),
        };
        let mut master = world.master(options.args(["--control-fds", "--identity=none"]))?;
        let report = world.cut_off("m", &mut master)?;
        let mount = &report.mounts[0];
        let control = mount.control_fd.context("no control fd")?;
        let before = Traces::at_rest(master.pid())?;
        let owner = Segment::create(&world.plan)?;
        owner.advance(0, Progress::Held)?;
        let fixup = world.fixup(&owner).spawn();
        wait_for(&owner, 0, Progress::Released);
        // Busy as long as the control fd is open.
        world.sandbox.command("umount").arg(&mount.path).run().assert_success();
        let new = world.mount_again(&master, mount, kind)?;
        owner.advance(0, Progress::Created)?;
        fixup.finish().assert_success();
        assert_connected(&owner);
        assert_eq!(device_of(master.pid(), control)?, new);
        let after = Traces::at_rest(master.pid())?;
        assert_eq!(after.descriptors.len(), before.descriptors.len());
        world.sandbox.touch(world.path(if kind == "direct" { "m" } else { "m/key" }))?;
        master.assert_undisturbed();
    }
    Ok(())
}

#[test]
fn a_control_fd_that_is_something_else_now_is_not_overwritten() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut world = World::new()?;
    let mut master = world.master(MasterOptions::new().direct("d").direct("e"))?;
    world.cut_off("m", &mut master)?;
    // Standard error is no autofs mount.
    world.plan.superblocks[0].control_fds = vec![end(2)];
    let before = Traces::at_rest(master.pid())?;
    let owner = world.publish()?;
    let finished = world.fixup(&owner).run().assert_code(1);
    finished.assert_stderr_contains("descriptor 2 of process").assert_stderr_contains("is not overwritten");
    assert_eq!(owner.progress(0), Ok(Progress::Failed(Errno::EBADF)));
    assert_eq!(owner.progress(1), Ok(Progress::Connected));
    before.assert_left_by(master.pid())?;
    Ok(())
}

#[test]
fn a_restore_that_fails_while_a_master_is_held_gets_its_control_fd_back() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut world = World::new()?;
    let mut master = world.master(MasterOptions::new().indirect("i").arg("--control-fds"))?;
    let report = world.cut_off("m", &mut master)?;
    let control = report.mounts[0].control_fd.context("no control fd")?;
    let before = Traces::at_rest(master.pid())?;
    let owner = Segment::create(&world.plan)?;
    owner.advance(0, Progress::Held)?;
    let fixup = world.fixup(&owner).spawn();
    wait_for(&owner, 0, Progress::Released);
    owner.finish(Outcome::Failed)?;
    // The end of the coordinator, as all was put back.
    drop(owner);
    fixup.finish().assert_code(1).assert_stderr_contains("the restore that made this segment has failed");
    assert_eq!(device_of(master.pid(), control)?, report.mounts[0].device);
    before.assert_left_by(master.pid())?;
    Ok(())
}

/// A master that was killed comes again, started by the fixup.
fn comes_again(world: &World, owner: &Owner, options: MasterOptions, words: &[&str]) -> Result<Master> {
    let fixup = program("autofs-fixup").display().to_string();
    let words = [&[fixup.as_str(), "--exec"][..], words, &["--"]].concat();
    world.sandbox.master(options.via(words).env(segment::VARIABLE, owner.name().to_string()))
}

#[test]
fn a_program_that_is_executed_serves_requests() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new()?;
    let old = world.master(three())?;
    world.orphan("m", old)?;
    world.plan.masters[0].pipes[0].read_end =
        End { fd: 55, flags: FdFlags { nonblock: true, cloexec: true } };
    let owner = world.publish()?;
    let options = MasterOptions::new().args(["--pipe-fd=55", "--no-setpgid"]);
    let mut master = comes_again(&world, &owner, options, &["--master", "m"])?;
    assert_connected(&owner);
    let group = nix::unistd::getpgid(Some(master.pid().to_nix()))?;
    assert_eq!(group, master.pid().to_nix());
    for name in THREE {
        world.sandbox.read(world.path(name).join("served-by"))?;
    }
    let traces = Traces::at_rest(master.pid())?;
    let environment = std::fs::read_to_string(format!("/proc/{}/environ", master.pid()))?;
    for name in ["AUTOFS_CR_SEGMENT", "AUTOFS_CR_DEVICE"] {
        assert!(!environment.contains(name), "{environment}");
    }
    assert!(!traces.descriptors.values().any(|found| found.contains("autofs-cr")), "{traces:?}");
    // O_NONBLOCK as recorded.
    assert!(traces.descriptors["55"].ends_with("02004000"), "{traces:?}");
    master.assert_undisturbed();
    assert_eq!(master.report()?.counters.served, 3);
    Ok(())
}

#[test]
fn the_write_end_and_control_fds_of_a_new_master_are_at_their_numbers() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new()?;
    let old = world.master(MasterOptions::new().direct("d").indirect("i").arg("--control-fds"))?;
    world.orphan("m", old)?;
    // Also the lowest numbers, which the fixup would use itself.
    world.plan.masters[0].pipes[0] =
        segment::Pipe { read_end: end(3), write_end: Some(End { fd: 4, flags: FdFlags::default() }) };
    world.plan.superblocks[0].control_fds = vec![end(5)];
    world.plan.superblocks[1].control_fds = vec![end(6), end(80)];
    let owner = world.publish()?;
    let master = comes_again(&world, &owner, MasterOptions::new().arg("--pipe-fd=3"), &[])?;
    assert_connected(&owner);
    let superblocks = &world.plan.superblocks;
    for (fd, at) in [(5, 0), (6, 1), (80, 1)] {
        assert_eq!(device_of(master.pid(), fd)?, superblocks[at].device.to_string(), "descriptor {fd}");
    }
    let found = Traces::at_rest(master.pid())?.descriptors;
    let pipe = |fd: &str| found[fd].split(' ').next().map(str::to_owned);
    assert_eq!(pipe("3"), pipe("4"), "{found:?}");
    world.sandbox.touch(world.path("d"))?;
    Ok(())
}

#[test]
fn a_segment_that_was_inherited_as_a_descriptor_leaves_its_number_free() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new()?;
    let old = world.master(MasterOptions::new().direct("d"))?;
    world.orphan("m", old)?;
    world.plan.masters[0].pipes[0].read_end = end(7);
    let owner = world.publish()?;
    let script = "exec 7<>/dev/shm$0 8</dev/autofs; umount -l /dev/shm; umount -l /dev/shm; \
        AUTOFS_CR_SEGMENT=fd:7 AUTOFS_CR_DEVICE=fd:8 exec \"$@\"";
    let fixup = program("autofs-fixup").display().to_string();
    let words = ["sh", "-c", script, &owner.name().to_string(), &fixup, "--exec", "--"];
    let master = world.sandbox.master(MasterOptions::new().arg("--pipe-fd=7").via(words))?;
    assert_connected(&owner);
    world.sandbox.touch(world.path("d"))?;
    let found = Traces::at_rest(master.pid())?.descriptors;
    assert!(found["7"].starts_with("pipe:"), "{found:?}");
    assert!(!found.contains_key("8"), "{found:?}");
    Ok(())
}

#[test]
fn nothing_is_changed_for_a_program_that_cannot_be_executed() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new()?;
    let old = world.master(MasterOptions::new().direct("d"))?;
    world.orphan("m", old)?;
    let owner = world.publish()?;
    let bad = world.sandbox.path("bad");
    std::fs::write(world.sandbox.outside(&bad), "#!/no/such/interpreter\n")?;
    world.sandbox.command("chmod").arg("755").arg(&bad).run().assert_success();
    let cases = [
        ("no-such-program".to_owned(), "cannot execute no-such-program: it is not there"),
        ("/etc/passwd".to_owned(), "it is not executable"),
        (bad.display().to_string(), "No such file or directory"),
    ];
    for (name, why) in cases {
        let fixup = world.sandbox.command(program("autofs-fixup"));
        let fixup = fixup.env(segment::VARIABLE, owner.name().to_string()).args(["--exec", "--", &name]);
        fixup.run().assert_code(1).assert_stderr_contains(why);
        assert_eq!(owner.progress(0), Ok(Progress::Created));
    }
    Ok(())
}

#[test]
fn masters_that_are_not_there_are_named_with_their_command() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new()?;
    let old = world.master(MasterOptions::new().direct("d"))?;
    world.orphan("m", old)?;
    let owner = world.publish()?;
    let expected = format!("AUTOFS_CR_SEGMENT={} autofs-fixup --master m --exec -- CMD", owner.name());
    world.fixup(&owner).run().assert_code(3).assert_stderr_contains(&expected);
    Ok(())
}

#[test]
fn a_program_for_a_master_that_lives_is_refused() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new()?;
    let mut master = world.master(MasterOptions::new().direct("d"))?;
    world.cut_off("m", &mut master)?;
    let owner = world.publish()?;
    let exec = |words: &[&str]| {
        let fixup = Tool::fixup().env(segment::VARIABLE, owner.name().to_string());
        fixup.args(["--exec"]).args(words).args(["--", "true"]).run().assert_code(1)
    };
    exec(&["--master", "m"]).assert_stderr_contains("connect it with autofs-fixup --pid");
    exec(&["--master", "x"]).assert_stderr_contains("the segment has no master x; its only master is m");
    exec(&[]).assert_stderr_contains("no master waits to be started");
    Ok(())
}

#[test]
fn descriptors_above_the_limit_are_refused_before_anything_is_changed() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new()?;
    let old = world.master(MasterOptions::new().direct("d"))?;
    world.orphan("m", old)?;
    world.plan.masters[0].pipes[0].read_end = end(4000);
    let owner = world.publish()?;
    let fixup = world.sandbox.command("sh").args(["-c", "ulimit -n 256; exec \"$0\" --exec -- true"]);
    let fixup = fixup.arg(program("autofs-fixup")).env(segment::VARIABLE, owner.name().to_string());
    fixup.run().assert_code(1).assert_stderr_contains("descriptor 4000, and the limit is 256");
    assert_eq!(owner.progress(0), Ok(Progress::Created));
    Ok(())
}

/// A world with one master whose superblock is not created yet.
fn pending() -> Result<(World, Master, Owner)> {
    let mut world = World::new()?;
    let mut master = world.master(MasterOptions::new().direct("d"))?;
    world.cut_off("m", &mut master)?;
    let owner = Segment::create(&world.plan)?;
    Ok((world, master, owner))
}

#[test]
fn a_master_that_is_killed_while_the_fixup_works_is_noticed() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let (world, master, owner) = pending()?;
    let fixup = world.fixup(&owner).spawn();
    wait_until_claimed(&owner);
    let pid = master.pid();
    master.kill()?;
    let finished = fixup.finish().assert_code(1);
    finished.assert_stderr_contains(&format!("process {pid}")).assert_stderr_contains("has ended");
    assert_eq!(owner.progress(0), Ok(Progress::Failed(Errno::ESRCH)));
    Ok(())
}

#[test]
fn a_fixup_that_died_is_followed_by_another() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let (world, mut master, owner) = pending()?;
    let mut fixup = world.fixup(&owner).spawn();
    wait_until_claimed(&owner);
    fixup.process().kill()?;
    owner.wait_until_unclaimed(0)?;
    owner.advance(0, Progress::Created)?;
    owner.advance(0, Progress::Claimed)?;
    world.fixup(&owner).run().assert_success().assert_stderr_contains("goes on where process");
    assert_connected(&owner);
    world.sandbox.touch(world.path("d"))?;
    master.assert_undisturbed();
    Ok(())
}

#[test]
fn a_fixup_waits_for_the_end_of_another_but_not_longer_than_its_timeout() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let (world, _master, owner) = pending()?;
    let other = Segment::open(&segment::Locator::Name(owner.name().clone()))?;
    let _claim = other.claim(0)?;
    let by = format!("another fixup works on master m (process {})", Pid::this());
    let finished = world.fixup(&owner).args(["--timeout", "0.3"]).run().assert_code(1);
    finished.assert_stderr_contains(&format!("{by}: waiting for its end"));
    assert_eq!(owner.progress(0), Ok(Progress::Pending));
    Ok(())
}

#[test]
fn the_timeout_is_kept() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let (world, mut master, owner) = pending()?;
    let begun = Instant::now();
    let finished = world.fixup(&owner).args(["--timeout", "0.3"]).run().assert_code(1);
    finished.assert_stderr_contains("the restore did not make the mounts in time");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(owner.progress(0), Ok(Progress::Failed(Errno::ETIMEDOUT)));
    master.assert_undisturbed();
    Ok(())
}

#[test]
fn a_mount_that_hangs_fails_alone() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut world = World::new()?;
    let mut hung = world.master(MasterOptions::new().direct("hung").arg("--ignore-requests"))?;
    let mut master = world.master(MasterOptions::new().direct("d"))?;
    world.cut_off("m", &mut master)?;
    let stuck = hung.report()?.mounts.remove(0);
    let mut touch = world.sandbox.touch_in_background(&stuck.path);
    touch.wait_until_blocked();
    let mut superblock = world.plan.superblocks[0].clone();
    superblock.device = stuck.device.parse()?;
    superblock.mount_point = TextPath::from(stuck.path);
    world.plan.superblocks.insert(0, superblock);
    let owner = world.publish()?;
    // Inside, as a walk from a pid namespace that the master does not see fails at once.
    let fixup = world.sandbox.command(program("autofs-fixup")).stdin(stage(&owner));
    fixup.run().assert_code(1).assert_stderr_contains("/hung: cannot open the mount");
    assert_eq!(owner.progress(0), Ok(Progress::Failed(Errno::ETIMEDOUT)));
    assert_eq!(owner.progress(1), Ok(Progress::Connected));
    world.sandbox.touch(world.path("d"))?;
    master.assert_undisturbed();
    Ok(())
}

/// The mounts of all are opened by one child, until one blocks.
#[test]
fn masters_are_connected_beside_one_with_a_pending_request() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut world = World::new()?;
    let mut masters = Vec::new();
    for name in ["a", "b", "c"] {
        let options = MasterOptions::new().direct(name);
        let is_blocked = name == "b";
        let mut master = world.master(if is_blocked { options.arg("--swallow") } else { options })?;
        if is_blocked {
            world.adopt(name, &mut master)?
        } else {
            world.cut_off(name, &mut master)?
        };
        masters.push((name, master));
    }
    let mut touch = world.sandbox.touch_in_background(world.path("b"));
    touch.wait_until_blocked();
    let owner = world.publish()?;
    // Inside, as a walk from a pid namespace that the master does not see fails at once.
    world.sandbox.command(program("autofs-fixup")).stdin(stage(&owner)).run().assert_success();
    assert_connected(&owner);
    assert_eq!(touch.join(), Err(TouchError::Errno(Errno::ENOENT)));
    for (name, master) in &mut masters {
        if *name == "b" {
            master.serve()?;
        }
        world.sandbox.touch(world.path(name))?;
        master.assert_undisturbed();
    }
    world.sandbox.assert_nothing_blocked();
    Ok(())
}

/// A walk to such a mount blocks for all but the master, so the master itself opens it.
#[test]
fn a_direct_mount_with_a_pending_request_is_connected() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    for style in [MasterOptions::like_systemd, MasterOptions::like_automount] {
        let mut world = World::new()?;
        let options = style(three()).arg("--swallow");
        let mut master = world.master(options)?;
        let report = world.adopt("m", &mut master)?;
        world.plan.superblocks.iter_mut().for_each(|superblock| superblock.control_fds.clear());
        let touches: Vec<_> = THREE.map(|name| world.sandbox.touch_in_background(world.path(name))).into();
        let touches = touches.into_iter().map(|mut touch| {
            touch.wait_until_blocked();
            touch
        });
        let touches: Vec<_> = touches.collect();
        let before = Traces::at_rest(master.pid())?;
        let owner = world.publish()?;
        world.fixup(&owner).run().assert_success();
        assert_connected(&owner);
        before.assert_left_by(master.pid())?;
        for touch in touches {
            assert_eq!(touch.join(), Err(TouchError::Errno(Errno::ENOENT)));
        }
        world.sandbox.assert_nothing_blocked();
        master.serve()?;
        for name in THREE {
            world.sandbox.read(world.path(name).join("served-by"))?;
        }
        master.assert_undisturbed();
        assert_eq!(read_fds(&master.report()?), read_fds(&report));
    }
    Ok(())
}

#[test]
fn a_dry_run_changes_nothing() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new()?;
    let mut master = world.master(MasterOptions::new().direct("d"))?;
    world.cut_off("m", &mut master)?;
    let owner = world.publish()?;
    let finished = world.fixup(&owner).arg("-n").run().assert_success();
    let expected = format!("connect direct {} ", world.path("d").display());
    finished.assert_stdout_contains(&expected);
    assert_eq!(owner.progress(0), Ok(Progress::Created));
    Ok(())
}

/// A fixup that fails with this message.
#[track_caller]
fn refuses(fixup: TestCommand, why: &str) -> Finished {
    fixup.run().assert_code(1).assert_stderr_contains(why)
}

#[test]
fn what_is_no_stage_document_is_refused() {
    let fixup = |text: &str| Tool::fixup().stdin(format!("{text}...\n"));
    refuses(Tool::fixup(), "autofs-fixup: ");
    refuses(Tool::fixup().stdin("format: autofs-cr/stage/1\nmasters: []\n"), "it is cut off");
    refuses(fixup("format: autofs-cr/image/1\n"), "this is the format of the image; the stage is needed");
    refuses(fixup("format: autofs-cr/stage/9\n"), "version 9 of the stage format is not known");
    refuses(fixup("format: autofs-cr/stage/1\nmasters: []\nmore: 1\n"), "more");
    refuses(Tool::fixup().args(["-i", "/no/such/file"]), "/no/such/file");
    let names = "format: autofs-cr/stage/1\nmasters:\n- {id: a, command: b, superblocks: 1}\n";
    refuses(fixup(names), "names masters and no segment");
    let nothing = fixup("format: autofs-cr/stage/1\nmasters: []\n").run().assert_success();
    nothing.assert_stderr_contains("nothing to do");
}

#[test]
fn a_wrong_command_line_is_wrong_usage() {
    let cases: [&[&str]; 5] =
        [&["--exec"], &["--master", "m"], &["--pid", "0"], &["--pid", "1", "--exec", "--", "x"], &["x"]];
    for arguments in cases {
        Tool::fixup().args(arguments).run().assert_code(2);
    }
}

#[test]
fn wrong_variables_are_named() {
    let fixup = |value: &str| Tool::fixup().env(segment::VARIABLE, value).args(["--exec", "--", "true"]);
    refuses(fixup("nothing"), "'nothing' locates no segment");
    refuses(fixup("fd:99"), "AUTOFS_CR_SEGMENT names descriptor 99, which was not inherited");
    refuses(Tool::fixup().args(["--exec", "--", "true"]), "no segment: set AUTOFS_CR_SEGMENT");
}

#[test]
fn a_process_that_is_no_master_is_refused() -> Result<()> {
    require!(Root, Autofs);
    let (world, master, owner) = pending()?;
    let fixup = |pid: i32| world.fixup(&owner).arg("--pid").arg(pid.to_string());
    let is_master = format!("its only master is m (process {})", master.pid());
    refuses(fixup(1), &format!("process 1 is no master of this segment; {is_master}"));
    refuses(fixup(i32::MAX), "does not exist");
    Ok(())
}

#[test]
fn an_ordinary_user_is_told_to_be_root() -> Result<()> {
    require!(Root, Autofs);
    let (world, _master, owner) = pending()?;
    refuses(world.fixup(&owner).user(65534), "run it as root");
    Ok(())
}

#[test]
fn a_missing_control_device_is_named() -> Result<()> {
    require!(Root, Autofs);
    let (world, master, owner) = pending()?;
    let run = |script: &str| {
        let script = format!("{script} && exec \"$0\" \"$@\"");
        let shell = world.sandbox.command("unshare").args(["-m", "sh", "-c", &script]).stdin(stage(&owner));
        shell.arg(program("autofs-fixup")).arg("--pid").arg(master.pid_inside().to_string())
    };
    refuses(run("mount --bind /dev/null /dev/autofs"), "does not answer as autofs does");
    let empty = "d=$(mktemp -d) && mount --bind /dev/shm $d && mount -t tmpfs none /dev && mkdir /dev/shm && \
        mount --bind $d /dev/shm";
    refuses(run(empty), "cannot open /dev/autofs (is autofs in the kernel?");
    assert_eq!(owner.progress(0), Ok(Progress::Pending));
    Ok(())
}

/// A copy of the segment, under a name of its own, that is removed when it is dropped.
struct Copy(PathBuf);

impl Copy {
    fn of(owner: &Owner, digit: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<(Self, String)> {
        use std::os::unix::fs::PermissionsExt;
        let mut bytes = std::fs::read(format!("/dev/shm{}", owner.name()))?;
        change(&mut bytes);
        // 32 digits, some of them of this process, as tests run side by side.
        let name = format!("/autofs-cr-{}{:012x}", digit.repeat(20), std::process::id());
        let path = PathBuf::from(format!("/dev/shm{name}"));
        std::fs::write(&path, bytes)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok((Self(path), name))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn with_segment(name: &str, pid: Pid) -> TestCommand {
    Tool::fixup().env(segment::VARIABLE, name).arg("--pid").arg(pid.to_string())
}

#[test]
fn a_segment_whose_restore_was_killed_is_refused() -> Result<()> {
    require!(Root, Autofs);
    let (_world, master, owner) = pending()?;
    let (_copy, name) = Copy::of(&owner, "a", |_| {})?;
    refuses(with_segment(&name, master.pid()), "the restore that made this segment is gone");
    Ok(())
}

#[test]
fn a_restore_that_has_failed_is_told() -> Result<()> {
    require!(Root, Autofs);
    let (_world, master, owner) = pending()?;
    owner.finish(Outcome::Failed)?;
    let name = owner.name().to_string();
    refuses(with_segment(&name, master.pid()), "the restore that made this segment has failed");
    drop(owner);
    refuses(with_segment(&name, master.pid()), "the restore that made the segment has ended");
    Ok(())
}

#[test]
fn a_damaged_segment_is_refused() -> Result<()> {
    require!(Root, Autofs);
    let (_world, master, owner) = pending()?;
    let (_magic, name) = Copy::of(&owner, "b", |bytes| bytes[0] ^= 0xff)?;
    refuses(with_segment(&name, master.pid()), "is not valid");
    let (_short, name) = Copy::of(&owner, "c", |bytes| bytes.truncate(20))?;
    refuses(with_segment(&name, master.pid()), "is not valid");
    let (copy, name) = Copy::of(&owner, "d", |_| {})?;
    std::os::unix::fs::chown(&copy.0, Some(65534), None)?;
    refuses(with_segment(&name, master.pid()), "is not to be trusted");
    Ok(())
}

#[test]
fn a_fixup_that_is_killed_at_any_instant_leaves_a_master_that_the_next_one_connects() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut world = World::new()?;
    let bulk = world.path("bulk").display().to_string();
    // Not in epoll_wait, which a fixup that is killed may leave with EINTR: see `autofs_fixup::remote`.
    let options = MasterOptions::new().args(["--bulk", &bulk, "300", "--wait=poll", "--control-fds"]);
    let mut master = world.master(options.direct("d"))?;
    let report = world.cut_off("m", &mut master)?;
    let before = Traces::at_rest(master.pid())?;
    for step in 0..24 {
        let owner = world.publish()?;
        let mut fixup = world.fixup(&owner).spawn();
        wait_until_claimed(&owner);
        // Not a wait for something: each instant shall be met by some of the rounds.
        std::thread::sleep(Duration::from_micros(400 * step));
        fixup.process().kill()?;
        owner.wait_until_unclaimed(0)?;
        before.assert_left_by(master.pid())?;
        world.fixup(&owner).run().assert_success();
        assert_connected(&owner);
        before.assert_left_by(master.pid())?;
    }
    world.sandbox.touch(&report.mounts[0].path)?;
    master.assert_undisturbed();
    Ok(())
}

#[test]
fn a_master_that_is_stopped_is_left_as_it_is() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let (world, mut master, owner) = pending()?;
    owner.advance(0, Progress::Created)?;
    master.process().signal(nix::sys::signal::Signal::SIGSTOP)?;
    let finished = world.fixup(&owner).run().assert_code(1);
    finished.assert_stderr_contains(&format!("continue it with kill -CONT {}", master.pid()));
    assert_eq!(owner.progress(0), Ok(Progress::Failed(Errno::EBUSY)));
    master.process().signal(nix::sys::signal::Signal::SIGCONT)?;
    master.assert_undisturbed();
    Ok(())
}

#[test]
fn a_master_is_not_left_stopped_by_a_restore_that_does_not_go_on() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut world = World::new()?;
    let mut master = world.master(MasterOptions::new().indirect("i").arg("--control-fds"))?;
    let report = world.cut_off("m", &mut master)?;
    let control = report.mounts[0].control_fd.context("no control fd")?;
    let before = Traces::at_rest(master.pid())?;
    let owner = Segment::create(&world.plan)?;
    owner.advance(0, Progress::Held)?;
    let fixup = world.fixup(&owner).spawn();
    wait_for(&owner, 0, Progress::Released);
    // Restore learns of it, and undoes what it did.
    wait_for(&owner, 0, Progress::Failed(Errno::ETIMEDOUT));
    drop(owner);
    fixup.finish().assert_code(1).assert_stderr_contains("while the master was stopped");
    assert_eq!(device_of(master.pid(), control)?, report.mounts[0].device);
    before.assert_left_by(master.pid())?;
    master.report()?;
    Ok(())
}
