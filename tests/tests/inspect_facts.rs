//! What a report says of who waits, who cannot be served, and which copies fail.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use autofs_cr_common::doc::report::{CopyFault, Waiter};
use autofs_cr_common::doc::{self, Report};
use autofs_cr_common::model::{Pid, State};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{
    Master, MasterOptions, Running, Sandbox, TestCommand, Tool, blocked_in_autofs, program,
    wait_until_blocked,
};
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
    waiters.iter_mut().try_for_each(|waiter| waiter.check(&seen))?;

    // A processor that is not for this program is left alone.
    let inspect = program("autofs-inspect").display().to_string();
    let first = processors[0].to_string();
    let seen = report(TestCommand::new("taskset").args(["-c", &first, &inspect]).target(&sandbox));
    waiters[0].check(&seen)?;
    for other in &mut waiters[1..processors.len()] {
        assert_eq!(waiter(&seen, other.pid())?.since, None);
    }
    Ok(())
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

/// A sandbox in whose work directory mounts are shared, with a master there.
fn shared_world() -> Result<(Sandbox, Master)> {
    let sandbox = Sandbox::new()?;
    sandbox.run(["mount", "--make-shared", &sandbox.work().to_string_lossy()]).assert_success();
    let master = sandbox.master(MasterOptions::new().direct("d").indirect("i"))?;
    Ok((sandbox, master))
}

/// A process in a mount namespace that is a copy of the sandbox's, and the processes that started it.
struct Copy<'a> {
    sandbox: &'a Sandbox,
    running: Running,
}

impl<'a> Copy<'a> {
    /// After `script`, in a namespace that `unshare` makes with these words.
    fn new(sandbox: &'a Sandbox, name: &str, words: &[&str], script: &str) -> Result<Self> {
        let ready = sandbox.path(name);
        let script = format!("{script}\n: >{}; exec sleep 1000", ready.display());
        let running = sandbox.command("unshare").args(words).args(["sh", "-ec", &script]).spawn();
        let wait = format!("until [ -e {} ]; do sleep 0.01; done", ready.display());
        sandbox.run(["sh", "-c", &wait]).assert_success();
        Ok(Self { sandbox, running })
    }

    fn private(sandbox: &'a Sandbox) -> Result<Self> {
        Self::new(sandbox, "private", &["--mount", "--propagation", "private"], "")
    }

    fn pid(&mut self) -> Pid {
        self.running.process().pid()
    }

    /// What a report of this namespace alone says of a mount in the work directory.
    fn fault(&mut self, name: &str) -> Option<CopyFault> {
        fault(&report(Tool::inspect().arg("-p").arg(self.pid().to_string())), self.sandbox, name)
    }

    /// Reads a file of the work directory there, as a process that the master sees.
    fn cat(&mut self, name: &str) -> autofs_cr_tests::sandbox::Finished {
        let target = self.pid().to_string();
        let enter = TestCommand::new("nsenter").args(["-t", &target, "-m", "-p"]);
        enter.arg("cat").arg(self.sandbox.path(name)).run()
    }
}

#[track_caller]
fn fault(report: &Report, sandbox: &Sandbox, name: &str) -> Option<CopyFault> {
    let place = sandbox.path(name);
    let mount = report.mounts.iter().rfind(|mount| *mount.mount_point == *place);
    mount.expect("the mount is listed").copy
}

#[test]
fn a_copy_that_nothing_is_propagated_to_is_severed_and_gives_eloop() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let (sandbox, _master) = shared_world()?;
    let mut private = Copy::private(&sandbox)?;
    for name in ["d", "i"] {
        assert_eq!(private.fault(name), Some(CopyFault::Severed), "{name}");
    }
    for name in ["d/served-by", "i/key/served-by"] {
        private.cat(name).assert_code(1).assert_stderr_contains("Too many levels of symbolic links");
    }
    // It is no other when its own mounts are shared among themselves.
    let words = ["--mount", "--propagation", "private"];
    let rejoined = "mount --make-rshared /";
    let mut apart = Copy::new(&sandbox, "apart", &words, rejoined)?;
    assert_eq!(apart.fault("i"), Some(CopyFault::Severed));
    apart.cat("i/other/served-by").assert_code(1).assert_stderr_contains("Too many levels");

    let own = report(Tool::inspect().target(&sandbox));
    assert_eq!(["d", "i"].map(|name| fault(&own, &sandbox, name)), [None, None]);
    let all = report(Tool::inspect().arg("-A"));
    let of_copy = report(Tool::inspect().arg("-p").arg(private.pid().to_string()));
    for mount in own.mounts.iter().chain(&of_copy.mounts) {
        let seen = all.mounts.iter().find(|other| other.id == mount.id).context("it is in the whole")?;
        assert_eq!(seen.copy, mount.copy);
    }
    Ok(())
}

#[test]
fn a_peer_and_a_slave_are_served_also_through_groups_that_are_not_seen() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let (sandbox, mut master) = shared_world()?;
    let peer = Copy::new(&sandbox, "peer", &["--mount", "--propagation", "unchanged"], "")?;
    let slave = Copy::new(&sandbox, "slave", &["--mount", "--propagation", "slave"], "")?;
    let again =
        "mount --make-rshared /\nexec unshare --mount --propagation slave sh -ec ': >$0; exec sleep 1000'";
    let again = again.replace("$0", &sandbox.path("below").display().to_string());
    let below = Copy::new(&sandbox, "below", &["--mount", "--propagation", "slave"], &again)?;
    for (name, mut copy) in [("peer", peer), ("slave", slave), ("below", below)] {
        for mount in ["d", "i"] {
            assert_eq!(copy.fault(mount), None, "{name}: {mount}");
        }
        let key = format!("i/{name}/served-by");
        copy.cat(&key).assert_success();
    }
    assert_eq!(master.report()?.counters.served, 3);
    Ok(())
}

#[test]
fn a_private_bind_in_the_masters_own_namespace_is_severed() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let (sandbox, mut master) = shared_world()?;
    let bind = |name: &str| -> Result<()> {
        let [from, to] = [sandbox.path("i"), sandbox.mkdir(name)?].map(|path| path.display().to_string());
        sandbox.run(["mount", "--bind", &from, &to]).assert_success();
        Ok(())
    };
    bind("peer")?;
    bind("copy")?;
    sandbox.run(["mount", "--make-private", &sandbox.path("copy").to_string_lossy()]).assert_success();
    let seen = report(Tool::inspect().target(&sandbox));
    let faults = ["i", "peer", "copy"].map(|name| fault(&seen, &sandbox, name));
    assert_eq!(faults, [None, None, Some(CopyFault::Severed)]);

    sandbox.read(sandbox.path("peer/key/served-by"))?;
    let cat = sandbox.command("cat").arg(sandbox.path("copy/other/served-by")).run();
    cat.assert_code(1).assert_stderr_contains("Too many levels of symbolic links");
    // One for the peer; the kernel follows what it takes for mounts up to 40 times, and asks each time.
    assert_eq!(master.report()?.counters.served, 1 + 40);

    // The original is told by its age, not by its place: also when it is moved or covered.
    let work = sandbox.work().display().to_string();
    let script = format!(
        "cd {work}; mkdir moved; mount --make-private .; mount --move i moved; mount -t tmpfs x moved"
    );
    sandbox.run(["sh", "-ec", &script]).assert_success();
    let seen = report(Tool::inspect().target(&sandbox));
    let faults: Vec<_> = seen.mounts.iter().filter(|mount| mount.copy.is_some()).collect();
    let [only] = faults.as_slice() else { panic!("one: {faults:?}") };
    assert_eq!(*only.mount_point, *sandbox.path("copy"));
    Ok(())
}

#[test]
fn a_copy_of_what_its_master_does_not_show_any_more_is_stale() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let (sandbox, mut master) = shared_world()?;
    let mut private = Copy::private(&sandbox)?;
    for name in ["d", "i"] {
        sandbox.run(["umount", &sandbox.path(name).to_string_lossy()]).assert_success();
    }
    for name in ["d", "i"] {
        assert_eq!(private.fault(name), Some(CopyFault::Stale), "{name}");
        // The master is asked, does not find its mount, and answers nobody.
        let errors = master.report()?.counters.errors;
        let target = private.running.process().pid_inside()?.to_string();
        let enter = sandbox.command("nsenter").args(["-t", &target, "-m", "cat"]);
        let mut cat = start_blocked(enter.arg(sandbox.path(format!("{name}/served-by"))));
        while master.report()?.counters.errors == errors {}
        assert_eq!(blocked_in_autofs(&[cat.process().pid()]).len(), 1, "{name}");
    }
    // Where its master was is not seen any more when that is dead, so nothing is said.
    master.kill()?;
    let seen = report(Tool::inspect().arg("-p").arg(private.pid().to_string()));
    assert!(seen.superblocks.iter().all(|superblock| superblock.state == State::Orphaned));
    assert!(seen.mounts.iter().all(|mount| mount.copy.is_none()), "{:?}", seen.mounts);
    Ok(())
}

#[test]
fn copies_of_a_dead_superblock_that_is_still_in_place_are_not_called_stale() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let (sandbox, master) = shared_world()?;
    let mut private = Copy::private(&sandbox)?;
    master.kill()?;
    for name in ["d", "i"] {
        assert_eq!(private.fault(name), None, "{name}");
    }
    Ok(())
}
