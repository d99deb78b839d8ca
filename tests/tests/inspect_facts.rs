//! What a report says of who waits, who cannot be served, and which copies fail.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use autofs_cr_common::doc::report::Waiter;
use autofs_cr_common::doc::{self, Report};
use autofs_cr_common::model::Pid;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{MasterOptions, Running, Sandbox, TestCommand, Tool, wait_until_blocked};
use nix::sys::signal::Signal;
use rustix::thread::{CpuSet, sched_getaffinity};

#[track_caller]
fn report(command: TestCommand) -> Report {
    let text = command.args(["-f", "yaml"]).run().assert_success().stdout;
    doc::parse(text.as_bytes(), "the report").expect("a valid report")
}

fn waiter(report: &Report, pid: Pid) -> Result<&Waiter> {
    report.waiters.iter().find(|waiter| waiter.pid == pid).context("it is listed")
}

fn seconds_since_1970() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Starts a program that comes to wait in autofs, and waits for that.
#[track_caller]
fn start_blocked(command: TestCommand) -> Running {
    let mut running = command.spawn();
    let pid = running.process().pid();
    wait_until_blocked(running.process(), 1, || vec![pid]);
    running
}

/// Lets time pass: what is tested is how much of it is told.
fn pass(time: Duration) {
    std::thread::sleep(time);
}

/// A waiter that was started now, as it is looked at later.
struct Since {
    running: Running,
    /// The seconds before and after it came to wait.
    started: (u64, u64),
}

impl Since {
    fn start(command: TestCommand) -> Result<Self> {
        let before = seconds_since_1970()?;
        let running = start_blocked(command);
        Ok(Self { running, started: (before, seconds_since_1970()?) })
    }

    fn pid(&mut self) -> Pid {
        self.running.process().pid()
    }

    /// Checks that the report has the time to within a second.
    fn check(&mut self, report: &Report) -> Result<()> {
        let pid = self.pid();
        let since = waiter(report, pid)?.since.context("the kernel tells")?;
        let (before, after) = self.started;
        assert!((before - 1..=after + 1).contains(&since), "{since} is not from {before} to {after}");
        Ok(())
    }
}

#[test]
fn since_when_a_thread_waits_is_told_on_every_processor() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("d").indirect("i").arg("--ignore-requests"))?;
    let ours = sched_getaffinity(None)?;
    let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|number| ours.is_set(*number)).take(4).collect();
    let on = |processor: &usize| {
        let command = sandbox.command("taskset").args(["-c", &processor.to_string(), "cat"]);
        Since::start(command.arg(sandbox.path(format!("i/{processor}"))))
    };
    let mut waiters = processors.iter().map(on).collect::<Result<Vec<_>>>()?;
    pass(Duration::from_secs(3));
    // One that came later is not taken for one that came before.
    waiters.push(Since::start(sandbox.command("cat").arg(sandbox.path("d")))?);
    let seen = report(Tool::inspect().target(&sandbox));
    assert_eq!(seen.waiters.len(), waiters.len());
    waiters.iter_mut().try_for_each(|waiter| waiter.check(&seen))
}

#[test]
fn signals_that_do_not_end_a_wait_do_not_change_since_when_it_is() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().indirect("i").arg("--ignore-requests"))?;
    let script = format!("trap : TERM; : <{}", sandbox.path("i/key").display());
    let mut handler = Since::start(sandbox.command("sh").args(["-c", &script]))?;
    let mut plain = Since::start(sandbox.command("cat").arg(sandbox.path("i/other")))?;
    let mut first = Since::start(sandbox.command("cat").arg(sandbox.path("i/first")))?;
    let joined = Since::start(sandbox.command("cat").arg(sandbox.path("i/first")))?;
    pass(Duration::from_secs(3));
    handler.running.process().signal(Signal::SIGTERM)?;
    plain.running.process().signal(Signal::SIGSTOP)?;
    // The end of one that asked for the same does not wake the other.
    first.running.process().kill()?;
    let seen = report(Tool::inspect().target(&sandbox));
    assert_eq!(seen.waiters.len(), 3);
    [handler, plain, joined].iter_mut().try_for_each(|waiter| waiter.check(&seen))
}

#[test]
fn another_user_is_told_since_when_its_own_thread_waits() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().indirect("i").arg("--ignore-requests"))?;
    let nobody = 65534;
    let own = Since::start(sandbox.command("/bin/cat").arg(sandbox.path("i/key")).user(nobody))?;
    let seen = report(Tool::inspect().inside(&sandbox).user(nobody));
    let inside = seen.waiters.first().context("one waits")?.pid;
    assert!(waiter(&seen, inside)?.since.is_some_and(|since| own.started.0 - 1 <= since));
    Ok(())
}
