//! The commands that autofs-inspect shows: each is typed into a shell as it is shown, on the host, and repairs.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context, Result};
use autofs_cr_tests::machine::{Autofs, Automount, Machine};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{make_catatonic, read_image};
use autofs_cr_tests::sandbox::{
    Finished, Inside, MasterOptions, Running, Sandbox, TestCommand, Tool, TouchError, program,
    wait_until_blocked,
};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

/// What inspect shows as the command for a mount, which is the same in all that it writes.
#[track_caller]
fn shown(inside: &Inside, mount_point: &Path, scope: &[&str]) -> String {
    let inspect = || Tool::inspect().args(scope).arg(mount_point);
    let json = inspect().args(["-q", "-J", "-o", "REPAIR"]).run().assert_success().stdout;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let command = json["mounts"][0]["repair"].as_str().expect("a command").to_owned();
    let table = inspect().about(inside).run().assert_success();
    table.assert_stderr_contains(&format!("; to repair: {command}\n"));
    inspect()
        .arg("--check")
        .run()
        .assert_code(3)
        .assert_stdout_contains(&format!("; to repair: {command}\n"));
    command
}

#[track_caller]
fn command(inside: &Inside, mount_point: impl AsRef<Path>) -> String {
    shown(inside, mount_point.as_ref(), &["-p", &inside.pid().to_string()])
}

/// A shell into which a command is typed, with the tools in its path.
fn shell(command: &str) -> TestCommand {
    let tools = program("autofs-inspect");
    let tools = tools.parent().expect("a directory").display();
    let path = std::env::var("PATH").unwrap_or_default();
    TestCommand::new("sh").args(["-c", command]).env("PATH", format!("{tools}:{path}"))
}

/// One in which `DAEMON` is a reference master.
fn shell_with_daemon(command: &str) -> TestCommand {
    shell(command).env("DAEMON", format!("{} --pipe-fd 3", program("reference-master").display()))
}

/// Nothing is left to repair, and nobody waits.
#[track_caller]
fn assert_well(inside: &Inside) {
    Tool::inspect().target(inside).arg("--check").run().assert_success();
    inside.assert_nothing_blocked();
}

/// Waits until all is well. A touch before that would make a mount catatonic.
#[track_caller]
fn wait_until_well(sandbox: &Sandbox) {
    let check = program("autofs-inspect").display().to_string();
    let script = format!("until {check} --check >/dev/null; do sleep 0.01; done");
    sandbox.run(["sh", "-c", &script]).assert_success();
}

fn start_blocked(command: TestCommand) -> Running {
    let mut running = command.spawn();
    let pid = running.process().pid();
    wait_until_blocked(running.process(), 1, || vec![pid]);
    running
}

/// What somebody who waits was told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Killed,
    NoEntry,
}

#[track_caller]
fn assert_told(waiter: Finished, told: Told) {
    match told {
        Told::Killed => drop(waiter.check(true, "").end.filter(|end| *end == KILLED).expect("killed")),
        Told::NoEntry => drop(waiter.assert_stderr_contains("No such file or directory")),
    }
}

const KILLED: autofs_cr_tests::sandbox::End = autofs_cr_tests::sandbox::End::Signal(Signal::SIGKILL as i32);

/// With a mount of this kind, whose master has died, on which these wait. At the end `path` is served.
fn dead_master_is_replaced(
    path: &str,
    kind: fn(MasterOptions, &'static str) -> MasterOptions,
    waits: &[(&str, Told)],
) -> Result<()> {
    let sandbox = Sandbox::new()?;
    let options = kind(MasterOptions::new(), "m").arg("--ignore-requests");
    let master = sandbox.master(options)?;
    let waiting: Vec<_> = waits
        .iter()
        .map(|(path, told)| (start_blocked(sandbox.command("cat").arg(sandbox.path(path))), *told))
        .collect();
    master.kill()?;
    let command = command(&sandbox, sandbox.path("m"));
    assert_eq!(command.contains("--kill"), waits.iter().any(|(_, told)| *told == Told::Killed), "{command}");
    // The daemon stays, so nobody waits for its end.
    let mut repair = shell_with_daemon(&command).spawn();
    wait_until_well(&sandbox);
    for (waiter, told) in waiting {
        assert_told(waiter.finish(), told);
    }
    sandbox.touch(sandbox.path(path))?;
    repair.process().kill()?;
    Ok(())
}

#[test]
fn an_indirect_mount_whose_master_died_is_given_to_another_one() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    dead_master_is_replaced("m/new", MasterOptions::indirect, &[])?;
    dead_master_is_replaced(
        "m/new",
        MasterOptions::indirect,
        &[("m/key", Told::NoEntry), ("m/other", Told::NoEntry)],
    )
}

#[test]
fn a_direct_mount_whose_master_died_is_given_to_another_one() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    dead_master_is_replaced("m", MasterOptions::direct, &[])?;
    dead_master_is_replaced("m", MasterOptions::direct, &[("m/x", Told::Killed), ("m/y", Told::NoEntry)])
}

#[test]
fn an_offset_mount_whose_master_died_is_given_to_another_one() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    dead_master_is_replaced("m", MasterOptions::offset, &[("m", Told::Killed)])
}

#[test]
fn several_mounts_with_names_of_all_kinds_are_repaired_by_one_command() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let names = ["plain", "a b", "it's", "new\nline", "50%\\n", "größe"];
    let options = names.iter().fold(MasterOptions::new(), |options, name| options.indirect(name));
    let master = sandbox.master(options.arg("--ignore-requests"))?;
    let waiting = names.map(|name| start_blocked(sandbox.command("cat").arg(sandbox.path(name).join("key"))));
    master.kill()?;
    let table = Tool::inspect().target(&sandbox).run().assert_success();
    let line = table.stderr.lines().find_map(|line| line.split_once(": orphaned; to repair: "));
    let (_, command) = line.with_context(|| format!("a command: {table}"))?;
    let mut repair = shell_with_daemon(command).spawn();
    wait_until_well(&sandbox);
    waiting.into_iter().for_each(|waiter| assert_told(waiter.finish(), Told::NoEntry));
    repair.process().kill()?;
    Ok(())
}

#[test]
fn a_catatonic_mount_is_connected_from_an_older_image() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d").indirect("i"))?;
    let image = sandbox.path("image");
    let text = Tool::dump().target(&sandbox).run().assert_success().stdout;
    std::fs::write(sandbox.outside(&image), &text)?;
    master.kill()?;
    make_catatonic(&sandbox, &text);
    let command = command(&sandbox, sandbox.path("d"));
    let missing = shell_with_daemon(&command).run();
    missing
        .check(true, "")
        .assert_stderr_contains("IMAGE")
        .assert_stderr_contains("autofs-dump wrote before");
    // The image knows the number of the pipe's descriptor.
    let fd = read_image(&text).masters[0].pipes[0].read_end.as_ref().context("a read end")?.fd;
    let daemon = format!("{} --pipe-fd {fd}", program("reference-master").display());
    let mut repair = shell(&command).env("DAEMON", daemon).env("IMAGE", &image).spawn();
    wait_until_well(&sandbox);
    repair.process().kill()?;
    Ok(())
}

#[test]
fn a_command_that_lacks_something_changes_nothing_and_nothing_goes_on_after_a_failure() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d").arg("--ignore-requests"))?;
    let _waiter = start_blocked(sandbox.command("cat").arg(sandbox.path("d")));
    master.kill()?;
    let before = sandbox.mountinfo();
    let command = command(&sandbox, sandbox.path("d"));
    let unset = shell(&command).run();
    let unset = unset.assert_stderr_contains("DAEMON").assert_stderr_contains("export it first");
    assert_ne!(unset.end, Some(autofs_cr_tests::sandbox::End::Exit(0)));
    assert_eq!(sandbox.mountinfo(), before);
    // One of the tools is not there.
    let tools = sandbox.outside(sandbox.mkdir("tools")?);
    for tool in ["autofs-dump", "autofs-restore"] {
        std::os::unix::fs::symlink(program(tool), tools.join(tool))?;
    }
    let inside = sandbox.path("tools").display().to_string();
    let path = format!("{inside}:/usr/bin:/bin");
    let failed = TestCommand::new("sh").args(["-c", &command]).env("PATH", path).env("DAEMON", "true").run();
    let failed = failed.assert_stderr_contains("autofs-fixup: not found");
    assert!(!failed.stderr.contains("autofs-restore"), "{failed}");
    assert_eq!(sandbox.mountinfo(), before);
    Ok(())
}

#[test]
fn automount_that_died_is_started_again_although_somebody_waits_on_a_direct_mount() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let machine = Machine::boot()?;
    let automount = Autofs::start(&machine, 300)?;
    let mut first = machine.touch_in_background("/dir/hang/file");
    first.wait_until_blocked();
    let mut joined = machine.touch_in_background("/dir/hang");
    joined.wait_until_blocked();
    automount.kill()?;
    let command = command(&machine, "/dir/hang");
    assert!(command.starts_with("autofs-fixup --free --kill -p "), "{command}");
    assert!(command.ends_with(" -a systemctl restart autofs"), "{command}");
    shell(&command).run().assert_success();
    assert_eq!(first.join(), Err(TouchError::Killed(Signal::SIGKILL as i32)));
    assert_eq!(joined.join(), Err(TouchError::Errno(Errno::ENOENT)));
    assert_well(&machine);
    assert_eq!(machine.read("/dir/a/file")?, "a");
    assert_eq!(machine.read("/ind/b/file")?, "b");
    machine.close()
}

#[test]
fn automount_that_does_not_answer_has_its_mount_freed() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let machine = Machine::boot()?;
    let _automount = Autofs::start(&machine, 300)?;
    let mut waiter = machine.touch_in_background("/ind/hang");
    waiter.wait_until_blocked();
    let hung = Path::new("/ind");
    let command = shown(&machine, hung, &["--patience=0", "-p", &machine.pid().to_string()]);
    shell(&command).run().assert_success();
    assert_eq!(waiter.join(), Err(TouchError::Errno(Errno::ENOENT)));
    machine.close()
}

#[test]
fn masters_that_were_stopped_or_frozen_go_on() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let machine = Machine::boot()?;
    machine.write("/srv/a/file", "a")?;
    let automount = Autofs::start(&machine, 300)?;
    let _unit = Automount::start(&machine, "/data", "/srv/a", 0)?;
    assert_well(&machine);
    for (pid, place, file) in
        [(machine.pid(), "/data", "/data/file"), (automount.pid(), "/ind", "/ind/a/file")]
    {
        kill(pid.to_nix(), Signal::SIGSTOP)?;
        let mut waiter = machine.touch_in_background(file);
        waiter.wait_until_blocked();
        let command = command(&machine, place);
        assert_eq!(command, format!("kill -CONT {pid}"));
        shell(&command).run().assert_success();
        waiter.join()?;
        assert_well(&machine);
    }
    // As `systemctl freeze` does, for which a machine has no message bus.
    machine.sh("echo 1 >/sys/fs/cgroup/system.slice/autofs.service/cgroup.freeze").assert_success();
    let command = command(&machine, "/ind");
    assert!(
        command.starts_with("echo 0 >/") && command.contains("/autofs.service/cgroup.freeze"),
        "{command}"
    );
    shell(&command).run().assert_success();
    assert_eq!(machine.read("/ind/b/file")?, "b");
    assert_well(&machine);
    machine.close()
}

#[test]
fn copies_of_services_are_made_anew() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let machine = Machine::boot()?;
    machine.write("/srv/a/file", "a")?;
    let automount = Automount::start(&machine, "/data", "/srv/a", 0)?;
    let unit =
        "[Service]\nType=exec\nPrivateMounts=yes\nMountFlags=private\nExecStart=/usr/bin/sleep infinity\n";
    machine.unit("private.service", unit)?;
    machine.reload();
    let main = |what: &str| -> Result<_> {
        machine.systemctl([what, "private.service"]).assert_success();
        machine.pid_of(machine.property("private.service", "MainPID").parse()?)
    };
    let faults = |pid: autofs_cr_common::model::Pid| {
        Tool::inspect().args(["-n", "-r", "-o", "COPY", "-p", &pid.to_string()]).run().assert_success().stdout
    };
    let severed = main("start")?;
    assert_eq!(faults(severed), "severed\n");
    let read = |pid: autofs_cr_common::model::Pid| {
        let target = pid.to_string();
        TestCommand::new("nsenter").args(["-t", &target, "-m", "-p", "cat", "/data/file"]).run()
    };
    read(severed).assert_stderr_contains("Too many levels of symbolic links");
    let command = shown(&machine, Path::new("/data"), &["-p", &severed.to_string()]);
    assert!(command.contains("MountFlags=slave"), "{command}");
    shell(&command).run().assert_success();
    let linked = machine.pid_of(machine.property("private.service", "MainPID").parse()?)?;
    assert_eq!(faults(linked), "-\n");
    assert_eq!(read(linked).assert_success().stdout, "a");

    // Without what was written besides, it is private again, and keeps what systemd does not have any more.
    machine.sh("rm -r /etc/systemd/system/private.service.d; systemctl daemon-reload").assert_success();
    let stale = main("restart")?;
    machine.systemctl(["stop", &automount.unit("automount")]).assert_success();
    assert_eq!(faults(stale), "stale\n");
    let command = shown(&machine, Path::new("/data"), &["-p", &stale.to_string()]);
    shell(&command).run().assert_success();
    let renewed = machine.pid_of(machine.property("private.service", "MainPID").parse()?)?;
    assert_eq!(faults(renewed), "");
    machine.close()
}
