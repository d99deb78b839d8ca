//! autofs-inspect on the real kernel.

use std::path::Path;

use anyhow::{Context, Result};
use autofs_cr_common::doc::report::{
    Access, Mount, Process, RequestKind, Superblock, Waiter, WaiterRole, Within,
};
use autofs_cr_common::doc::{self, Report};
use autofs_cr_common::model::{MountType, Pid, State};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{
    Master, MasterOptions, Running, Sandbox, TestCommand, Tool, program, wait_until_blocked,
};
use nix::sys::signal::Signal;

/// What inspect says of a sandbox, asked from outside.
#[track_caller]
fn inspect(sandbox: &Sandbox) -> Report {
    report(Tool::inspect().target(sandbox))
}

#[track_caller]
fn report(command: TestCommand) -> Report {
    let text = command.args(["-f", "yaml"]).run().assert_success().stdout;
    doc::parse(text.as_bytes(), "the report").expect("a valid report")
}

/// The same without the times since when somebody waits, which are rounded.
fn without_times(mut report: Report) -> Report {
    report.waiters.iter_mut().for_each(|waiter| waiter.since = None);
    report
}

/// The topmost autofs mount at a path in the work directory, and its superblock.
#[track_caller]
fn find<'a>(report: &'a Report, sandbox: &Sandbox, name: &str) -> (&'a Mount, &'a Superblock) {
    let place = sandbox.path(name);
    let mount =
        report.mounts.iter().rfind(|mount| *mount.mount_point == *place).expect("the mount is listed");
    (mount, report.superblock(mount.device).expect("its superblock is listed"))
}

#[track_caller]
fn state(sandbox: &Sandbox, name: &str) -> (State, String) {
    let report = inspect(sandbox);
    let superblock = find(&report, sandbox, name).1;
    (superblock.state, superblock.reason.clone())
}

#[track_caller]
fn process(report: &Report, pid: Pid) -> &Process {
    report.process(pid).expect("the process is listed")
}

/// A process in the sandbox, in a process group of its own, that holds the read end of a master's
/// first mount.
fn holder(sandbox: &Sandbox, master: &mut Master) -> Result<Running> {
    let read_fd = master.report()?.mounts[0].read_fd;
    let script = format!(
        "setsid sh -c 'exec 7</proc/{}/fd/{read_fd}; : >{}; exec sleep 1000'",
        master.pid_inside(),
        sandbox.path("holds").display()
    );
    let holder = sandbox.command("sh").args(["-c", &script]).spawn();
    wait_for(sandbox, "holds");
    Ok(holder)
}

/// Waits until a file is in the work directory.
#[track_caller]
fn wait_for(sandbox: &Sandbox, name: &str) {
    let place = sandbox.path(name).display().to_string();
    sandbox.run(["sh", "-c", &format!("until [ -e {place} ]; do sleep 0.01; done")]).assert_success();
}

#[test]
fn direct_indirect_and_offset_mounts_of_one_pipe_are_connected() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master =
        sandbox.master(MasterOptions::new().direct("d").indirect("i").offset("o").direct("d2"))?;
    let report = inspect(&sandbox);
    let mut pipes = Vec::new();
    for (name, kind) in [
        ("d", MountType::Direct),
        ("i", MountType::Indirect),
        ("o", MountType::Offset),
        ("d2", MountType::Direct),
    ] {
        let (_, superblock) = find(&report, &sandbox, name);
        assert_eq!((superblock.options.mount_type, superblock.state), (kind, State::Connected), "{name}");
        assert_eq!(superblock.master, Some(master.pid()), "{name}");
        pipes.push(superblock.pipe.context("a pipe")?);
    }
    pipes.dedup();
    assert_eq!(pipes.len(), 1);
    let ends: Vec<Access> = process(&report, master.pid()).pipe_ends.iter().map(|end| end.access).collect();
    assert_eq!(ends, [Access::Read, Access::Write]);
    assert_eq!(master.report()?.counters.served, 0);
    Ok(())
}

#[test]
fn ids_are_those_of_the_reader_with_the_way_to_the_masters_own() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d").like_systemd())?;
    let (outer, inner) = (u32::from(master.pid()), u32::from(master.pid_inside()));

    let outside = inspect(&sandbox);
    let seen = process(&outside, master.pid());
    assert!(seen.ids.starts_with(&[outer]) && seen.ids.ends_with(&[inner]), "{:?}", seen.ids);
    assert_eq!(seen.group_ids, seen.ids);
    assert_eq!(find(&outside, &sandbox, "d").1.pgrp, Some(master.pid()));
    let [end] = seen.pipe_ends.as_slice() else { panic!("one end: {:?}", seen.pipe_ends) };
    assert_eq!((end.access, end.flags.nonblock), (Access::Read, true));

    let inside = report(Tool::inspect().inside(&sandbox));
    assert_eq!(process(&inside, master.pid_inside()).ids, [inner]);
    assert_eq!(find(&inside, &sandbox, "d").1.pgrp, Some(master.pid_inside()));
    assert_eq!(inside.namespaces.len(), 1);
    assert_eq!(inside.namespaces[0].id, outside.namespaces[0].id);
    assert_eq!(inside.namespaces[0].process, Pid::new(1).context("the init")?);
    Ok(())
}

#[test]
fn bind_mounts_show_one_superblock() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().indirect("i").arg("--subdir=sub"))?;
    let (whole, part) = (sandbox.mkdir("whole")?, sandbox.mkdir("part")?);
    let from = sandbox.path("i");
    sandbox.run(["mount", "--bind", &from.to_string_lossy(), &whole.to_string_lossy()]).assert_success();
    // A bind of less than all, of a key that has nothing mounted on it, is for the master alone.
    let report = inspect(&sandbox);
    let (mount, superblock) = find(&report, &sandbox, "whole");
    assert_eq!(find(&report, &sandbox, "i").0.device, mount.device);
    assert_eq!(superblock.state, State::Connected);
    let shown = report.mounts.iter().filter(|other| other.device == mount.device).count();
    assert_eq!(shown, 2);
    assert!(!report.mounts.iter().any(|mount| *mount.mount_point == *part));
    Ok(())
}

#[test]
fn what_is_mounted_on_a_trigger_is_its_content() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").indirect("i"))?;
    sandbox.touch(sandbox.path("d"))?;
    sandbox.touch(sandbox.path("i/key"))?;
    let report = inspect(&sandbox);
    let (mount, _) = find(&report, &sandbox, "d");
    let content: Vec<_> = report.content.iter().filter(|content| content.parent == mount.id).collect();
    assert_eq!(content.len(), 1);
    assert_eq!(
        (&*content[0].mount_point, content[0].fstype.as_bytes()),
        (&*sandbox.path("d"), &b"tmpfs"[..])
    );
    let (mount, _) = find(&report, &sandbox, "i");
    let key = report.content.iter().find(|content| content.parent == mount.id).context("the key")?;
    assert_eq!(*key.mount_point, *sandbox.path("i/key"));
    assert_eq!(mount.within, Within::Other);

    let table = Tool::inspect().target(&sandbox).run().assert_success().stdout;
    assert!(table.contains(&format!("tmpfs {}", sandbox.path("i/key").display())), "{table}");
    assert_eq!(master.report()?.counters.served, 2);
    Ok(())
}

#[test]
fn an_overmounted_trigger_and_a_mount_in_content_are_told_apart() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let mut first = sandbox.master(MasterOptions::new().direct("d"))?;
    sandbox.touch(sandbox.path("d"))?;
    let second = sandbox.master(MasterOptions::new().direct("d/inner").indirect("d"))?;
    let report = inspect(&sandbox);
    let (inner, superblock) = find(&report, &sandbox, "d/inner");
    assert_eq!((inner.within, superblock.master), (Within::Content, Some(second.pid())));
    let at_d: Vec<&Mount> =
        report.mounts.iter().filter(|mount| *mount.mount_point == *sandbox.path("d")).collect();
    assert_eq!(at_d.iter().map(|mount| mount.covers).collect::<Vec<_>>(), [false, true]);
    assert_eq!(at_d[1].within, Within::Content);
    assert!(inner.buried, "the second mount on d hides d/inner");
    assert_eq!(first.report()?.counters.served, 1);
    Ok(())
}

#[test]
fn a_dead_master_leaves_an_orphaned_mount() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d"))?;
    let group = master.pid();
    master.kill()?;
    let report = inspect(&sandbox);
    let (_, superblock) = find(&report, &sandbox, "d");
    let pipe = superblock.pipe.context("a pipe")?;
    assert_eq!(superblock.state, State::Orphaned);
    assert_eq!(
        superblock.reason,
        format!("orphaned: no process holds the read end of pipe {pipe}; its process group {group} is gone")
    );
    assert_eq!((superblock.master, superblock.pgrp), (None, Some(group)));
    Ok(())
}

#[test]
fn a_read_end_outside_the_group_is_delegated() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d"))?;
    let _holder = holder(&sandbox, &mut master)?;
    assert_eq!(state(&sandbox, "d").0, State::Connected, "the master's own group comes first");
    let group = master.pid();
    master.kill()?;
    let (state, reason) = state(&sandbox, "d");
    assert_eq!(state, State::Delegated, "{reason}");
    assert!(reason.contains(&format!("is not in its process group {group}")), "{reason}");
    let report = inspect(&sandbox);
    let reader = find(&report, &sandbox, "d").1.master.context("a master")?;
    assert_eq!(process(&report, reader).command.as_bytes(), b"sleep");
    Ok(())
}

#[test]
fn a_mount_without_a_pipe_is_catatonic() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d"))?;
    let mount = master.report()?.mounts.remove(0);
    let probe = program("autofs-probe").display().to_string();
    let path = mount.path.display().to_string();
    sandbox.run([&probe, "catatonic", &path, &mount.device]).assert_success();
    let report = inspect(&sandbox);
    let (_, superblock) = find(&report, &sandbox, "d");
    assert_eq!((superblock.state, superblock.pipe, superblock.fd), (State::Catatonic, None, None));
    Ok(())
}

#[test]
fn another_user_is_told_what_could_not_be_seen() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d"))?;
    let run = Tool::inspect().inside(&sandbox).user(65534).args(["-f", "yaml"]).run().assert_success();
    let report: Report = doc::parse(run.stdout.as_bytes(), "the report")?;
    let (_, superblock) = find(&report, &sandbox, "d");
    assert_eq!(superblock.state, State::Unknown);
    assert!(superblock.reason.contains("are not visible"), "{}", superblock.reason);
    assert!(report.hidden.iter().any(|hidden| hidden.contains("descriptors")), "{:?}", report.hidden);
    run.assert_stderr_contains("not visible: the descriptors of");
    Tool::inspect().inside(&sandbox).user(65534).arg("--check").run().assert_code(3);
    Tool::inspect()
        .target(&sandbox)
        .user(65534)
        .run()
        .assert_code(1)
        .assert_stderr_contains("cannot read the mounts of process");
    assert_eq!(master.report()?.counters.served, 0);
    Ok(())
}

#[test]
fn control_fds_are_found_by_their_mount_also_when_it_is_covered_or_detached() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().direct("d").indirect("i").indirect("gone").arg("--control-fds");
    let mut master = sandbox.master(options)?;
    sandbox.touch(sandbox.path("d"))?;
    let mounts = master.report()?.mounts;
    let mut expected: Vec<_> =
        mounts.iter().filter_map(|mount| Some((mount.control_fd?, mount.device.clone()))).collect();
    expected.sort();
    assert_eq!(expected.len(), 3);
    let found = |report: &Report| -> Vec<(i32, String)> {
        let fds = &process(report, master.pid()).control_fds;
        fds.iter().map(|control| (control.fd, control.device.to_string())).collect()
    };
    assert_eq!(found(&inspect(&sandbox)), expected);

    // Another mount keeps the superblock of a detached one in sight.
    let (gone, kept) = (sandbox.path("gone"), sandbox.mkdir("kept")?);
    let (gone, kept) = (gone.to_string_lossy(), kept.to_string_lossy());
    sandbox.run(["mount", "--bind", &gone, &kept]).assert_success();
    sandbox.run(["umount", "--lazy", &gone]).assert_success();
    assert_eq!(found(&inspect(&sandbox)), expected);
    Ok(())
}

#[test]
fn a_request_that_waits_is_shown_and_not_touched() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().direct("d").indirect("i").arg("--ignore-requests");
    let mut master = sandbox.master(options)?;
    let mut on_key = sandbox.touch_in_background(sandbox.path("i/a key"));
    on_key.wait_until_blocked();
    let mut on_root = sandbox.touch_in_background(sandbox.path("d"));
    on_root.wait_until_blocked();
    let first = inspect(&sandbox);
    assert_eq!(first.requests.len(), 2);
    let [key, root] = first.requests.as_slice() else { panic!("two requests") };
    assert_eq!(key.name.as_ref().map(|name| name.as_bytes()), Some(&b"a key"[..]));
    assert_eq!((key.kind, key.device), (RequestKind::Mount, find(&first, &sandbox, "i").1.device));
    assert_eq!((&root.name, root.device), (&None, find(&first, &sandbox, "d").1.device));
    assert_eq!(without_times(inspect(&sandbox)), without_times(first.clone()));
    let known = master.report()?.mounts;
    assert!(known.iter().any(|mount| mount.inode == root.inode), "the inode is that of the root");
    for touch in [on_key, on_root] {
        assert!(touch.kill().is_err());
    }
    Ok(())
}

/// The only thread that waits.
#[track_caller]
fn only_waiter(report: &Report) -> &Waiter {
    let [waiter] = report.waiters.as_slice() else { panic!("one waiter: {:?}", report.waiters) };
    waiter
}

/// Starts a program that comes to wait in autofs, and waits for that.
#[track_caller]
fn start_blocked(command: TestCommand) -> Running {
    let mut running = command.spawn();
    let pid = running.process().pid();
    wait_until_blocked(running.process(), 1, || vec![pid]);
    running
}

/// The part that a waiter has, on what, and for what.
fn wait_of(report: &Report, sandbox: &Sandbox, waiter: &Waiter) -> (WaiterRole, String, String) {
    let inside = |path: &Path| match path.strip_prefix(sandbox.work()) {
        Ok(inside) => inside.display().to_string(),
        Err(_) => path.display().to_string(),
    };
    let mount = report.mounts.iter().find(|mount| Some(mount.device) == waiter.device);
    let mount = mount.map_or("-".to_owned(), |mount| inside(&mount.mount_point));
    (waiter.role, mount, waiter.path.as_ref().map_or("-".to_owned(), |path| inside(path)))
}

#[track_caller]
fn assert_waits(report: &Report, sandbox: &Sandbox, pid: Pid, role: WaiterRole, mount: &str, path: &str) {
    let waiter = report.waiters.iter().find(|waiter| waiter.pid == pid).expect("it is listed");
    assert_eq!(wait_of(report, sandbox, waiter), (role, mount.to_owned(), path.to_owned()));
}

/// What inspect says when the master has read all requests.
fn inspect_after_reading(sandbox: &Sandbox, master: &mut Master, requests: u64) -> Result<Report> {
    while master.report()?.counters.swallowed < requests {}
    let report = inspect(sandbox);
    assert_eq!(report.requests, []);
    Ok(report)
}

#[test]
fn who_waits_is_named_with_its_mount_and_what_it_asked_for() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().direct("d").indirect("i").offset("o").arg("--ignore-requests");
    let _master = sandbox.master(options)?;
    assert_eq!(inspect(&sandbox).waiters, []);
    for (name, on) in [("i/a key", "i"), ("d", "d"), ("o", "o")] {
        let mut touch = sandbox.touch_in_background(sandbox.path(name));
        touch.wait_until_blocked();
        let report = inspect(&sandbox);
        let waiter = only_waiter(&report);
        assert_eq!((waiter.pid, waiter.tid, waiter.uid), (touch.pid(), touch.pid(), 0), "{name}");
        assert_eq!(waiter.command.as_bytes(), b"sandbox-init");
        assert_waits(&report, &sandbox, touch.pid(), WaiterRole::First, on, name);
        assert_eq!(without_times(inspect(&sandbox)), without_times(report));
        assert!(touch.kill().is_err());
        assert_eq!(inspect(&sandbox).waiters, [], "{name}");
    }
    Ok(())
}

#[test]
fn who_asked_first_and_who_joined_are_told_apart_before_and_after_the_request_is_read() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    for option in ["--ignore-requests", "--swallow"] {
        let sandbox = Sandbox::new()?;
        let mut master = sandbox.master(MasterOptions::new().direct("d").indirect("i").arg(option))?;
        let mut first = [
            start_blocked(sandbox.command("cat").arg(sandbox.path("i/key"))),
            start_blocked(sandbox.command("cat").arg(sandbox.path("d/below"))),
        ];
        let mut joined = [
            start_blocked(sandbox.command("ls").arg(sandbox.path("i/key"))),
            start_blocked(sandbox.command("stat").arg(sandbox.path("d"))),
            start_blocked(sandbox.command("mountpoint").arg(sandbox.path("d"))),
        ];
        let report = match option {
            "--swallow" => inspect_after_reading(&sandbox, &mut master, 2)?,
            _ => inspect(&sandbox),
        };
        assert_eq!(report.waiters.len(), 5, "{option}");
        for (running, mount, path) in [(0, "i", "i/key"), (1, "d", "d/below")] {
            let pid = first[running].process().pid();
            assert_waits(&report, &sandbox, pid, WaiterRole::First, mount, path);
        }
        for (running, mount, path) in [(0, "i", "i/key"), (1, "d", "d"), (2, "d", "d")] {
            let pid = joined[running].process().pid();
            assert_waits(&report, &sandbox, pid, WaiterRole::Joined, mount, path);
        }
        assert!(report.waiters.is_sorted_by_key(|waiter| (waiter.pid, waiter.tid)));
    }
    Ok(())
}

#[test]
fn those_who_wait_for_a_dead_master_are_still_named() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d").indirect("i").arg("--ignore-requests"))?;
    let mut on_key = start_blocked(sandbox.command("cat").arg(sandbox.path("i/key")));
    let mut on_root = start_blocked(sandbox.command("cat").arg(sandbox.path("d")));
    let mut joined = start_blocked(sandbox.command("cat").arg(sandbox.path("d/file")));
    let [key, root, file] =
        [&mut on_key, &mut on_root, &mut joined].map(|running: &mut Running| running.process().pid());
    master.kill()?;
    let report = inspect(&sandbox);
    assert_waits(&report, &sandbox, key, WaiterRole::First, "i", "i/key");
    assert_waits(&report, &sandbox, root, WaiterRole::First, "d", "d");
    assert_waits(&report, &sandbox, file, WaiterRole::Joined, "d", "d/file");

    Ok(())
}

#[test]
fn each_thread_that_waits_is_named() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").indirect("i").arg("--swallow"))?;
    let probe = sandbox.command(program("autofs-probe")).arg("open-in-threads");
    let mut running = probe.args([sandbox.path("d"), sandbox.path("i/key")]).spawn();
    let pid = running.process().pid();
    wait_until_blocked(running.process(), 2, || vec![pid]);
    let report = inspect_after_reading(&sandbox, &mut master, 2)?;
    let [one, other] = report.waiters.as_slice() else { panic!("two waiters: {:?}", report.waiters) };
    assert!((one.pid, other.pid) == (pid, pid) && one.tid < other.tid && one.tid != pid, "{report:?}");
    let mut waits = [wait_of(&report, &sandbox, one), wait_of(&report, &sandbox, other)];
    waits.sort_by(|one, other| one.1.cmp(&other.1));
    let first = |mount: &str, path: &str| (WaiterRole::First, mount.to_owned(), path.to_owned());
    assert_eq!(waits, [first("d", "d"), first("i", "i/key")]);
    let table = Tool::inspect().target(&sandbox).run().assert_success();
    table.assert_stderr_contains(&format!("autofs-probe[{pid}, thread {}] of root ", one.tid));
    Ok(())
}

#[test]
fn a_path_is_named_from_where_it_starts() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").indirect("i").arg("--swallow"))?;
    let (work, i) = (sandbox.work().display().to_string(), sandbox.path("i").display().to_string());
    let shell = |script: String| sandbox.command("sh").args(["-c", &script]);
    let at = sandbox.command(program("autofs-probe")).args(["open-at", &i]);
    let commands = [
        (shell(format!("cd {work} && exec cat i/one")), "i", "i/one"),
        (shell(format!("cd {i} && exec cat two")), "i", "i/two"),
        (shell(format!("cd {i} && exec cat .././d//./x")), "d", "d/x"),
        (at.arg("three/x"), "i", "i/three/x"),
        (shell(format!("cd {work} && exec i/four")), "i", "i/four"),
    ];
    let mut running = Vec::new();
    for (command, mount, path) in commands {
        let mut started = start_blocked(command);
        let report = inspect_after_reading(&sandbox, &mut master, running.len() as u64 + 1)?;
        assert_waits(&report, &sandbox, started.process().pid(), WaiterRole::First, mount, path);
        running.push(started);
    }
    Ok(())
}

#[test]
fn behind_a_symbolic_link_the_mount_is_only_told_while_the_request_is_unread() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    for (option, mount) in [("--ignore-requests", "i"), ("--swallow", "-")] {
        let sandbox = Sandbox::new()?;
        let mut master = sandbox.master(MasterOptions::new().indirect("i").arg(option))?;
        let link = sandbox.path("link");
        sandbox.run(["ln", "-s", "i/key", &link.display().to_string()]).assert_success();
        let mut waiter = start_blocked(sandbox.command("cat").arg(&link));
        let pid = waiter.process().pid();
        let report = match option {
            "--swallow" => inspect_after_reading(&sandbox, &mut master, 1)?,
            _ => inspect(&sandbox),
        };
        assert_waits(&report, &sandbox, pid, WaiterRole::First, mount, "link");
        if option == "--swallow" {
            let said = format!("on an autofs mount that could not be told for {}", link.display());
            Tool::inspect().target(&sandbox).run().assert_success().assert_stderr_contains(&said);
        }
    }
    Ok(())
}

#[test]
fn a_waiter_in_another_mount_namespace_is_found_by_the_copy_that_it_sees() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().indirect("i").arg("--swallow"))?;
    let (i, moved) = (sandbox.path("i"), sandbox.mkdir("moved")?);
    let script =
        format!("mount --move {} {} && exec cat {}/key", i.display(), moved.display(), moved.display());
    let apart = ["-m", "--propagation", "private", "sh", "-c"];
    let mut waiter = start_blocked(sandbox.command("unshare").args(apart).arg(script));
    let report = inspect_after_reading(&sandbox, &mut master, 1)?;
    assert_waits(&report, &sandbox, waiter.process().pid(), WaiterRole::First, "i", "moved/key");

    // A namespace with no mount of the report has no waiter of it.
    let other = Sandbox::new()?;
    assert_eq!(inspect(&other).waiters, []);
    let _master = other.master(MasterOptions::new().indirect("i"))?;
    assert_eq!(inspect(&other).waiters, []);
    Ok(())
}

#[test]
fn a_waiter_in_a_pid_namespace_below_that_of_the_master_is_found() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    for option in ["--ignore-requests", "--swallow"] {
        let sandbox = Sandbox::new()?;
        let mut master = sandbox.master(MasterOptions::new().indirect("i").arg(option))?;
        let link = sandbox.path("link");
        sandbox.run(["ln", "-s", "i/key", &link.display().to_string()]).assert_success();
        let path = if option == "--swallow" { sandbox.path("i/key") } else { link };
        let below = ["--pid", "--fork", "cat"];
        let mut running = sandbox.command("unshare").args(below).arg(&path).spawn();
        let blocked = wait_until_blocked(running.process(), 1, || sandbox.processes());
        let report = match option {
            "--swallow" => inspect_after_reading(&sandbox, &mut master, 1)?,
            _ => inspect(&sandbox),
        };
        let path = path.strip_prefix(sandbox.work())?.display().to_string();
        assert_waits(&report, &sandbox, blocked[0].process, WaiterRole::First, "i", &path);
    }
    Ok(())
}

#[test]
fn who_waits_for_an_expire_is_told_apart() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").arg("--swallow"))?;
    let (pid, d) = (master.pid(), sandbox.path("d"));
    master.say(&format!("expire {}", d.display()))?;
    wait_until_blocked(master.process(), 1, || vec![pid]);
    let mut walker = start_blocked(sandbox.command("cat").arg(&d));
    let report = inspect_after_reading(&sandbox, &mut master, 1)?;
    assert_eq!(report.waiters.len(), 2);
    assert_waits(&report, &sandbox, pid, WaiterRole::Expire, "d", "d");
    let walker_pid = walker.process().pid();
    assert_waits(&report, &sandbox, walker_pid, WaiterRole::Expire, "d", "d");

    // A signal lets it wait for the end of the expire itself, which no signal ends.
    walker.process().signal(Signal::SIGKILL)?;
    while wait_until_blocked(walker.process(), 1, || vec![walker_pid])[0].function != "autofs_expire_wait" {}
    assert_waits(&inspect(&sandbox), &sandbox, walker_pid, WaiterRole::Expire, "d", "d");
    master.kill()?;
    walker.finish();
    Ok(())
}

#[test]
fn another_user_sees_only_its_own_waiters_and_is_told_so() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().indirect("i").arg("--ignore-requests"))?;
    let _of_root = start_blocked(sandbox.command("cat").arg(sandbox.path("i/key")));
    let _of_user = start_blocked(sandbox.command("/bin/cat").arg(sandbox.path("i/other")).user(65534));
    let run = Tool::inspect().inside(&sandbox).user(65534).args(["-f", "yaml"]).run().assert_success();
    let report: Report = doc::parse(run.stdout.as_bytes(), "the report")?;
    let waiter = only_waiter(&report);
    assert_eq!((waiter.role, waiter.uid), (WaiterRole::Unknown, 65534));
    assert!(waiter.path.as_deref().is_none_or(|path| *path == *sandbox.path("i/other")), "{waiter:?}");
    let hidden = report.hidden.join("\n");
    assert!(hidden.contains("what keeps 1 thread of other users (root may see them) blocked"), "{hidden}");
    assert!(hidden.contains("whether 1 thread in autofs asked first"), "{hidden}");
    Ok(())
}

#[test]
fn mount_points_are_seen_from_the_root_of_the_target() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let options = MasterOptions::new().direct("d").arg("--control-fds");
    let master = sandbox.master(options)?;
    let report = inspect(&sandbox);
    assert_eq!(report.mounts.len(), 1, "nothing of the machine is there");
    assert_eq!(find(&report, &sandbox, "d").1.state, State::Connected);
    assert_eq!(process(&report, master.pid()).control_fds.len(), 1);

    // A process whose root is a directory deeper sees the mount from there.
    let work = sandbox.work().to_string_lossy().into_owned();
    let script = format!(
        "cd {work} && mkdir -p bin usr lib lib64 && mount --rbind /usr usr && mount --rbind /lib lib; \
         mount --rbind /lib64 lib64; mount --rbind /bin bin; exec chroot . /bin/sh -c ': >/up; exec sleep 1000'"
    );
    let mut deeper = sandbox.command("sh").args(["-c", &script]).spawn();
    wait_for(&sandbox, "up");
    let pid = deeper.process().pid().to_string();
    let report = report_of(&pid);
    assert_eq!(report.mounts.iter().map(|mount| mount.mount_point.to_string()).collect::<Vec<_>>(), ["/d"]);
    assert_eq!(report.superblocks[0].state, State::Connected);
    assert_eq!(process(&report, master.pid()).control_fds.len(), 1);
    Ok(())
}

#[track_caller]
fn report_of(pid: &str) -> Report {
    report(Tool::inspect().args(["-p", pid]))
}

#[test]
fn every_namespace_is_shown_once() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let (one, other) = (Sandbox::new()?, Sandbox::new()?);
    let _masters =
        (one.master(MasterOptions::new().direct("d"))?, other.master(MasterOptions::new().direct("d"))?);
    let report = report(Tool::inspect().arg("-A"));
    for sandbox in [&one, &other] {
        let (mount, superblock) = find(&report, sandbox, "d");
        assert_eq!(superblock.state, State::Connected);
        let same = report.mounts.iter().filter(|found| found.mount_point == mount.mount_point).count();
        assert_eq!(same, 1);
    }
    let mut namespaces: Vec<u64> = report.namespaces.iter().map(|namespace| namespace.id).collect();
    namespaces.dedup();
    assert_eq!(namespaces.len(), report.namespaces.len());
    let table = Tool::inspect().arg("--all").run().assert_success().stdout;
    assert!(table.starts_with("NAMESPACE"), "{table}");
    Ok(())
}
