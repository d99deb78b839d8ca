//! systemd as the master: PID 1 of a booted machine, with real automount units. Each test looks at what the
//! user of that machine sees: what is served, the states of the units, the journal.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use autofs_cr_common::doc::report::CopyFault;
use autofs_cr_common::doc::{self, Report};
use autofs_cr_common::masters::MasterKind;
use autofs_cr_common::model::{Device, FdFlags, Pid, RunsIn, State, TextPath};
use autofs_cr_tests::guard::{Turn, alone};
use autofs_cr_tests::machine::{Automount, Machine};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, make_catatonic, make_orphaned, read_image};
use autofs_cr_tests::sandbox::{DEADLINE, Finished, Running, TestCommand, Tool, TouchError, program};
use nix::errno::Errno;
use nix::sys::ptrace;

const CONTENT: &str = "content of a";

/// A machine with something to be mounted, and the turn that it has: a machine that boots takes device numbers.
fn boot() -> Result<(Turn, Machine)> {
    let turn = alone();
    let machine = Machine::boot()?;
    machine.write("/srv/a/file", CONTENT)?;
    Ok((turn, machine))
}

/// Two automounts, of which one has been asked for.
fn idle_and_mounted(machine: &Machine) -> Result<[Automount<'_>; 2]> {
    let both = Automount::start_all(machine, ["/data/idle", "/data/mounted"], "/srv/a", 0)?;
    assert_serves(machine, &both[1]);
    both.try_into().ok().context("two were started")
}

#[track_caller]
fn assert_serves(machine: &Machine, automount: &Automount) {
    let read = machine.read(format!("{}/file", automount.place));
    assert_eq!(read.as_deref(), Ok(CONTENT), "{}\n{}", machine.mountinfo(), machine.journal(""));
    machine.wait_for_property(&automount.unit("automount"), "SubState", "running");
    machine.wait_for_property(&automount.unit("mount"), "SubState", "mounted");
}

/// Nothing is left that the user of the machine would be sorry about.
fn assert_well(machine: &Machine) {
    machine.assert_nothing_blocked();
    machine.assert_no_errors();
}

/// `autofs-restore WORDS < IMAGE | autofs-fixup`.
fn restore(machine: &Machine, image: &str, words: &[&str]) -> (Finished, Finished) {
    Tool::restore().target(machine).args(words).stdin(image).pipe(Tool::fixup())
}

/// Replaces every mount with one that is connected at once, so that no fixup is needed.
fn replace_all(machine: &Machine) {
    let image = dump(machine);
    let count = read_image(&image).superblocks.len();
    let (restored, fixed) = restore(machine, &image, &["--replace"]);
    restored.assert_success().assert_stderr_contains(&format!("connect {count}"));
    fixed.assert_success().assert_stderr_contains("nothing to do");
}

/// What stays the same for as long as systemd goes on with a unit.
fn invocation(machine: &Machine, automount: &Automount) -> (String, String) {
    let property = |name: &str| machine.property(&automount.unit("automount"), name);
    (property("InvocationID"), property("Result"))
}

/// The descriptors from which systemd reads requests.
fn read_ends(image: &str) -> Vec<i32> {
    let pipes = read_image(image).masters.into_iter().flat_map(|master| master.pipes);
    pipes.map(|pipe| pipe.read_end.unwrap().fd).collect()
}

/// The pipe of each device.
fn pipes(image: &str) -> Vec<(Device, Option<u64>)> {
    let superblocks = read_image(image).superblocks;
    superblocks.iter().map(|superblock| (superblock.device, superblock.pipe)).collect()
}

/// Write ends of systemd's pipes: while they are open, it sees no hang-up.
fn hold_pipes(machine: &Machine, image: &str) -> Result<Vec<File>> {
    let open = |fd: i32| File::options().write(true).open(format!("/proc/{}/fd/{fd}", machine.pid()));
    read_ends(image).into_iter().map(|fd| open(fd).context("open a write end")).collect()
}

/// What autofs-inspect writes.
#[track_caller]
fn report(inspect: TestCommand) -> Report {
    let text = inspect.args(["-f", "yaml"]).run().assert_success().stdout;
    doc::parse(text.as_bytes(), "the report").expect(&text)
}

/// The devices and their states.
fn states(report: &Report) -> Vec<(Device, State)> {
    report.superblocks.iter().map(|superblock| (superblock.device, superblock.state)).collect()
}

/// A process in the machine that has a file open and reads it when it is told to.
struct Reader<'a>(&'a Machine, Running);

impl<'a> Reader<'a> {
    fn start(machine: &'a Machine, file: &str) -> Self {
        machine.sh("mkfifo /run/opened /run/go");
        let script = format!("exec 3<{file}; echo >/run/opened; read -r go </run/go; cat <&3");
        let running = machine.spawn(["sh", "-ec", &script]);
        machine.sh("read -r opened </run/opened").assert_success();
        Self(machine, running)
    }

    fn read(self) -> String {
        self.0.sh("echo go >/run/go").assert_success();
        self.1.finish().assert_success().stdout
    }
}

#[test]
fn every_automount_is_replaced_under_it_and_serves_on() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let [idle, mounted] = idle_and_mounted(&machine)?;
    let before = invocation(&machine, &mounted);
    let reader = Reader::start(&machine, "/data/mounted/file");
    let content = mounted.content();

    replace_all(&machine);

    assert_eq!(idle.states(), ("waiting".into(), "dead".into()));
    // It may have read the table of mounts in the instant in which the place is bare (docs/systemd.md), and then finds what
    // is mounted there at its next look.
    machine.wait_for_property(&mounted.unit("automount"), "SubState", "running");
    machine.wait_for_property(&mounted.unit("mount"), "SubState", "mounted");
    assert_serves(&machine, &idle);
    assert_serves(&machine, &mounted);
    assert_eq!(reader.read(), CONTENT);
    assert_eq!(mounted.content(), content);
    assert_eq!(invocation(&machine, &mounted), before);
    assert_well(&machine);
    machine.close()
}

#[test]
fn after_a_replacement_it_can_be_reloaded_and_executed_again_and_replaced_once_more() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let [idle, mounted] = idle_and_mounted(&machine)?;
    let first = dump(&machine);
    replace_all(&machine);

    machine.systemctl(["daemon-reload"]).assert_success();
    machine.systemctl(["daemon-reexec"]).assert_success();
    assert_serves(&machine, &idle);
    // A file system that was moved meanwhile is unmounted and mounted as any other.
    machine.systemctl(["stop", &mounted.unit("mount")]).assert_success();
    assert_serves(&machine, &mounted);

    let second = dump(&machine);
    assert_ne!(read_ends(&second), read_ends(&first), "it has other descriptors now");
    assert_eq!(pipes(&second), pipes(&first));
    replace_all(&machine);
    for automount in [&idle, &mounted] {
        machine.systemctl(["stop", &automount.unit("mount")]).assert_success();
        assert_serves(&machine, automount);
    }
    assert_well(&machine);
    machine.close()
}

#[test]
fn after_a_replacement_mounts_expire_and_are_served_again() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let both = Automount::start_all(&machine, ["/data/a", "/data/b"], "/srv/a", 1)?;
    let [first, second] = both.as_slice() else { anyhow::bail!("not two") };
    assert_serves(&machine, second);
    replace_all(&machine);
    assert_serves(&machine, first);
    second.wait_until_idle();
    first.wait_until_idle();

    machine.systemctl(["daemon-reexec"]).assert_success();
    assert_serves(&machine, second);
    second.wait_until_idle();
    assert_well(&machine);
    machine.close()
}

/// The whole pipeline, as a shell runs it.
fn all_four_tools(machine: &Machine) -> TestCommand {
    let pid = machine.pid();
    let [inspect, dump, restore, fixup] =
        ["inspect", "dump", "restore", "fixup"].map(|tool| program(&format!("autofs-{tool}")));
    let script = format!(
        "set -o pipefail; {} -p {pid} -f yaml | {} -i - | {} -p {pid} --replace --connect fixup | {}",
        inspect.display(),
        dump.display(),
        restore.display(),
        fixup.display(),
    );
    TestCommand::new("bash").args(["-c", &script]).about(machine)
}

#[test]
fn a_fixup_connects_its_mounts_and_leaves_it_as_it_was() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let (_turn, machine) = boot()?;
    let idle = Automount::start(&machine, "/data/idle", "/srv/a", 0)?;
    let mounted = Automount::start(&machine, "/data/mounted", "/srv/a", 1)?;
    assert_serves(&machine, &mounted);
    let reader = Reader::start(&machine, "/data/mounted/file");
    let before = descriptors(machine.pid())?;

    let done = all_four_tools(&machine).run().assert_success();
    done.assert_stderr_contains("create 2").assert_stderr_contains("connected 2 mounts of 1 master");

    assert_eq!(descriptors(machine.pid())?, before);
    assert_serves(&machine, &idle);
    assert_serves(&machine, &mounted);
    assert_eq!(reader.read(), CONTENT);
    machine.systemctl(["daemon-reexec"]).assert_success();
    mounted.wait_until_idle();
    assert_serves(&machine, &mounted);
    assert_well(&machine);
    machine.close()
}

/// How many descriptors a process has.
fn descriptors(pid: Pid) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Traces a process without stopping it. A process has one tracer at most: while this lives, nobody else can
/// stop it by ptrace, which is the only way that the tools have.
struct Tracer(Sender<()>, JoinHandle<()>);

impl Tracer {
    fn of(pid: Pid) -> Self {
        let (stop, stopped) = channel::<()>();
        let (ready, is_ready) = channel();
        let thread = std::thread::spawn(move || {
            let seized = ptrace::seize(pid.to_nix(), ptrace::Options::empty());
            ready.send(seized).unwrap();
            // The tracer is this thread: with its end the kernel lets go of the process.
            let _ = stopped.recv();
        });
        is_ready.recv().unwrap().expect("trace PID 1");
        Self(stop, thread)
    }

    fn end(self) {
        drop(self.0);
        self.1.join().unwrap();
    }
}

#[test]
fn it_is_not_even_stopped_where_its_mounts_are_connected_at_once() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let (_turn, machine) = boot()?;
    let [idle, mounted] = idle_and_mounted(&machine)?;
    let tracer = Tracer::of(machine.pid());
    replace_all(&machine);
    assert_serves(&machine, &idle);
    assert_serves(&machine, &mounted);

    assert_eq!(ptrace::seize(machine.pid().to_nix(), ptrace::Options::empty()), Err(Errno::EPERM));
    tracer.end();
    for automount in [&idle, &mounted] {
        machine.systemctl(["stop", &automount.unit("mount")]).assert_success();
        assert_serves(&machine, automount);
    }
    assert_well(&machine);
    machine.close()
}

/// A service that depends on a mount.
fn service(dependency: &str) -> String {
    format!("[Unit]\n{dependency}\nAfter=data.mount\n[Service]\nExecStart=/usr/bin/sleep infinity\n")
}

/// systemd stops this unit when the mount is gone.
const BOUND: (&str, &str) = ("bound-to-mount.service", "BindsTo=data.mount");

#[test]
fn a_unit_that_requires_the_mount_runs_on_and_one_that_is_bound_to_it_is_stopped() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let data = Automount::start(&machine, "/data", "/srv/a", 0)?;
    let lasting = [
        ("requires-mounts-for.service", "RequiresMountsFor=/data"),
        ("requires.service", "Requires=data.mount"),
        ("part-of.service", "PartOf=data.mount"),
        ("bound-to-automount.service", "BindsTo=data.automount"),
    ];
    for (name, dependency) in lasting.into_iter().chain([BOUND]) {
        machine.unit(name, &service(dependency))?;
    }
    machine.reload();
    let names = lasting.into_iter().chain([BOUND]).map(|(name, _)| name);
    machine.command("systemctl").arg("start").args(names).run().assert_success();
    let process = |name: &str| (machine.property(name, "ActiveState"), machine.property(name, "MainPID"));
    let before: Vec<_> = lasting.iter().map(|(name, _)| process(name)).collect();

    // The mount is away for a moment, and systemd does not always look in that moment.
    let deadline = Instant::now() + DEADLINE;
    while !machine.journal("data.mount").contains("Deactivated") {
        assert!(Instant::now() < deadline, "systemd never saw it");
        replace_all(&machine);
    }

    machine.wait_for_property(BOUND.0, "ActiveState", "inactive");
    let after: Vec<_> = lasting.iter().map(|(name, _)| process(name)).collect();
    assert_eq!(after, before);
    assert_serves(&machine, &data);
    assert_well(&machine);
    machine.close()
}

#[test]
fn on_a_hang_up_the_unit_fails_and_what_is_mounted_there_is_detached() -> Result<()> {
    require!(Root, Autofs, Machine);
    let (_turn, machine) = boot()?;
    let data = Automount::start(&machine, "/data", "/srv/a", 0)?;
    assert_serves(&machine, &data);
    machine.unit("needs.service", &service("RequiresMountsFor=/data"))?;
    machine.reload();
    machine.systemctl(["start", "needs.service"]).assert_success();
    make_catatonic(&machine, &dump(&machine));

    machine.wait_for_mounts("detached", || machine.mount_line("/data").is_none());
    machine.wait_for_property("data.automount", "ActiveState", "failed");
    assert_eq!(machine.property("data.automount", "Result"), "unmounted");
    // What helps then.
    machine.systemctl(["restart", "data.automount"]).assert_success();
    // systemd leaves a unit alone that requires the mount, although that was gone.
    assert_eq!(machine.property("needs.service", "ActiveState"), "active");
    assert_serves(&machine, &data);
    machine.close()
}

#[test]
fn mounts_that_were_made_catatonic_are_adopted_while_a_write_end_is_held() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let (_turn, machine) = boot()?;
    let [idle, mounted] = idle_and_mounted(&machine)?;
    let (image, before) = (dump(&machine), invocation(&machine, &idle));
    let content = mounted.content();
    let held = hold_pipes(&machine, &image)?;
    make_catatonic(&machine, &image);
    assert_named(&machine, State::Catatonic);
    assert_eq!(machine.read("/data/idle/file"), Err(TouchError::Errno(Errno::ENOENT)));

    adopt(&machine, &image, held);
    assert_eq!(invocation(&machine, &idle), before);
    assert_eq!(mounted.content(), content);
    for automount in [&idle, &mounted] {
        assert_serves(&machine, automount);
        machine.systemctl(["stop", &automount.unit("mount")]).assert_success();
        assert_serves(&machine, automount);
    }
    assert_well(&machine);
    machine.close()
}

/// The tools name both mounts with this state.
#[track_caller]
fn assert_named(machine: &Machine, state: State) {
    let places = ["/data/idle", "/data/mounted"];
    let check = Tool::inspect().target(machine).arg("--check").run().assert_code(3);
    let image = read_image(&dump(machine));
    for (place, superblock) in places.iter().zip(&image.superblocks) {
        assert!(check.stdout.contains(&format!("{place}: {state}")), "{check}");
        assert_eq!(superblock.state, state);
    }
    let dumped: Vec<_> = image.mounts.iter().map(|mount| mount.mount_point.to_string()).collect();
    assert_eq!(dumped, places);
}

/// Connects what is there again, and lets go of what held the pipes.
fn adopt(machine: &Machine, image: &str, held: Vec<File>) {
    let (restored, fixed) = restore(machine, image, &[]);
    restored.assert_success().assert_stderr_contains("adopt 2");
    fixed.assert_success().assert_stderr_contains("connected 2 mounts of 1 master");
    drop(held);
    assert!(states(&report(Tool::inspect().target(machine))).iter().all(|(_, s)| *s == State::Connected));
}

#[test]
fn mounts_that_were_orphaned_are_named_and_adopted_while_a_write_end_is_held() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let (_turn, machine) = boot()?;
    let [idle, mounted] = idle_and_mounted(&machine)?;
    let (image, before) = (dump(&machine), invocation(&machine, &idle));
    let content = mounted.content();
    let held = hold_pipes(&machine, &image)?;
    make_orphaned(&machine, &image);
    assert_named(&machine, State::Orphaned);

    adopt(&machine, &image, held);
    assert_eq!(invocation(&machine, &idle), before);
    assert_eq!(mounted.content(), content);
    for automount in [&idle, &mounted] {
        assert_serves(&machine, automount);
    }
    assert_well(&machine);
    machine.close()
}

#[test]
fn a_hundred_automounts_are_replaced_in_one_go() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let places: Vec<_> = (0..100).map(|number| format!("/mass/m{number}")).collect();
    let automounts = Automount::start_all(&machine, places.iter().map(String::as_str), "/srv/a", 0)?;
    let read_all = |places: &str| {
        // At the same time: systemd looks at the mounts five times in a second at most.
        let script = format!("for place in {places}; do cat $place/file & done; wait");
        machine.sh(&script).assert_success().stdout
    };
    assert_eq!(read_all("/mass/m?"), CONTENT.repeat(10));

    let began = Instant::now();
    replace_all(&machine);
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());

    assert_eq!(read_all("/mass/m*"), CONTENT.repeat(100));
    assert!(automounts.iter().all(|automount| automount.content().len() == 1));
    assert_well(&machine);
    machine.close()
}

#[test]
fn it_has_a_pipe_for_each_unit_of_which_it_keeps_the_read_end_only() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    idle_and_mounted(&machine)?;
    let image = read_image(&dump(&machine));
    let [master] = image.masters.as_slice() else { anyhow::bail!("not one master: {image:?}") };
    assert_eq!((master.kind, master.pid, master.pgrp), (MasterKind::Systemd, Pid::new(1), Pid::new(1)));
    assert_eq!(master.pipes.len(), 2);
    for pipe in &master.pipes {
        assert_eq!(pipe.read_end.as_ref().unwrap().flags, FdFlags { nonblock: true, cloexec: true });
        assert_eq!(pipe.write_end, None);
    }
    assert!(image.superblocks.iter().all(|superblock| superblock.control_fds.is_empty()));
    machine.close()
}

#[test]
fn a_request_from_a_mount_with_another_device_number_is_never_answered() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    Automount::start(&machine, "/data", "/srv/a", 0)?;
    let image = dump(&machine);
    let held = hold_pipes(&machine, &image)?;
    // The tmpfs gets the number that the old mount had.
    machine.sh("umount /data; mount -t tmpfs none /mnt").assert_success();
    let options = "fd=3,pgrp=1,minproto=5,maxproto=5,direct";
    let mount = format!("mount -t autofs -o {options} again /data 3>/proc/1/fd/{}", read_ends(&image)[0]);
    machine.sh(&mount).assert_success();
    assert_ne!(pipes(&dump(&machine)), pipes(&image));

    let mut touch = machine.touch_in_background("/data/file");
    touch.wait_until_blocked();
    machine.wait_for_journal("data.automount", "Automount point already active?");
    assert!(!touch.has_ended());
    assert_eq!(touch.kill(), Err(TouchError::Killed(9)));
    drop(held);
    machine.close()
}

#[test]
fn an_image_from_before_it_was_executed_again_fits() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let (_turn, machine) = boot()?;
    let [idle, mounted] = idle_and_mounted(&machine)?;
    let image = dump(&machine);
    machine.systemctl(["daemon-reexec"]).assert_success();
    assert_ne!(read_ends(&dump(&machine)), read_ends(&image), "the numbers are others");
    for arguments in [&["--replace"][..], &["--replace", "--connect", "fixup"]] {
        let (restored, fixed) = restore(&machine, &image, arguments);
        restored.assert_success();
        fixed.assert_success();
    }
    assert_serves(&machine, &idle);
    assert_serves(&machine, &mounted);
    assert_well(&machine);
    machine.close()
}

#[test]
fn it_is_looked_at_from_outside_as_from_inside() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let [idle, _] = idle_and_mounted(&machine)?;
    let pid = machine.pid().to_string();
    // The master does not see a process of another pid namespace, and the kernel has nothing to tell it.
    let enter = ["--target", &pid, "--mount", "--", "cat", "/data/idle/file"];
    TestCommand::new("nsenter").args(enter).run().assert_code(1).assert_stderr_contains("No such file");
    assert_eq!(idle.states().0, "waiting");

    let outside = report(Tool::inspect().target(&machine));
    let inside = report(Tool::inspect().inside(&machine));
    assert_eq!(states(&outside), states(&inside));
    assert_eq!(states(&inside).iter().filter(|(_, state)| *state == State::Connected).count(), 2);
    assert_well(&machine);
    machine.close()
}

/// A service with a mount namespace of its own.
struct Private<'a> {
    machine: &'a Machine,
    name: String,
    /// Its main process, as the machine sees it.
    pid: Pid,
}

impl<'a> Private<'a> {
    fn start(machine: &'a Machine, name: &str, settings: &str) -> Result<Self> {
        let name = format!("{name}.service");
        machine
            .unit(&name, &format!("[Service]\nType=exec\nExecStart=/usr/bin/sleep infinity\n{settings}\n"))?;
        machine.reload();
        machine.systemctl(["start", &name]).assert_success();
        // It has executed its command, which it does in its own namespaces.
        let pid = machine.property(&name, "MainPID").parse().context("a pid")?;
        Ok(Self { machine, name, pid })
    }

    #[track_caller]
    fn mountinfo(&self) -> String {
        self.machine.run(["cat", &format!("/proc/{}/mountinfo", self.pid)]).assert_success().stdout
    }

    /// A command in its mount namespace, by a process that systemd sees.
    fn command(&self, words: &[&str]) -> TestCommand {
        let enter = ["--target", &self.pid.to_string(), "--mount", "--"];
        self.machine.command("nsenter").args(enter).args(words)
    }

    #[track_caller]
    fn assert_served(&self, automount: &Automount) {
        let read = self.command(&["cat", &format!("{}/file", automount.place)]).run();
        assert_eq!(read.stdout, CONTENT, "{}: {read}\n{}", self.name, self.machine.journal(""));
    }

    fn stop(&self) {
        self.machine.systemctl(["stop", &self.name]).assert_success();
    }
}

#[test]
fn services_with_mounts_of_their_own_are_served_before_and_after_a_replacement() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    for unit in ["data.mount", "etc-more.mount"] {
        machine.write(format!("/etc/systemd/system/{unit}.d/often.conf"), "[Unit]\nStartLimitBurst=100\n")?;
    }
    let both = Automount::start_all(&machine, ["/data", "/etc/more"], "/srv/a", 0)?;
    let [data, more] = both.as_slice() else { anyhow::bail!("not two") };
    let kinds = [
        ("tmp", "PrivateTmp=yes"),
        ("full", "ProtectSystem=full"),
        ("strict", "ProtectSystem=strict\nProtectHome=yes\nReadOnlyPaths=/srv"),
        ("slave", "MountFlags=slave"),
        ("users", "PrivateUsers=yes\nPrivateDevices=yes"),
        ("read-only", "ReadOnlyPaths=/data"),
        ("bound", "BindPaths=/data:/mnt"),
    ];
    let services = kinds.map(|(name, settings)| Private::start(&machine, name, settings));
    let services = services.into_iter().collect::<Result<Vec<_>>>()?;
    services[0].assert_served(data);
    machine.systemctl(["stop", "/data"]).assert_success();

    replace_all(&machine);

    for service in &services {
        for automount in [data, more] {
            assert_served_from_idle(&machine, service, automount)?;
        }
    }
    assert_well(&machine);
    machine.close()
}

/// The devices of what is mounted at a place.
fn devices_at<'a>(mountinfo: &'a str, place: &str) -> BTreeSet<&'a str> {
    let lines = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.filter(|words| words.get(4) == Some(&place)).filter_map(|words| words.get(2).copied()).collect()
}

/// An access by the service alone mounts it, for both, and it goes for both.
fn assert_served_from_idle(machine: &Machine, service: &Private, automount: &Automount) -> Result<()> {
    service.assert_served(automount);
    assert_serves(machine, automount);
    machine.systemctl(["stop", automount.place]).assert_success();
    automount.wait_until_idle();
    let (inside, outside) = (service.mountinfo(), machine.mountinfo());
    assert_eq!(devices_at(&inside, automount.place), devices_at(&outside, automount.place), "{inside}");
    Ok(())
}

#[test]
fn a_service_that_has_the_content_too_keeps_it_from_being_replaced_until_that_is_unmounted() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let [idle, mounted] = idle_and_mounted(&machine)?;
    let service = Private::start(&machine, "private", "PrivateTmp=yes")?;
    let before = machine.mountinfo();

    let (restored, fixed) = restore(&machine, &dump(&machine), &["--replace"]);
    let restored = restored.assert_code(1).assert_stderr_contains("/data/mounted (seen by sleep[");
    let restored = restored.assert_stderr_contains("] of private.service)");
    fixed.assert_code(1);
    assert_eq!(machine.mountinfo(), before);
    // Without --replace they are kept, and that is all that they need.
    let (kept, fixed) = restore(&machine, &dump(&machine), &[]);
    kept.assert_success().assert_stderr_contains("keep 2");
    fixed.assert_success();

    let command = restored.stderr.split_once(" too (").and_then(|(_, rest)| rest.split_once("), or "));
    let (command, other) = command.context("it tells no command")?;
    assert!(other.starts_with("stop private.service, or leave out --replace"), "{other}");
    TestCommand::new("sh").args(["-c", command]).about(&machine).run().assert_success();
    replace_all(&machine);
    service.assert_served(&mounted);
    assert_serves(&machine, &mounted);

    // The other way.
    let content = mounted.content();
    service.stop();
    replace_all(&machine);
    assert_eq!(mounted.content(), content);
    assert_serves(&machine, &idle);
    assert_well(&machine);
    machine.close()
}

#[test]
fn a_service_whose_mounts_are_private_keeps_them_from_being_replaced_until_it_is_stopped() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let idle = Automount::start(&machine, "/data", "/srv/a", 0)?;
    let service = Private::start(&machine, "private", "MountFlags=private")?;
    let before = machine.mountinfo();

    let (restored, fixed) = restore(&machine, &dump(&machine), &["--replace"]);
    restored.assert_code(1).assert_stderr_contains("stop private.service, or leave out");
    fixed.assert_code(1);
    assert_eq!(machine.mountinfo(), before);

    service.stop();
    replace_all(&machine);
    assert_serves(&machine, &idle);
    assert_well(&machine);
    machine.close()
}

#[test]
fn what_a_service_has_mounted_over_an_automount_stays_over_the_new_one() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    machine.sh("mkdir /data").assert_success();
    let service = Private::start(&machine, "kept-out", "InaccessiblePaths=/data")?;
    // The kernel puts its copy below what is there.
    let data = Automount::start(&machine, "/data", "/srv/a", 0)?;
    let before = service.mountinfo();
    let before = devices_at(&before, "/data");
    assert_eq!(before.len(), 2, "{before:?}");

    replace_all(&machine);

    let after = service.mountinfo();
    assert_eq!(devices_at(&after, "/data"), before, "{after}");
    service.command(&["cat", "/data/file"]).run().assert_code(1).assert_stderr_contains("No such file");
    assert_eq!(data.states(), ("waiting".into(), "dead".into()));
    assert_serves(&machine, &data);
    service.command(&["cat", "/data/file"]).run().assert_code(1).assert_stderr_contains("No such file");
    assert_well(&machine);
    machine.close()
}

#[test]
fn accesses_by_a_service_while_mounts_are_replaced_end_and_later_ones_are_served() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    machine.write("/etc/systemd/system/data.mount.d/often.conf", "[Unit]\nStartLimitBurst=100\n")?;
    let data = Automount::start(&machine, "/data", "/srv/a", 0)?;
    let service = Private::start(&machine, "private", "PrivateTmp=yes")?;

    for _ in 0..10 {
        let image = dump(&machine);
        let read = service.command(&["cat", "/data/file"]).spawn();
        // Whether it comes before, between or after is chance: it may find it in use, or content on it.
        let (restored, _) = restore(&machine, &image, &["--replace"]);
        let read = read.finish();
        assert!(read.stdout == CONTENT || read.stderr.contains("No such file"), "{read}\n{restored}");
        service.assert_served(&data);
        machine.systemctl(["stop", "/data"]).assert_success();
        data.wait_until_idle();
    }

    replace_all(&machine);
    assert_served_from_idle(&machine, &service, &data)?;
    assert_well(&machine);
    machine.close()
}

#[test]
fn an_access_while_it_is_replaced_does_not_mount_the_content_twice() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let [_, mounted] = idle_and_mounted(&machine)?;
    let content = mounted.content();
    let read = "while [ ! -e /run/enough ]; do read -r line </data/mounted/file; done";
    let readers: Vec<_> = (0..2).map(|_| machine.spawn(["bash", "-c", read])).collect();

    for round in 0..10 {
        let (restored, _) = restore(&machine, &dump(&machine), &["--replace"]);
        // It may be in use at that moment, and then all is as before.
        assert_eq!(
            mounted.content(),
            content,
            "round {round}\n{restored}\n{}",
            machine.journal("data-mounted.mount")
        );
    }

    machine.write("/run/enough", "")?;
    readers.into_iter().for_each(|reader| drop(reader.finish()));
    assert_serves(&machine, &mounted);
    assert_well(&machine);
    machine.close()
}

#[test]
fn a_replacement_whose_fixup_fails_is_undone_and_it_serves_on() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let (_turn, machine) = boot()?;
    let [idle, mounted] = idle_and_mounted(&machine)?;
    let (before, content) = (invocation(&machine, &mounted), mounted.content());
    // A fixup cannot stop a process that somebody else traces.
    let tracer = Tracer::of(machine.pid());
    let (restored, fixed) = restore(&machine, &dump(&machine), &["--replace", "--connect", "fixup"]);
    tracer.end();

    fixed.assert_code(1);
    restored.assert_code(1).assert_stderr_contains("everything was undone");
    assert_eq!(invocation(&machine, &mounted), before);
    assert_eq!(mounted.content(), content);
    assert_serves(&machine, &idle);
    assert_well(&machine);
    machine.close()
}

#[test]
fn a_unit_whose_mount_was_detached_has_to_be_restarted_and_restore_says_so() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let unit = Automount::start(&machine, "/data/my-files", "/srv/a", 0)?;
    let other = Automount::start(&machine, "/data/other", "/srv/a", 0)?;
    let image = dump(&machine);
    machine.run(["umount", "-l", "/data/my-files"]).assert_success();
    machine.wait_for_property(&unit.unit("automount"), "ActiveState", "failed");
    let before = machine.mountinfo();

    let advice = format!(r"nsenter -t {} -a systemctl restart 'data-my\x2dfiles.automount'", machine.pid());
    for arguments in [&[][..], &["--replace"], &["--connect", "fixup"]] {
        let refused = Tool::restore().target(&machine).args(arguments).stdin(&*image).run().assert_code(1);
        refused.assert_stderr_contains("/data/my-files: systemd-1 lives").assert_stderr_contains(&advice);
        assert_eq!(machine.mountinfo(), before, "nothing was changed");
    }
    // As the message says; what is served then is left as it is.
    TestCommand::new("sh").args(["-c", &advice]).run().assert_success();
    let kept = Tool::restore().target(&machine).stdin(&*image).run().assert_success();
    kept.assert_stderr_contains("/data/my-files is served by systemd[").assert_stderr_contains("keep 2");
    assert_serves(&machine, &unit);
    assert_serves(&machine, &other);
    machine.assert_nothing_blocked();
    machine.close()
}

#[test]
fn a_report_says_in_which_machine_and_in_which_unit_a_master_and_a_namespace_are() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let _automount = Automount::start(&machine, "/data", "/srv/a", 0)?;
    machine.unit(
        "private.service",
        "[Service]\nType=exec\nPrivateTmp=yes\nExecStart=/usr/bin/sleep infinity\n",
    )?;
    machine.reload();
    machine.systemctl(["start", "private.service"]).assert_success();

    let outside = report(Tool::inspect().target(&machine));
    let in_init = place(Some(machine.name()), "init.scope");
    assert_eq!(outside.process(machine.pid()).context("systemd")?.runs_in, in_init);
    assert_eq!(outside.namespaces[0].runs_in, in_init);

    let all = report(Tool::inspect().arg("-A"));
    let in_service = place(Some(machine.name()), "private.service");
    assert!(all.namespaces.iter().any(|namespace| namespace.runs_in == in_service), "{:?}", all.namespaces);

    // From inside of its control group namespace there is no machine to be seen.
    let inspect = program("autofs-inspect").display().to_string();
    let inside = report(machine.command("nsenter").args(["--target=1", "--cgroup", &inspect]));
    let systemd = inside.process(Pid::new(1).context("1")?).context("systemd")?;
    assert_eq!(systemd.runs_in, place(None, "init.scope"));
    machine.close()
}

#[test]
fn a_private_copy_of_a_service_is_severed_and_stale_when_the_automount_was_stopped() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let (_turn, machine) = boot()?;
    let automount = Automount::start(&machine, "/data", "/srv/a", 0)?;
    let service = |flags: &str| {
        format!(
            "[Service]\nType=exec\nPrivateMounts=yes\nMountFlags={flags}\nExecStart=/usr/bin/sleep infinity\n"
        )
    };
    machine.unit("private.service", &service("private"))?;
    machine.unit("slave.service", &service("slave"))?;
    machine.reload();
    machine.systemctl(["start", "private.service", "slave.service"]).assert_success();

    assert_eq!(
        copies(&machine, ["init.scope", "private.service", "slave.service"]),
        [vec![None], vec![Some(CopyFault::Severed)], vec![None]]
    );
    machine.systemctl(["stop", &automount.unit("automount")]).assert_success();
    // What systemd unmounts is unmounted in the slave too.
    assert_eq!(
        copies(&machine, ["init.scope", "private.service", "slave.service"]),
        [vec![], vec![Some(CopyFault::Stale)], vec![]]
    );
    machine.close()
}

/// What a report from inside says of the mounts at /data in the mount namespaces of these units.
fn copies<const N: usize>(machine: &Machine, units: [&str; N]) -> [Vec<Option<CopyFault>>; N] {
    let seen = report(Tool::inspect().inside(machine).arg("-A"));
    units.map(|unit| {
        let in_unit = place(Some(machine.name()), unit);
        let namespace = seen.namespaces.iter().find(|namespace| namespace.runs_in == in_unit);
        let id = namespace.unwrap_or_else(|| panic!("{unit}: {:?}", seen.namespaces)).id;
        let mounts = seen.mounts.iter().filter(|mount| mount.namespace == id);
        mounts.filter(|mount| mount.mount_point.ends_with("data")).map(|mount| mount.copy).collect()
    })
}

fn place(container: Option<&str>, unit: &str) -> RunsIn {
    let text = |text: &str| TextPath::from_bytes(text.as_bytes().to_vec());
    RunsIn { container: container.map(text), unit: Some(text(unit)) }
}
