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

/// A process in the sandbox's mount namespace, started by util-linux.
fn stranger(sandbox: &Sandbox, words: &[&str]) -> Result<Running> {
    let pid = sandbox.pid().to_string();
    let ready = sandbox.path(words.join("-").replace('/', "_"));
    let script = format!(": >{}; exec sleep 1000", ready.display());
    let enter = TestCommand::new("nsenter").args(["-t", &pid]).args(words).args(["sh", "-c", &script]);
    let running = enter.spawn();
    let wait = format!("until [ -e {} ]; do sleep 0.01; done", ready.display());
    sandbox.run(["sh", "-c", &wait]).assert_success();
    Ok(running)
}

#[test]
fn processes_that_the_master_cannot_see_are_listed_and_get_enoent() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").indirect("i"))?;
    let mut outside = stranger(&sandbox, &["-m"])?;
    let inside = stranger(&sandbox, &["-m", "-p"])?;
    let deeper = stranger(&sandbox, &["-m", "-p", "unshare", "-p", "-f"])?;
    let seen = report(Tool::inspect().target(&sandbox));
    let of_sleep: Vec<_> = seen.strangers.iter().filter(|one| one.command.as_bytes() == b"sleep").collect();
    let [found] = of_sleep.as_slice() else { panic!("one: {:?}", seen.strangers) };
    assert_eq!((found.pid, found.master), (outside.process().pid(), master.pid()));
    assert_eq!(found.namespace, seen.namespaces[0].id);
    // nsenter waits outside of the pid namespace for who is in it.
    let is_outside = |pid: Pid| -> Result<bool> {
        let of = |pid: Pid| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
        Ok(of(pid)? != of(master.pid())?)
    };
    for stranger in &seen.strangers {
        assert!(is_outside(stranger.pid)?, "{stranger:?}");
    }

    // What was said of them is so: they get an error, and the master is not asked.
    let pid = sandbox.pid().to_string();
    let enter = |words: &[&str]| TestCommand::new("nsenter").args(["-t", &pid]).args(words);
    for name in ["i/key", "d/served-by"] {
        let cat = enter(&["-m", "cat"]).arg(sandbox.path(name)).run();
        cat.assert_code(1).assert_stderr_contains("No such file");
    }
    assert_eq!(master.report()?.counters.served, 0);
    enter(&["-m", "-p", "unshare", "-p", "-f", "cat"])
        .arg(sandbox.path("d/served-by"))
        .run()
        .assert_success();
    assert_eq!(master.report()?.counters.served, 1);
    drop((inside, deeper));
    Ok(())
}

#[test]
fn where_the_reader_is_in_the_masters_pid_namespace_there_are_no_strangers() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("d"))?;
    let outside = stranger(&sandbox, &["-m"])?;
    assert_eq!(report(Tool::inspect().inside(&sandbox)).strangers, []);
    drop(outside);
    // A namespace that does not show what the master serves has none either.
    let other = Sandbox::new()?;
    assert_eq!(report(Tool::inspect().target(&other)).strangers, []);
    Ok(())
}
