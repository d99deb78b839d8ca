//! autofs-fixup --free: mounts that hang are freed, and served again where their master lives.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{
    DEADLINE, Master, MasterOptions, Sandbox, TestCommand, Tool, Touch, TouchError, program,
};
use nix::errno::Errno;
use nix::libc::PTRACE_EVENT_EXIT;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};

/// `autofs-fixup --free` inside, where every process is visible to every master.
fn free<const N: usize>(sandbox: &Sandbox, names: [&str; N]) -> TestCommand {
    let places = names.map(|name| sandbox.path(name));
    sandbox.command(program("autofs-fixup")).arg("--free").args(places)
}

/// A touch that is blocked.
fn blocked(sandbox: &Sandbox, name: &str) -> Touch {
    let mut touch = sandbox.touch_in_background(sandbox.path(name));
    touch.wait_until_blocked();
    touch
}

#[track_caller]
fn assert_freed(touch: Touch) {
    assert_eq!(touch.join(), Err(TouchError::Errno(Errno::ENOENT)));
}

/// The value of an option in mountinfo.
fn option(sandbox: &Sandbox, name: &str, option: &str) -> Result<String> {
    let path = sandbox.path(name).display().to_string();
    let lines = sandbox.autofs_lines();
    let line = lines.iter().rfind(|line| line.split(' ').nth(4) == Some(&path)).context("no autofs mount")?;
    let options = line.rsplit(' ').next().context("no options")?;
    let found = options.split(',').find_map(|word| word.strip_prefix(option)?.strip_prefix('='));
    Ok(found.context("no such option")?.to_owned())
}

fn assert_catatonic(sandbox: &Sandbox, name: &str) -> Result<()> {
    assert_eq!(option(sandbox, name, "pipe_ino")?, "-1", "{name} is not catatonic");
    Ok(())
}

fn three() -> MasterOptions {
    MasterOptions::new().direct("d").indirect("i").offset("o")
}

const THREE: [&str; 3] = ["d", "i", "o"];
const TRIGGERS: [&str; 3] = ["d", "i/key", "o"];

/// A master reads requests and never answers; after that it serves again.
fn frees_and_connects(options: MasterOptions) -> Result<()> {
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(options.arg("--swallow"))?;
    let pipes = THREE.map(|name| option(&sandbox, name, "pipe_ino").expect("a pipe"));
    let touches = TRIGGERS.map(|name| blocked(&sandbox, name));
    let freed = free(&sandbox, THREE).run().assert_success();
    freed.assert_stderr_contains("freed 3 mounts and 3 waiters");
    touches.into_iter().for_each(assert_freed);
    sandbox.assert_nothing_blocked();
    assert_eq!(THREE.map(|name| option(&sandbox, name, "pipe_ino").expect("a pipe")), pipes);
    master.serve()?;
    for name in TRIGGERS {
        sandbox.read(sandbox.path(name).join("served-by"))?;
    }
    master.assert_undisturbed();
    assert_eq!(master.report()?.counters.served, 3);
    sandbox.close()
}

#[test]
fn a_master_like_systemd_that_does_not_answer_is_connected_again() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    frees_and_connects(three().like_systemd())
}

#[test]
fn a_master_like_automount_that_does_not_answer_is_connected_again() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    frees_and_connects(three().like_automount())
}

#[test]
fn mounts_of_another_namespace_are_freed_by_the_pid_of_a_process_in_it() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").like_systemd().arg("--swallow"))?;
    let touch = blocked(&sandbox, "d");
    let command = Tool::fixup().target(&sandbox).arg("--free");
    command
        .arg(sandbox.path("d"))
        .run()
        .assert_success()
        .assert_stderr_contains("freed 1 mount and 1 waiter");
    assert_freed(touch);
    master.serve()?;
    sandbox.touch(sandbox.path("d"))?;
    master.assert_undisturbed();
    let relative = Tool::fixup().target(&sandbox).args(["--free", "d"]).run().assert_code(1);
    relative.assert_stderr_contains("has to be absolute");
    Ok(())
}

#[test]
fn requests_that_wait_unread_for_other_mounts_are_served() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().direct("d").indirect("i").arg("--ignore-requests");
    let mut master = sandbox.master(options)?;
    let (direct, indirect) = (blocked(&sandbox, "d"), blocked(&sandbox, "i/key"));
    free(&sandbox, ["d"]).run().assert_success().assert_stderr_contains("freed 1 mount and 1 waiter");
    assert_freed(direct);
    master.serve()?;
    indirect.join()?;
    // The request of the freed one was in the pipe, and nobody waits for its answer.
    let counters = master.report()?.counters;
    assert_eq!((counters.served, counters.stale), (1, 1), "{counters:?}");
    master.assert_undisturbed();
    sandbox.assert_nothing_blocked();
    sandbox.touch(sandbox.path("d"))?;
    Ok(())
}

/// A master that was killed while this many wait.
fn killed_master<const N: usize>(
    options: MasterOptions,
    triggers: [&str; N],
) -> Result<(Sandbox, [Touch; N])> {
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(options.arg("--swallow"))?;
    let touches = triggers.map(|name| blocked(&sandbox, name));
    master.kill()?;
    Ok((sandbox, touches))
}

/// Another master comes, as a restarted automount.
fn comes_again(sandbox: &Sandbox, options: MasterOptions, triggers: &[&str]) -> Result<()> {
    let mut master = sandbox.master(options.arg("--reconnect"))?;
    for name in triggers {
        sandbox.read(sandbox.path(name).join("served-by"))?;
    }
    master.assert_undisturbed();
    sandbox.assert_nothing_blocked();
    Ok(())
}

#[test]
fn who_waits_on_an_indirect_mount_whose_master_is_gone_is_freed() -> Result<()> {
    require!(Root, Autofs);
    let options = MasterOptions::new().indirect("i");
    let (sandbox, touches) = killed_master(options.clone(), ["i/one", "i/other", "i/one"])?;
    let freed = free(&sandbox, []).run().assert_success();
    freed
        .assert_stderr_contains("freed 1 mount and 3 waiters")
        .assert_stderr_contains("is ready for a master: start it again\n");
    touches.into_iter().for_each(assert_freed);
    sandbox.assert_nothing_blocked();
    assert_catatonic(&sandbox, "i")?;
    free(&sandbox, []).run().assert_success().assert_stderr_contains("nothing to free");
    comes_again(&sandbox, options, &["i/one", "i/other"])?;
    sandbox.close()
}

#[test]
fn a_direct_mount_without_any_master_is_freed_only_by_killing_who_asked_first() -> Result<()> {
    require!(Root, Autofs);
    let options = MasterOptions::new().direct("d").indirect("i");
    let (sandbox, touches) = killed_master(options.clone(), ["d", "d", "d", "i/key"])?;
    let [mut first, mut joiner, other, mut indirect] = touches;
    let refused = free(&sandbox, []).run().assert_code(1);
    let who = first.process().pid_inside()?;
    refused
        .assert_stderr_contains(&format!("nobody can open it while process {who} ("))
        .assert_stderr_contains("--kill kills that process (nothing was changed)");
    for touch in [&mut first, &mut joiner, &mut indirect] {
        assert!(!touch.has_ended());
    }
    let freed = free(&sandbox, []).arg("--kill").run().assert_success();
    freed.assert_stderr_contains("freed 2 mounts and 3 waiters; killed 1 process");
    assert_eq!(first.join(), Err(TouchError::Killed(Signal::SIGKILL as i32)));
    [joiner, other, indirect].into_iter().for_each(assert_freed);
    sandbox.assert_nothing_blocked();
    assert_catatonic(&sandbox, "d")?;
    comes_again(&sandbox, options, &["d", "i/key"])?;
    sandbox.close()
}

#[test]
fn who_asked_first_by_a_path_that_does_not_tell_the_mount_is_named_and_not_killed() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d").arg("--swallow"))?;
    sandbox.run(["ln", "-s", "d", &sandbox.path("link").to_string_lossy()]).assert_success();
    let mut first = sandbox.touch_in_background(sandbox.path("link/file"));
    first.wait_until_blocked();
    let who = first.process().pid_inside()?;
    master.kill()?;
    let refused = free(&sandbox, []).arg("--kill").run().assert_code(1);
    refused
        .assert_stderr_contains(&format!("who asked first may be process {who} ("))
        .assert_stderr_contains("(nothing was changed)");
    assert!(!first.has_ended());
    let started = Instant::now();
    free(&sandbox, []).args(["--timeout", "0.3"]).run().assert_code(1);
    assert!(started.elapsed() < Duration::from_secs(2), "it went on after its timeout");
    // As it was told to.
    let _ = first.kill();
    free(&sandbox, []).run().assert_success();
    assert_catatonic(&sandbox, "d")
}

#[test]
fn a_direct_mount_without_a_master_is_freed_through_a_living_process_of_its_group() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let script = "sleep 1000 </dev/null >/dev/null 2>&1 & exec \"$0\" \"$@\"";
    let options = MasterOptions::new().direct("d").offset("o");
    let via = options.clone().via(["sh", "-c", script]);
    let (sandbox, touches) = killed_master(via, ["d", "d", "o"])?;
    free(&sandbox, []).run().assert_success().assert_stderr_contains("freed 2 mounts and 3 waiters");
    touches.into_iter().for_each(assert_freed);
    sandbox.assert_nothing_blocked();
    assert_catatonic(&sandbox, "d")?;
    comes_again(&sandbox, options, &["d", "o"])?;
    sandbox.close()
}

#[test]
fn a_direct_mount_without_a_master_is_freed_through_a_descriptor_of_any_process() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().direct("d").args(["--swallow", "--control-fds"]);
    let mut master = sandbox.master(options)?;
    let control = master.report()?.mounts[0].control_fd.context("no control fd")?;
    let pidfd = autofs_cr_common::target::open_pidfd(master.pid())?;
    let held = rustix::process::pidfd_getfd(&pidfd, control, rustix::process::PidfdGetfdFlags::empty())?;
    let touches = [blocked(&sandbox, "d"), blocked(&sandbox, "d")];
    master.kill()?;
    // Outside, where this process is seen, which has it.
    Tool::fixup().target(&sandbox).arg("--free").run().assert_success();
    touches.into_iter().for_each(assert_freed);
    assert_catatonic(&sandbox, "d")?;
    drop(held);
    Ok(())
}

#[test]
fn a_mount_that_only_a_process_of_another_group_reads_is_freed_but_not_connected() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().indirect("i").arg("--swallow"))?;
    let (read_fd, pid) = (master.report()?.mounts[0].read_fd, master.pid_inside());
    let holds = sandbox.path("holds");
    let script = format!("exec 7</proc/{pid}/fd/{read_fd}; : >{}; exec sleep 1000", holds.display());
    let _holder = sandbox.command("setsid").args(["sh", "-c", &script]).spawn();
    let wait = format!("until [ -e {} ]; do sleep 0.01; done", holds.display());
    sandbox.run(["sh", "-c", &wait]).assert_success();
    let touch = blocked(&sandbox, "i/key");
    master.kill()?;
    free(&sandbox, []).run().assert_success().assert_stderr_contains("nothing to free");
    free(&sandbox, ["i"]).run().assert_code(3).assert_stderr_contains("its master has to be restarted");
    assert_freed(touch);
    assert_catatonic(&sandbox, "i")
}

#[test]
fn without_a_place_only_mounts_whose_master_is_gone_are_freed() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let mut lives = sandbox.master(MasterOptions::new().indirect("lives").arg("--swallow"))?;
    let dies = sandbox.master(MasterOptions::new().indirect("dies").arg("--swallow"))?;
    let (mut waits, hangs) = (blocked(&sandbox, "lives/key"), blocked(&sandbox, "dies/key"));
    dies.kill()?;
    free(&sandbox, []).run().assert_success().assert_stderr_contains("freed 1 mount and 1 waiter");
    assert_freed(hangs);
    assert!(!waits.has_ended());
    lives.assert_undisturbed();
    free(&sandbox, ["lives"]).run().assert_success();
    assert_freed(waits);
    Ok(())
}

#[test]
fn a_place_that_is_no_autofs_mount_is_named_and_nothing_is_done() -> Result<()> {
    require!(Root, Autofs);
    let (sandbox, [mut touch]) = killed_master(MasterOptions::new().indirect("i"), ["i/key"])?;
    let wrong = |name: &str| free(&sandbox, ["i", name]).run().assert_code(1);
    wrong("no").assert_stderr_contains(&format!("{}: it is no autofs mount (", sandbox.path("no").display()));
    let inside = format!("it is no autofs mount, but inside of the one at {}", sandbox.path("i").display());
    wrong("i/key").assert_stderr_contains(&inside);
    assert!(!touch.has_ended());
    Ok(())
}

#[test]
fn a_dry_run_changes_nothing() -> Result<()> {
    require!(Root, Autofs);
    let (sandbox, touches) = killed_master(MasterOptions::new().direct("d").indirect("i"), ["d", "i/key"])?;
    let mut lives = sandbox.master(MasterOptions::new().direct("lives").arg("--swallow"))?;
    let waits = blocked(&sandbox, "lives");
    let before = sandbox.autofs_lines();
    let plan = free(&sandbox, ["d", "i", "lives"]).arg("-n").run().assert_success();
    plan.assert_stdout_contains(&format!("free indirect {} ", sandbox.path("i").display()))
        .assert_stdout_contains("1 waits; its master is gone")
        .assert_stdout_contains("has to be killed for that (--kill)")
        .assert_stdout_contains(" is connected to it again");
    assert_eq!(sandbox.autofs_lines(), before);
    for mut touch in touches.into_iter().chain([waits]) {
        assert!(!touch.has_ended());
    }
    lives.assert_undisturbed();
    Ok(())
}

#[test]
fn an_ordinary_user_is_told_to_be_root() {
    Tool::fixup().arg("--free").user(65534).run().assert_code(1).assert_stderr_contains("run it as root");
}

#[test]
fn a_wrong_command_line_is_wrong_usage() {
    let cases: [&[&str]; 5] = [
        &["/place"],
        &["--kill"],
        &["--free", "-i", "stage.yaml"],
        &["--free", "--master", "m"],
        &["--free", "--exec", "--", "true"],
    ];
    for arguments in cases {
        Tool::fixup().args(arguments).run().assert_code(2);
    }
}

/// An expire that is not answered: a thread of the master waits in the kernel, so that it does not stop.
#[test]
fn a_master_that_waits_itself_is_freed_and_connected_again() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().indirect("i").like_systemd())?;
    sandbox.touch(sandbox.path("i/key"))?;
    master.swallow()?;
    let root = sandbox.path("i");
    master.say(&format!("expire {}", root.display()))?;
    wait_until_swallowed(&mut master)?;
    let too_short = free(&sandbox, ["i"]).args(["--timeout", "0.5"]).run().assert_code(1);
    too_short.assert_stderr_contains("took longer than the timeout (nothing was changed)");
    assert_ne!(option(&sandbox, "i", "pipe_ino")?, "-1");
    free(&sandbox, ["i"]).run().assert_success().assert_stderr_contains("freed 1 mount");
    assert!(master.hear(DEADLINE)?.starts_with("expire "));
    sandbox.assert_nothing_blocked();
    master.serve()?;
    sandbox.touch(sandbox.path("i/other"))?;
    master.assert_undisturbed();
    Ok(())
}

/// A walk to such a mount waits for the end of the expire, where not even SIGKILL ends it. But who asked for
/// the expire has a descriptor on the mount.
#[test]
fn a_direct_mount_in_an_expire_is_freed_through_the_descriptor_of_who_asked_for_it() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").like_systemd())?;
    sandbox.touch(sandbox.path("d"))?;
    master.swallow()?;
    master.say(&format!("expire {}", sandbox.path("d").display()))?;
    wait_until_swallowed(&mut master)?;
    let touch = blocked(&sandbox, "d");
    free(&sandbox, ["d"]).run().assert_success().assert_stderr_contains("freed 1 mount");
    touch.join()?;
    assert!(master.hear(DEADLINE)?.starts_with("expire "));
    sandbox.assert_nothing_blocked();
    assert_ne!(option(&sandbox, "d", "pipe_ino")?, "-1");
    master.assert_undisturbed();
    Ok(())
}

fn wait_until_swallowed(master: &mut Master) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while master.report()?.counters.swallowed == 0 {
        assert!(Instant::now() < deadline, "no request came");
    }
    Ok(())
}

#[test]
fn a_master_that_somebody_holds_has_to_be_let_go_first() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().indirect("i").arg("--swallow"))?;
    let mut touch = blocked(&sandbox, "i/key");
    master.process().signal(Signal::SIGSTOP)?;
    let refused = free(&sandbox, ["i"]).run().assert_code(1);
    refused
        .assert_stderr_contains(&format!("continue it with kill -CONT {}", master.pid_inside()))
        .assert_stderr_contains("nothing was changed");
    assert!(!touch.has_ended());
    master.process().signal(Signal::SIGCONT)?;
    free(&sandbox, ["i"]).run().assert_success();
    assert_freed(touch);
    master.assert_undisturbed();
    Ok(())
}

#[test]
fn a_master_that_can_make_no_calls_has_to_be_restarted() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").args(["--control-fds", "--swallow"]))?;
    let touch = blocked(&sandbox, "d");
    // No descriptor is free.
    TestCommand::new("prlimit")
        .args(["--nofile=3:3", "--pid", &master.pid().to_string()])
        .run()
        .assert_success();
    let freed = free(&sandbox, ["d"]).run().assert_code(3);
    freed
        .assert_stderr_contains("has 0 free descriptors under its limit")
        .assert_stderr_contains("has to be restarted");
    assert_freed(touch);
    assert_catatonic(&sandbox, "d")?;
    master.assert_undisturbed();
    Ok(())
}

/// Another master's trigger covers the way, and its own walks wait there as anybody's.
#[test]
fn a_master_is_not_sent_to_where_it_would_wait_itself() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("way/d").like_systemd().arg("--swallow"))?;
    let mut touch = blocked(&sandbox, "way/d");
    let mut other = sandbox.master(MasterOptions::new().direct("way").arg("--swallow"))?;
    let refused = free(&sandbox, ["way/d"]).run().assert_code(1);
    assert!(!refused.stderr.contains("still waits"), "it waited for who was not freed: {refused}");
    refused
        .assert_stderr_contains("way/d: cannot open the mount")
        .assert_stderr_contains("it is as it was: it could not be freed");
    assert!(!touch.has_ended());
    master.assert_undisturbed();
    other.assert_undisturbed();
    Ok(())
}

#[test]
fn a_timeout_that_is_too_short_cuts_no_master_off() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(three().like_automount())?;
    let pipes = THREE.map(|name| option(&sandbox, name, "pipe_ino").expect("a pipe"));
    for timeout in ["0", "0.0001", "0.001", "0.002", "0.005", "0.01", "0.02", "0.05"] {
        // Whether the time was enough or not.
        free(&sandbox, THREE).args(["--timeout", timeout]).run();
        assert_eq!(THREE.map(|name| option(&sandbox, name, "pipe_ino").expect("a pipe")), pipes, "{timeout}");
    }
    for name in TRIGGERS {
        sandbox.read(sandbox.path(name).join("served-by"))?;
    }
    master.assert_undisturbed();
    Ok(())
}

/// Killing takes its time, and meanwhile another master may come for another of the mounts.
#[test]
fn a_mount_that_a_new_master_connects_meanwhile_is_left_to_it() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let (sandbox, [mut touch]) = killed_master(MasterOptions::new().direct("d").indirect("i"), ["d"])?;
    // It does not end before this process lets it.
    let first = touch.process().pid().to_nix();
    ptrace::seize(first, ptrace::Options::PTRACE_O_TRACEEXIT)?;
    let freeing = free(&sandbox, []).arg("--kill").spawn();
    let is_ending =
        |status| matches!(status, WaitStatus::PtraceEvent(_, _, event) if event == PTRACE_EVENT_EXIT);
    while !is_ending(waitpid(first, None)?) {
        ptrace::cont(first, None)?;
    }
    let mut new = sandbox.master(MasterOptions::new().indirect("i").arg("--reconnect"))?;
    ptrace::detach(first, None)?;
    freeing.finish().assert_success();
    assert_catatonic(&sandbox, "d")?;
    sandbox.read(sandbox.path("i/key/served-by"))?;
    new.assert_undisturbed();
    Ok(())
}

#[test]
fn a_master_goes_on_wherever_the_fixup_is_killed() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    // Not in epoll_wait, which a fixup that is killed may leave with EINTR: see `autofs_fixup::remote`.
    let options = three().like_systemd().args(["--wait=poll", "--swallow"]);
    let mut master = sandbox.master(options)?;
    let pipes = THREE.map(|name| option(&sandbox, name, "pipe_ino").expect("a pipe"));
    for step in 0..30 {
        let touch = sandbox.touch_in_background(sandbox.path("i/key"));
        let mut freeing = free(&sandbox, THREE).spawn();
        // Not a wait for something: each instant shall be met by some of the rounds.
        std::thread::sleep(Duration::from_millis(2 * step));
        freeing.process().kill()?;
        // Who had not been freed is so by the next one.
        free(&sandbox, THREE).run().assert_success();
        let _ = touch.kill();
        assert_eq!(THREE.map(|name| option(&sandbox, name, "pipe_ino").expect("a pipe")), pipes);
    }
    master.serve()?;
    for name in TRIGGERS {
        sandbox.read(sandbox.path(name).join("served-by"))?;
    }
    master.assert_undisturbed();
    Ok(())
}
