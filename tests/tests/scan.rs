//! The scan on the real kernel: what is looked for as far as it is needed is the same as from a look at everything,
//! also while processes come and go.

use std::time::Instant;

use anyhow::{Context, Result};
use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::{Superblock, WaiterRole};
use autofs_cr_common::model::{Device, Pid, State};
use autofs_cr_common::proc::Proc;
use autofs_cr_common::scan::{Needs, Processes, Scope, Waiting, scan};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{DEADLINE, Master, MasterOptions, Running, Sandbox, Tool, program};

/// Every depth.
const DEPTHS: [Needs; 4] = [
    Needs::STATES,
    Needs::IMAGE,
    Needs::REPORT,
    Needs { processes: Processes::Masters, waiting: Waiting::Nothing },
];

fn look(scope: Scope, needs: Needs) -> Result<Report> {
    Ok(scan(&Proc::open()?, scope, needs)?)
}

/// The superblock at a path in the work directory.
#[track_caller]
fn find<'a>(report: &'a Report, sandbox: &Sandbox, name: &str) -> &'a Superblock {
    let place = sandbox.path(name);
    let mount =
        report.mounts.iter().rfind(|mount| *mount.mount_point == *place).expect("the mount is listed");
    report.superblock(mount.device).expect("its superblock is listed")
}

type Told = Vec<(Device, State, String, Option<Pid>)>;

/// What is told of every superblock.
fn told(report: &Report) -> Told {
    let superblocks = report.superblocks.iter();
    superblocks.map(|its| (its.device, its.state, its.reason.clone(), its.master)).collect()
}

/// Fails unless every depth tells the same; gives the report of a look at everything.
#[track_caller]
fn same_from_every_depth(scope: Scope) -> Report {
    let whole = look(scope, Needs::REPORT).expect("a report");
    for needs in DEPTHS {
        let report = look(scope, needs).expect("a report");
        assert_eq!(told(&report), told(&whole), "{needs:?}");
        assert_eq!((&report.mounts, &report.content), (&whole.mounts, &whole.content), "{needs:?}");
        let masters = report.superblocks.iter().filter_map(|superblock| superblock.master);
        for master in masters {
            let (seen, all) = (report.process(master), whole.process(master));
            let ends = |process: Option<&_>| {
                process.map(|its: &autofs_cr_common::doc::report::Process| its.pipe_ends.clone())
            };
            assert!(seen.is_some() && ends(seen) == ends(all), "{needs:?}: {seen:?} and {all:?}");
            if needs.processes >= Processes::MastersInFull {
                assert_eq!(seen, all, "{needs:?}");
            }
        }
    }
    whole
}

/// A process group of its own whose leader has no end of a pipe: another process in it holds the read end of a
/// master. Gives the number of the group in the sandbox.
fn group_with_reader(sandbox: &Sandbox, master: &mut Master, name: &str) -> Result<(Running, String)> {
    let read_fd = master.report()?.mounts[0].read_fd;
    let place = sandbox.path(name).display().to_string();
    let script = format!(
        "exec setsid sh -c '(sleep 1000 & exec 7</proc/{}/fd/{read_fd}; echo $$ >{place}.new; mv {place}.new {place}; wait) & wait'",
        master.pid_inside()
    );
    let running = sandbox.command("sh").args(["-c", &script]).spawn();
    sandbox.run(["sh", "-c", &format!("until [ -e {place} ]; do sleep 0.01; done")]).assert_success();
    let group = sandbox.run(["cat", &place]).assert_success().stdout.trim().to_owned();
    Ok((running, group))
}

/// A direct mount with a master's pipe and another process group.
fn mount_for_group(sandbox: &Sandbox, master: &mut Master, name: &str, group: &str) -> Result<()> {
    let path = sandbox.mkdir(name)?;
    let read_fd = master.report()?.mounts[0].read_fd.to_string();
    let probe = sandbox.command(program("autofs-probe")).arg("mount").arg(path);
    probe.args(["direct", &master.pid_inside().to_string(), &read_fd, group]).run().assert_success();
    Ok(())
}

fn make_catatonic(sandbox: &Sandbox, master: &mut Master) -> Result<()> {
    let mount = master.report()?.mounts.remove(0);
    let probe = sandbox.command(program("autofs-probe")).arg("catatonic").arg(&mount.path);
    probe.arg(&mount.device).run().assert_success();
    Ok(())
}

#[test]
fn the_state_of_every_kind_of_mount_is_the_same_from_every_depth() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let scope = Scope::Of(sandbox.pid());
    let mut master = sandbox.master(MasterOptions::new().direct("d").indirect("i").like_automount())?;
    let _pipes = sandbox.master(MasterOptions::new().direct("p").direct("q").like_systemd())?;
    sandbox.touch(sandbox.path("d"))?;
    let whole = same_from_every_depth(scope);
    assert!(whole.superblocks.iter().all(|superblock| superblock.state == State::Connected));
    assert_eq!(find(&whole, &sandbox, "d").master, Some(master.pid()));

    // Served by a member of the group that is not its leader, and when that is gone.
    let (_leader, group) = group_with_reader(&sandbox, &mut master, "group")?;
    mount_for_group(&sandbox, &mut master, "member", &group)?;
    for _ in 0..2 {
        let whole = same_from_every_depth(scope);
        let member = find(&whole, &sandbox, "member");
        assert_eq!(member.state, State::Connected, "{}", member.reason);
        assert!(member.master.is_some() && member.master != member.pgrp, "{}", member.reason);
        sandbox.run(["kill", "-KILL", &group]);
    }

    // Not connected: one after the other, so that the others are looked at for each of them alone too.
    let mut catatonic = sandbox.master(MasterOptions::new().direct("catatonic"))?;
    make_catatonic(&sandbox, &mut catatonic)?;
    let whole = same_from_every_depth(scope);
    assert_eq!(find(&whole, &sandbox, "catatonic").state, State::Catatonic);
    let mut delegated = sandbox.master(MasterOptions::new().direct("delegated"))?;
    let _holder = group_with_reader(&sandbox, &mut delegated, "holder")?;
    delegated.kill()?;
    let whole = same_from_every_depth(scope);
    assert_eq!(find(&whole, &sandbox, "delegated").state, State::Delegated);
    sandbox.master(MasterOptions::new().indirect("orphaned"))?.kill()?;
    let whole = same_from_every_depth(scope);
    assert_eq!(find(&whole, &sandbox, "orphaned").state, State::Orphaned);
    assert_eq!(find(&whole, &sandbox, "d").state, State::Connected);
    Ok(())
}

#[test]
fn what_another_user_is_told_is_the_same_from_the_check_and_from_the_report() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("d").indirect("i"))?;
    let mut catatonic = sandbox.master(MasterOptions::new().direct("catatonic"))?;
    make_catatonic(&sandbox, &mut catatonic)?;
    let inspect = || Tool::inspect().inside(&sandbox).user(65534);
    let report = inspect().args(["-f", "yaml"]).run().assert_success().stdout;
    let report: Report = autofs_cr_common::doc::parse(report.as_bytes(), "the report")?;
    assert_eq!(find(&report, &sandbox, "d").state, State::Unknown);
    let check = inspect().arg("--check").run().assert_code(3);
    for name in ["d", "i", "catatonic"] {
        let line = format!("{}: {}", sandbox.path(name).display(), find(&report, &sandbox, name).reason);
        check.stdout.contains(&line).then_some(()).with_context(|| format!("'{line}' is not in {check}"))?;
    }
    Ok(())
}

#[test]
fn threads_that_wait_are_found_in_processes_with_many_others() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("d").arg("--ignore-requests"))?;
    // More processes than one thread takes at once.
    let crowd = "for i in $(seq 200); do sleep 1000 & done; wait";
    let _crowd = sandbox.command("sh").args(["-c", crowd]).spawn();
    let mut touch = sandbox.touch_in_background(sandbox.path("d"));
    touch.wait_until_blocked();
    let whole = look(Scope::Of(sandbox.pid()), Needs::REPORT)?;
    let states = look(Scope::Of(sandbox.pid()), Needs::STATES)?;
    assert_eq!((&states.waiters, &states.requests), (&whole.waiters, &whole.requests));
    let [waiter] = states.waiters.as_slice() else { panic!("one waiter: {:?}", states.waiters) };
    assert_eq!(waiter.role, WaiterRole::First);
    assert_eq!(look(Scope::Of(sandbox.pid()), Needs::IMAGE)?.waiters, []);
    assert!(touch.kill().is_err());
    Ok(())
}

/// How many looks are taken in the storm, and how many processes have to come and go meanwhile.
const LOOKS: usize = 60;
const PROCESSES: usize = 3000;

/// Processes that come and go as long as it runs, by tens, each with a copy of the read end of a master; it counts
/// them in a file.
fn storm(sandbox: &Sandbox, master: &mut Master, name: &str) -> Result<Running> {
    let read_fd = master.report()?.mounts[0].read_fd;
    let count = sandbox.path(name).display().to_string();
    let script = format!(
        "exec 7</proc/{}/fd/{read_fd}; n=0
         while :; do
           for i in 1 2 3 4 5 6 7 8; do (:) & done; sleep 0.002 & (exec sleep 0.001) & wait
           n=$((n + 10)); echo $n >{count}.new; mv {count}.new {count}
         done",
        master.pid_inside()
    );
    let storm = sandbox.command("sh").args(["-c", &script]).spawn();
    sandbox.run(["sh", "-c", &format!("until [ -e {count} ]; do sleep 0.01; done")]).assert_success();
    Ok(storm)
}

fn counted(sandbox: &Sandbox, name: &str) -> usize {
    let count = std::fs::read_to_string(sandbox.outside(sandbox.path(name))).unwrap_or_default();
    count.trim().parse().unwrap_or(0)
}

#[test]
fn no_state_is_wrong_while_processes_come_and_go() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut first = sandbox.master(MasterOptions::new().direct("first").indirect("indirect"))?;
    let mut second = sandbox.master(MasterOptions::new().direct("second").like_systemd())?;
    let mut delegated = sandbox.master(MasterOptions::new().direct("delegated"))?;
    let _holder = group_with_reader(&sandbox, &mut delegated, "holder")?;
    delegated.kill()?;
    // While a mount is orphaned, all processes are looked at, twice.
    sandbox.master(MasterOptions::new().direct("orphaned"))?.kill()?;
    let expected = [
        ("first", State::Connected, Some(first.pid())),
        ("indirect", State::Connected, Some(first.pid())),
        ("second", State::Connected, Some(second.pid())),
        ("orphaned", State::Orphaned, None),
    ];
    let delegate = find(&look(Scope::Of(sandbox.pid()), Needs::REPORT)?, &sandbox, "delegated").master;
    let _storms = [storm(&sandbox, &mut first, "one")?, storm(&sandbox, &mut second, "two")?];

    let start = Instant::now();
    let processes = || counted(&sandbox, "one") + counted(&sandbox, "two");
    let mut looks = 0;
    while looks < LOOKS || processes() < PROCESSES {
        assert!(start.elapsed() < DEADLINE, "{looks} looks and {} processes in {DEADLINE:?}", processes());
        let scope = if looks % 2 == 0 { Scope::Of(sandbox.pid()) } else { Scope::All };
        let needs = DEPTHS[looks / 2 % DEPTHS.len()];
        let report = look(scope, needs).with_context(|| format!("look {looks}: {scope:?}, {needs:?}"))?;
        for (name, state, master) in expected {
            let found = find(&report, &sandbox, name);
            // Seen from the pid namespace of the test, a process there that it may not look into could be a reader.
            if (name, found.state, scope) == ("orphaned", State::Unknown, Scope::All) {
                assert!(!report.hidden.is_empty(), "{}", found.reason);
                continue;
            }
            assert_eq!(
                (found.state, found.master),
                (state, master),
                "{name}, look {looks}: {}",
                found.reason
            );
        }
        let found = find(&report, &sandbox, "delegated");
        assert_eq!(
            (found.state, found.master),
            (State::Delegated, delegate),
            "look {looks}: {}",
            found.reason
        );
        looks += 1;
    }
    println!("{looks} looks, while {} processes came and went", processes());
    first.assert_undisturbed();
    second.assert_undisturbed();
    Ok(())
}
