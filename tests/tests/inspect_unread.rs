//! Masters that do not read their pipe, on the real kernel: who waits then, and what is told of it.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use autofs_cr_common::doc::report::{Halt, Waiter, WaiterRole};
use autofs_cr_common::doc::{self, Report};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{
    MasterOptions, Running, Sandbox, TestCommand, Tool, blocked_in_autofs, wait_until_blocked,
};
use nix::sys::signal::Signal;

#[track_caller]
fn report(sandbox: &Sandbox) -> Report {
    let text = Tool::inspect().target(sandbox).args(["-f", "yaml"]).run().assert_success().stdout;
    doc::parse(text.as_bytes(), "the report").expect("a report")
}

fn start_blocked(command: TestCommand) -> Running {
    let mut running = command.spawn();
    let pid = running.process().pid();
    wait_until_blocked(running.process(), 1, || vec![pid]);
    running
}

/// How many requests a pipe has room for.
const ROOM: usize = 16;

/// Waits until so many threads are known to wait in autofs, by what inspect says.
#[track_caller]
fn wait_for_waiters(sandbox: &Sandbox, running: &mut Running, count: usize) -> Vec<Waiter> {
    // All but the one that sleeps in the code of pipes can be told by where they sleep.
    wait_until_blocked(running.process(), count - 1, || sandbox.processes());
    loop {
        let waiters = report(sandbox).waiters;
        if waiters.len() == count {
            return waiters;
        }
        assert!(waiters.len() < count && running.process().is_running(), "{waiters:?}");
    }
}

#[test]
fn all_who_find_no_room_in_the_pipe_are_seen_and_not_called_freed_before_they_are() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().indirect("i").arg("--ignore-requests"))?;
    let cat = |n: usize| sandbox.command("cat").arg(sandbox.path(format!("i/{n}"))).spawn();
    let mut running: Vec<Running> = (0..ROOM + 4).map(cat).collect();
    let waiters = wait_for_waiters(&sandbox, &mut running[0], ROOM + 4);
    let seen = blocked_in_autofs(&sandbox.processes()).len();
    assert_eq!(seen, ROOM + 3, "one sleeps in the code of pipes");
    assert_eq!(waiters.iter().filter(|waiter| waiter.unsent).count(), 4);
    for waiter in &waiters {
        assert_eq!(waiter.role, WaiterRole::First, "{waiter:?}");
        assert!(waiter.device.is_some() && waiter.path.is_some() && waiter.since.is_some(), "{waiter:?}");
    }
    // One who joins another that could not even ask.
    let unsent = waiters.iter().find(|waiter| waiter.unsent).context("one")?;
    let path = unsent.path.clone().context("a path")?;
    let mut joined = start_blocked(sandbox.command("stat").arg(&*path));
    let told =
        Tool::inspect().target(&sandbox).args(["-r", "-n", "-v", "-o", "WAITERS"]).run().assert_success();
    assert_eq!(told.stdout, format!("{}\n", ROOM + 5));
    let json = Tool::inspect().target(&sandbox).arg("-J").run().assert_success().stdout;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    let waiting = json["waiting"].as_array().context("a list")?;
    assert!(
        waiting.len() == ROOM + 5 && waiting.iter().all(|thread| thread["outlook"] == "unread"),
        "{json}"
    );
    assert_eq!(waiting.iter().filter(|thread| thread["unsent"] == true).count(), 4);
    let pid = u32::from(joined.process().pid());
    assert!(waiting.iter().any(|thread| thread["pid"] == pid && thread["role"] == "joined"), "{json}");

    let i = sandbox.path("i");
    let free = Tool::fixup().arg("--free").target(&sandbox).arg("--timeout=1").arg(&i).run().assert_code(1);
    let freed = free.stderr.lines().filter(|line| line.ends_with(" still waits")).count();
    assert!(freed >= 3, "{free}");
    let left = report(&sandbox).waiters;
    assert_eq!(left.len(), freed, "{free}\n{left:?}");
    // It reads again, and all go on.
    master.serve()?;
    running.push(joined);
    for cat in running {
        assert!(cat.finish().end.is_some());
    }
    Ok(())
}

#[test]
fn a_full_pipe_does_not_make_other_writers_waiters() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().indirect("i").arg("--ignore-requests"))?;
    let fifo = sandbox.path("fifo").display().to_string();
    sandbox.run(["mkfifo", &fifo]).assert_success();
    let writer = format!("exec 3<>{fifo}; exec cat /dev/zero >{fifo}");
    let mut writer = sandbox.command("sh").args(["-c", &writer]).spawn();
    let pid = writer.process().pid();
    while !std::fs::read_to_string(format!("/proc/{pid}/wchan"))?.ends_with("pipe_write") {}
    let cat = |n: usize| sandbox.command("cat").arg(sandbox.path(format!("i/{n}"))).spawn();
    let mut running: Vec<Running> = (0..=ROOM).map(cat).collect();
    let pids: Vec<_> = running.iter_mut().map(|running| running.process().pid()).collect();
    loop {
        let waiters = report(&sandbox).waiters;
        assert!(waiters.iter().all(|waiter| pids.contains(&waiter.pid)), "{waiters:?}");
        if waiters.len() > ROOM {
            return Ok(());
        }
    }
}

#[test]
fn a_master_that_a_signal_stopped_is_a_fault_at_once() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let mut master = sandbox.master(MasterOptions::new().indirect("i").direct("d"))?;
    let check = || Tool::inspect().target(&sandbox).arg("--check").run();
    check().assert_success();
    master.process().signal(Signal::SIGSTOP)?;
    while report(&sandbox).processes[0].halt != Some(Halt::Stopped) {}
    let found = check().assert_code(3);
    let (i, pid) = (sandbox.path("i").display().to_string(), master.pid());
    let line = format!(
        "{i}: unread: reference-maste[{pid}] reads no request: a signal has stopped it; to repair: kill -CONT {pid}\n"
    );
    assert!(found.stdout.contains(&line) && found.stdout.lines().count() == 2, "{found}");
    let _waiter = start_blocked(sandbox.command("cat").arg(sandbox.path("i/key")));
    let table = Tool::inspect().target(&sandbox).run().assert_success();
    table
        .assert_stderr_contains("has not read the request yet: a signal has stopped it\n")
        .assert_stderr_contains(&format!(
            "unread (reference-maste[{pid}]: a signal has stopped it); to repair: kill -CONT {pid}\n"
        ));
    let metrics = Tool::inspect().target(&sandbox).args(["-f", "openmetrics"]).run().assert_success();
    metrics.assert_stdout_contains("autofs_unhealthy_mounts{problem=\"unread\"} 2\n");
    master.process().signal(Signal::SIGCONT)?;
    while report(&sandbox).processes[0].halt.is_some() {}
    check().assert_success();
    Ok(())
}

#[test]
fn a_request_that_is_not_read_is_a_fault_when_patience_ends() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let master = sandbox.master(MasterOptions::new().indirect("i").arg("--ignore-requests"))?;
    let waiter = start_blocked(sandbox.command("cat").arg(sandbox.path("i/key")));
    let check = |patience: &str| {
        let inspect = Tool::inspect().target(&sandbox).args(["--check", "--patience", patience]);
        inspect.run()
    };
    assert_eq!(check("1000").assert_success().stdout, "", "it may be read in a moment");
    let late = check("0").assert_code(3);
    let (i, pid) = (sandbox.path("i").display().to_string(), master.pid());
    assert!(
        late.stdout.starts_with(&format!("{i}: unread: reference-maste[{pid}] has not read a request for ")),
        "{late}"
    );
    let repair = format!("; to repair: autofs-fixup --free -p {} {i}\n", sandbox.pid());
    assert!(late.stdout.ends_with(&repair), "{late}");
    Tool::fixup().arg("--free").target(&sandbox).arg(&i).run().assert_success();
    waiter.finish().assert_stderr_contains("No such file or directory");
    Ok(())
}
