//! The sandbox and the reference master themselves.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use autofs_cr_common::model::Pid;
use autofs_cr_common::target::open_pidfd;
use autofs_cr_tests::machine::Machine;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{
    DEADLINE, MasterOptions, Sandbox, TestCommand, TouchError, assert_no_leaks, program,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

#[test]
fn a_master_serves_direct_indirect_and_offset_mounts() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").indirect("i").offset("o"))?;
    let pid = master.pid_inside();
    assert_eq!(sandbox.read(sandbox.path("d/served-by"))?, format!("{pid} 1\n"));
    assert_eq!(sandbox.read(sandbox.path("i/key/served-by"))?, format!("{pid} 2\n"));
    assert_eq!(sandbox.read(sandbox.path("o/served-by"))?, format!("{pid} 3\n"));
    assert_eq!(sandbox.touch(sandbox.path("i/missing")), Err(TouchError::Errno(Errno::ENOENT)));
    let counters = master.report()?.counters;
    assert_eq!((counters.served, counters.failed), (3, 1));
    master.assert_undisturbed();
    sandbox.assert_nothing_blocked();
    Ok(())
}

/// A master with these options serves a direct and an indirect mount, calmly.
#[track_caller]
fn assert_serves(arguments: &[&str]) {
    let sandbox = Sandbox::new().expect("a sandbox");
    let options = MasterOptions::new().direct("d").indirect("i").args(arguments);
    let mut master = sandbox.master(options).expect("a master");
    sandbox.touch(sandbox.path("d")).expect("touch the direct trigger");
    sandbox.touch(sandbox.path("i/key")).expect("touch the indirect trigger");
    assert_eq!(master.report().expect("a report").counters.served, 2);
    master.assert_undisturbed();
}

#[test]
fn a_master_serves_in_each_way_of_waiting() {
    require!(Root, Autofs);
    for wait in ["read", "poll", "poll-timeout", "epoll", "futex"] {
        for pipes in ["one", "each"] {
            for write_end in ["keep", "close"] {
                assert_serves(&[
                    &format!("--wait={wait}"),
                    &format!("--pipes={pipes}"),
                    &format!("--write-end={write_end}"),
                ]);
            }
        }
    }
}

#[test]
fn a_master_serves_without_blocking_reads_and_with_idle_threads() {
    require!(Root, Autofs);
    for wait in ["read", "poll", "epoll", "futex"] {
        assert_serves(&[&format!("--wait={wait}"), "--nonblock", "--threads=7", "--read-fd=40"]);
    }
}

#[test]
fn a_master_serves_through_control_descriptors_and_by_each_identity() {
    require!(Root, Autofs);
    for identity in ["device", "inode", "none"] {
        assert_serves(&["--control-fds", &format!("--identity={identity}")]);
    }
}

#[test]
fn a_master_with_one_thread_reports_after_the_next_request() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").args(["--single", "--wait=read"]))?;
    let threads = std::fs::read_dir(format!("/proc/{}/task", master.pid()))?.count();
    assert_eq!(threads, 1);
    master.say("report")?;
    sandbox.touch(sandbox.path("d"))?;
    assert!(master.hear(DEADLINE)?.contains("\"served\":1"));
    Ok(())
}

#[test]
fn a_master_expires_what_it_mounted() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").indirect("i"))?;
    for (trigger, mount) in [("d", "d"), ("i/key", "i")] {
        sandbox.touch(sandbox.path(trigger))?;
        assert_eq!(master.expire(&sandbox.path(mount))?, Ok(()));
    }
    assert!(!sandbox.mountinfo().contains(" - tmpfs content "));
    assert_eq!(master.report()?.counters.expired, 2);
    assert_eq!(master.expire(&sandbox.path("i"))?, Err(Errno::EAGAIN));
    Ok(())
}

#[test]
fn a_master_makes_directories_and_symlinks() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().indirect("i").args(["--subdir=seen", "--symlink=link=/etc"]);
    let _master = sandbox.master(options)?;
    let directory = sandbox.path("i");
    let listed = sandbox.run(["ls", directory.to_str().expect("a plain name")]).assert_success();
    assert_eq!(listed.stdout, "link\nseen\n");
    sandbox.read(sandbox.path("i/seen/served-by"))?;
    Ok(())
}

#[test]
fn options_of_a_master_are_those_of_its_mounts() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().direct("d").args([
        "--timeout=77",
        "--uid=5",
        "--gid=6",
        "--strictexpire",
        "--ignore",
        "--minproto=4",
    ]);
    let _master = sandbox.master(options)?;
    let line = sandbox.mount_line(sandbox.path("d")).expect("an autofs mount");
    for option in ["timeout=77", "uid=5", "gid=6", "strictexpire", "ignore", "minproto=4", "direct"] {
        assert!(line.split([' ', ',']).any(|word| word == option), "no {option} in {line}");
    }
    Ok(())
}

#[test]
fn a_request_that_is_not_answered_blocks_and_can_be_killed() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().indirect("i").arg("--ignore-requests"))?;
    let mut touch = sandbox.touch_in_background(sandbox.path("i/key"));
    touch.wait_until_blocked();
    assert_eq!(touch.kill(), Err(TouchError::Killed(9)));
    sandbox.assert_nothing_blocked();
    Ok(())
}

#[test]
fn a_sandbox_has_its_own_processes_and_leaves_nothing() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    assert_eq!(sandbox.run(["sh", "-c", "echo $PPID"]).assert_success().stdout, "0\n");
    let work = sandbox.work().to_owned();
    let master = sandbox.master(MasterOptions::new().direct("d"))?;
    let touch = sandbox.touch_in_background(sandbox.path("d"));
    let pids = [sandbox.pid(), master.pid()];
    drop((touch, master));
    sandbox.close()?;
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
    }
    assert_no_leaks(&work);
    assert!(!work.exists());
    Ok(())
}

#[test]
fn a_sandbox_without_its_own_pid_namespace_ends_its_processes_too() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::builder().own_pid_namespace(false).build()?;
    let master = sandbox.master(MasterOptions::new().direct("d"))?;
    assert_eq!(master.pid(), master.pid_inside());
    sandbox.touch(sandbox.path("d"))?;
    // One that nobody holds.
    sandbox.run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"]).assert_success();
    assert!(sandbox.processes().len() >= 2);
    drop(master);
    sandbox.close()
}

#[test]
fn a_fresh_root_and_its_own_shm_are_apart_from_the_machine() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::builder().fresh_root().shm().build()?;
    let _master = sandbox.master(MasterOptions::new().direct("d"))?;
    sandbox.touch(sandbox.path("d"))?;
    let list = sandbox.run(["ls", "/"]).assert_success();
    assert!(!list.stdout.contains("home"), "{list}");
    assert_eq!(sandbox.run(["ls", "/dev/shm"]).assert_success().stdout, "");
    Ok(())
}

#[test]
fn a_command_has_input_output_status_user_and_deadline() -> Result<()> {
    require!(Root, Autofs);
    let cat = TestCommand::new("cat").stdin("a text").run().assert_success();
    assert_eq!(cat.stdout, "a text");
    TestCommand::new("sh")
        .args(["-c", "echo no >&2; exit 3"])
        .run()
        .assert_code(3)
        .assert_stderr_contains("no");
    let id = TestCommand::new("/usr/bin/id").arg("-u").user(65534).run().assert_success();
    assert_eq!(id.stdout, "65534\n");
    let late = TestCommand::new("sleep").arg("1000").deadline(std::time::Duration::from_millis(50)).run();
    assert_eq!(late.end, None);
    let (first, second) =
        TestCommand::new("echo").arg("through").pipe(TestCommand::new("tr").args(["a-z", "A-Z"]));
    first.assert_success();
    assert_eq!(second.assert_success().stdout, "THROUGH\n");
    Ok(())
}

#[test]
fn a_master_takes_over_the_mounts_of_a_pipe_that_it_inherits() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let mut old = sandbox.master(MasterOptions::new().direct("d").arg("--ignore-requests"))?;
    let mount = old.report()?.mounts.remove(0);
    let mut waiting = sandbox.touch_in_background(sandbox.path("d"));
    waiting.wait_until_blocked();
    assert!(waiting.kill().is_err());

    let probe = program("autofs-probe").display().to_string();
    let arguments = format!("{} {}", mount.path.display(), mount.device);
    let pipe = format!("{} {}", old.pid_inside(), mount.read_fd);
    let script = format!(
        "{probe} catatonic {arguments} && exec 7</proc/{}/fd/{} && {probe} set-pipe {arguments} {pipe} && \
         exec \"$@\"",
        old.pid_inside(),
        mount.read_fd
    );
    let options = MasterOptions::new().via(["sh", "-c", &script, "sh"]).arg("--pipe-fd=7");
    let mut new = sandbox.master(options)?;
    old.kill()?;
    let report = new.report()?;
    assert_eq!((report.mounts.len(), report.mounts[0].read_fd), (1, 7));
    // The old request was still in the pipe, and its wait had ended when the mount was catatonic.
    assert_eq!(report.counters.stale, 1);
    new.assert_undisturbed();
    let served_by = sandbox.read(sandbox.path("d/served-by"))?;
    assert!(served_by.starts_with(&format!("{} ", new.pid_inside())), "{served_by}");
    Ok(())
}

#[test]
fn a_command_that_leaves_a_process_behind_does_not_hang_the_test() -> Result<()> {
    require!(Root);
    let sandbox = Sandbox::new()?;
    let left = sandbox.run(["sh", "-c", "setsid sleep 1000 2>/dev/null & echo started"]).assert_success();
    assert_eq!(left.stdout, "started\n");
    Ok(())
}

#[test]
fn a_master_mounts_thousands() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let bulk = sandbox.path("bulk").display().to_string();
    let _master = sandbox.master(MasterOptions::new().args(["--bulk", &bulk, "2000"]))?;
    assert_eq!(sandbox.autofs_lines().len(), 2000);
    sandbox.touch(sandbox.path("bulk/001999"))?;
    Ok(())
}

/// The name of a variable: with it the test below is its own child.
const AS_CHILD: &str = "AUTOFS_CR_BOOT_AND_WAIT";

#[test]
fn a_machine_ends_with_its_test_also_when_that_is_killed() -> Result<()> {
    require!(Root, Autofs, Machine);
    if std::env::var_os(AS_CHILD).is_some() {
        let machine = Machine::boot()?;
        eprintln!("booted {}", machine.pid());
        std::io::stdin().read_line(&mut String::new())?;
        return machine.close();
    }
    let arguments = ["--exact", "a_machine_ends_with_its_test_also_when_that_is_killed", "--nocapture"];
    let mut child = Command::new(std::env::current_exe()?);
    child
        .args(arguments)
        .env(AS_CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = child.spawn()?;
    let lines = BufReader::new(child.stderr.take().context("no output")?).lines();
    let told = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("booted ")?.parse::<Pid>().ok());
    let Some(init) = told else {
        child.kill()?;
        bail!("it did not boot");
    };
    let init = open_pidfd(init)?;
    child.kill()?;
    child.wait()?;
    let mut ended = [PollFd::new(init.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut ended, PollTimeout::try_from(DEADLINE)?)?, 1, "it is still there");
    Ok(())
}
