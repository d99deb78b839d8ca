//! What the project relies on in the kernel, one test for each fact.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{
    DEADLINE, End, Finished, Master, MasterOptions, Running, Sandbox, TestCommand, TouchError,
    blocked_in_autofs, program,
};
use nix::errno::Errno;

/// A sandbox with one master, and what the tests ask about it.
struct World {
    sandbox: Sandbox,
    master: Master,
}

impl World {
    fn new(options: MasterOptions) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let master = sandbox.master(options)?;
        Ok(Self { sandbox, master })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path(name)
    }

    /// The path of a mount and its device, as arguments of a probe.
    fn at(&mut self, name: &str) -> Result<[String; 2]> {
        let path = self.path(name);
        let report = self.master.report()?;
        let mount = report.mounts.into_iter().find(|mount| mount.path == path).context("no such mount")?;
        Ok([path.display().to_string(), mount.device])
    }

    /// The master's pid inside and the number of its first read end, as arguments of a probe.
    fn pipe(&mut self) -> Result<[String; 2]> {
        let report = self.master.report()?;
        let mount = report.mounts.first().context("no mounts")?;
        Ok([report.pid.to_string(), mount.read_fd.to_string()])
    }

    /// One step by a process outside of the master's group.
    fn probe(&self, step: &str, arguments: &[String]) -> TestCommand {
        self.sandbox.command(program("autofs-probe")).arg(step).args(arguments)
    }

    fn option(&self, name: &str, option: &str) -> Option<String> {
        let line = self.sandbox.mount_line(self.path(name))?;
        let options = line.rsplit(' ').next()?;
        let found = options.split(',').find_map(|word| word.strip_prefix(option)?.strip_prefix('='));
        found.map(str::to_owned)
    }

    fn stat(&self, name: &str) -> TestCommand {
        self.sandbox.command("stat").arg(self.path(name)).deadline(DEADLINE)
    }
}

fn assert_errno(finished: Finished, errno: Errno) -> Finished {
    let said = finished.stderr.trim() == (errno as i32).to_string();
    finished.check(said, &format!("expected {errno}")).assert_code(10)
}

fn wait_until_blocked(running: &mut Running) {
    let deadline = Instant::now() + DEADLINE;
    let process = running.process();
    while blocked_in_autofs(&[process.pid()]).is_empty() {
        assert_eq!(process.wait(Duration::from_millis(2)).expect("wait"), None, "it ended");
        assert!(Instant::now() < deadline, "it is not blocked");
    }
}

const UNREAD: &str = "--ignore-requests";

#[test]
fn a_mount_with_a_write_end_cloned_from_the_read_end_is_connected_at_once() -> Result<()> {
    require!(Root, Autofs);
    for kind in ["direct", "offset", "indirect"] {
        let options = MasterOptions::new().direct("d").like_systemd().arg("--identity=none");
        let mut world = World::new(options)?;
        let path = world.sandbox.mkdir("new")?;
        let [master, read_fd] = world.pipe()?;
        let arguments = [path.display().to_string(), kind.to_owned(), master.clone(), read_fd, master];
        world.probe("mount", &arguments).run().assert_success();
        world.sandbox.touch(if kind == "indirect" { path.join("key") } else { path })?;
        world.master.assert_undisturbed();
        assert_eq!(world.master.report()?.counters.served, 1);
    }
    Ok(())
}

#[test]
fn pgrp_in_mountinfo_is_the_readers_view() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new(MasterOptions::new().direct("d"))?;
    let inside = world.sandbox.run(["cat", "/proc/self/mountinfo"]).assert_success().stdout;
    assert!(inside.contains(&format!("pgrp={},", world.master.pid_inside())));
    assert_eq!(world.option("d", "pgrp"), Some(world.master.pid().to_string()));
    Ok(())
}

#[test]
fn a_group_that_the_reader_cannot_see_is_shown_as_0() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new(MasterOptions::new().direct("d"))?;
    let script = "mount -t proc proc /proc && cat /proc/self/mountinfo";
    let nested = world.sandbox.run(["unshare", "-mpf", "sh", "-c", script]).assert_success();
    nested.assert_stdout_contains("pgrp=0,");
    Ok(())
}

#[test]
fn the_pipe_in_mountinfo_is_the_one_that_the_master_reads() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let mut world = World::new(MasterOptions::new().direct("d"))?;
    let [_, read_fd] = world.pipe()?;
    let link = std::fs::read_link(format!("/proc/{}/fd/{read_fd}", world.master.pid()))?;
    let inode = world.option("d", "pipe_ino").context("no pipe_ino")?;
    assert_eq!(link.to_string_lossy(), format!("pipe:[{inode}]"));
    Ok(())
}

#[test]
fn a_catatonic_mount_shows_no_pipe_and_fails_every_access() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d").indirect("i"))?;
    for name in ["d", "i"] {
        let at = world.at(name)?;
        world.probe("catatonic", &at).run().assert_success();
        assert_eq!(world.option(name, "fd").as_deref(), Some("-1"));
        assert_eq!(world.option(name, "pipe_ino").as_deref(), Some("-1"));
    }
    assert_eq!(world.sandbox.touch(world.path("i/key")), Err(TouchError::Errno(Errno::ENOENT)));
    let list = world.sandbox.command("ls").arg("-A").arg(world.path("d")).run().assert_success();
    assert_eq!(list.stdout, "");
    let mkdir = world.probe("mkdir", &[world.path("i/made").display().to_string()]).run();
    assert_errno(mkdir, Errno::EACCES);
    Ok(())
}

#[test]
fn directories_in_an_indirect_mount_are_made_by_its_own_group_only() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new(MasterOptions::new().indirect("i"))?;
    let mkdir = world.probe("mkdir", &[world.path("i/made").display().to_string()]).run();
    assert_errno(mkdir, Errno::EACCES);
    Ok(())
}

#[test]
fn openmount_finds_a_covered_superblock() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d"))?;
    world.sandbox.touch(world.path("d"))?;
    let at = world.at("d")?;
    let opened = world.probe("open", &at).run().assert_success();
    assert_eq!(opened.stdout.trim(), at[1]);
    Ok(())
}

#[test]
fn ioctls_of_another_group_are_refused_until_the_mount_is_catatonic() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d"))?;
    let at = world.at("d")?;
    let timeout = || world.probe("timeout", &at).arg("77").run();
    assert_errno(timeout(), Errno::EACCES);
    world.probe("catatonic", &at).run().assert_success();
    timeout().assert_success();
    assert_eq!(world.option("d", "timeout").as_deref(), Some("77"));
    Ok(())
}

#[test]
fn setpipefd_takes_the_callers_group_and_the_master_then_blocks_on_its_own_mount() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d"))?;
    let arguments = [world.at("d")?, world.pipe()?].concat();
    assert_errno(world.probe("set-pipe", &arguments).run(), Errno::EACCES);
    world.probe("catatonic", &arguments[..2]).run().assert_success();
    world.probe("set-pipe", &arguments).run().assert_success();
    assert_ne!(world.option("d", "pgrp"), Some(world.master.pid().to_string()));
    let mut touch = world.sandbox.touch_in_background(world.path("d"));
    touch.wait_until_blocked();
    let deadline = Instant::now() + DEADLINE;
    while blocked_in_autofs(&[world.master.pid()]).is_empty() {
        assert_eq!(touch.process().wait(Duration::from_millis(2))?, None, "the request was served");
        assert!(Instant::now() < deadline, "the master is not blocked");
    }
    Ok(())
}

#[test]
fn unread_requests_can_be_copied_and_stay_where_they_are() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().indirect("i").direct("d").arg(UNREAD))?;
    let mut first = world.sandbox.touch_in_background(world.path("i/one"));
    first.wait_until_blocked();
    let mut joiner = world.sandbox.touch_in_background(world.path("i/one"));
    joiner.wait_until_blocked();
    let mut direct = world.sandbox.touch_in_background(world.path("d"));
    direct.wait_until_blocked();
    let pipe = world.pipe()?;
    let peek = || world.probe("peek", &pipe).run().assert_success().stdout;
    let seen = peek();
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(lines.len(), 3, "{seen}");
    assert_eq!(lines[0], "bytes 608");
    let pid = first.process().pid_inside()?;
    assert!(lines[1].contains("304 MissingIndirect") && lines[1].ends_with("name one"), "{seen}");
    assert!(lines[1].contains(&format!("pid {pid} tgid {pid} ")), "{seen}");
    assert!(lines[2].contains("304 MissingDirect"), "{seen}");
    assert_eq!(peek(), seen);
    Ok(())
}

#[test]
fn a_packet_has_device_and_inode_of_the_root_and_a_token_that_answers_it() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d").arg(UNREAD))?;
    let mut touch = world.sandbox.touch_in_background(world.path("d"));
    touch.wait_until_blocked();
    let mount = world.master.report()?.mounts.remove(0);
    let pipe = world.pipe()?;
    let seen = world.probe("peek", &pipe).run().assert_success().stdout;
    assert!(seen.contains(&format!("device {} inode {} ", mount.device, mount.inode)), "{seen}");
    Ok(())
}

/// The kernel compares a hash of the name that is salted with the address of the directory entry. The
/// entry of a key without directory goes away with its last waiter, so that the next request for that key is a
/// new one, unless its entry happens to get the same address.
#[test]
fn a_wait_outlives_its_waiter_and_is_joined_without_a_packet_where_the_directory_exists() -> Result<()> {
    require!(Root, Autofs);
    for trigger in ["d", "i/browsed"] {
        let options = MasterOptions::new().direct("d").indirect("i").args(["--swallow", "--subdir=browsed"]);
        let mut world = World::new(options)?;
        for _ in 0..3 {
            let mut touch = world.sandbox.touch_in_background(world.path(trigger));
            touch.wait_until_blocked();
            assert_eq!(touch.kill(), Err(TouchError::Killed(9)));
        }
        assert_eq!(world.master.report()?.counters.swallowed, 1, "{trigger}");
    }
    Ok(())
}

#[test]
fn path_walks_of_others_block_while_a_request_is_pending_on_a_direct_root() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d").arg(UNREAD))?;
    world.stat("d").run().assert_success();
    let mut first = world.sandbox.touch_in_background(world.path("d"));
    first.wait_until_blocked();
    let at = world.at("d")?;
    for walk in [world.stat("d"), world.probe("open", &at)] {
        wait_until_blocked(&mut walk.spawn());
    }
    assert_eq!(first.kill(), Err(TouchError::Killed(9)));
    world.stat("d").run().assert_success();
    Ok(())
}

#[test]
fn catatonic_frees_all_who_wait_with_enoent() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().indirect("i").arg("--swallow"))?;
    let mut touches = [(); 3].map(|()| world.sandbox.touch_in_background(world.path("i/key")));
    touches.iter_mut().for_each(|touch| touch.wait_until_blocked());
    let at = world.at("i")?;
    world.probe("catatonic", &at).run().assert_success();
    for touch in touches {
        assert_eq!(touch.join(), Err(TouchError::Errno(Errno::ENOENT)));
    }
    world.sandbox.assert_nothing_blocked();
    Ok(())
}

#[test]
fn after_the_masters_death_the_next_requester_gets_sigpipe_and_the_mount_turns_catatonic() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().indirect("i").indirect("j"))?;
    world.sandbox.touch(world.path("i/served"))?;
    world.master.process().kill()?;
    assert_ne!(world.option("i", "fd").as_deref(), Some("-1"));
    let cat = world.sandbox.command("cat").arg(world.path("i/key")).run();
    let end = cat.end;
    cat.check(end == Some(End::Signal(13)), "expected SIGPIPE");
    assert_eq!(world.option("i", "fd").as_deref(), Some("-1"));
    // A program of Rust ignores SIGPIPE.
    assert_eq!(world.sandbox.touch(world.path("j/key")), Err(TouchError::Errno(Errno::ENOENT)));
    // What was mounted goes on working.
    world.sandbox.read(world.path("i/served/served-by"))?;
    Ok(())
}

#[test]
fn those_who_waited_before_the_masters_death_stay_blocked() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().indirect("i").arg("--swallow"))?;
    let mut touch = world.sandbox.touch_in_background(world.path("i/key"));
    touch.wait_until_blocked();
    world.master.process().kill()?;
    assert!(!touch.has_ended());
    touch.wait_until_blocked();
    Ok(())
}

#[test]
fn a_requester_outside_of_the_masters_pid_namespace_gets_enoent() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new(MasterOptions::new().indirect("i"))?;
    let pid = world.sandbox.pid().to_string();
    let cat = TestCommand::new("nsenter").args(["-t", &pid, "-m", "cat"]).arg(world.path("i/key")).run();
    cat.assert_code(1).assert_stderr_contains("No such file");
    Ok(())
}

#[test]
fn a_master_without_write_end_sees_a_hang_up_when_its_mount_turns_catatonic() -> Result<()> {
    require!(Root, Autofs);
    let mut closed = World::new(MasterOptions::new().direct("d").like_systemd())?;
    let mut kept = World::new(MasterOptions::new().direct("d").like_automount())?;
    for world in [&mut closed, &mut kept] {
        let at = world.at("d")?;
        world.probe("catatonic", &at).run().assert_success();
    }
    // Another thread of the master sees it than the one that reports.
    let deadline = Instant::now() + DEADLINE;
    while closed.master.report()?.counters.hangups == 0 {
        ensure!(Instant::now() < deadline, "the master sees no hang-up");
    }
    assert_eq!(kept.master.report()?.counters.hangups, 0);
    Ok(())
}

#[test]
fn a_device_number_is_handed_out_again_at_once() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new(MasterOptions::new().direct("d"))?;
    let path = world.sandbox.mkdir("filler")?.display().to_string();
    // Other mounts of this machine can take the number in between, but not always.
    for _ in 0..50 {
        let devices = world.probe("reuse", std::slice::from_ref(&path)).run().assert_success().stdout;
        let (first, second) = devices.trim().split_once('\n').context("two devices")?;
        if first == second {
            return Ok(());
        }
    }
    anyhow::bail!("the number was never handed out again")
}

#[test]
fn a_stat_starts_no_mount() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d"))?;
    world.stat("d").run().assert_success();
    assert_eq!(world.master.report()?.counters.served, 0);
    Ok(())
}

#[test]
fn a_statx_starts_a_mount_unless_it_says_otherwise() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d"))?;
    let path = world.path("d").display().to_string();
    world.probe("statx", &["--no-automount".to_owned(), path.clone()]).run().assert_success();
    assert_eq!(world.master.report()?.counters.served, 0);
    world.probe("statx", &[path]).run().assert_success();
    assert_eq!(world.master.report()?.counters.served, 1);
    Ok(())
}

#[test]
fn an_expire_of_a_bare_direct_trigger_asks_the_master_all_the_same() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d"))?;
    let path = world.path("d");
    assert_eq!(world.master.expire(&path)?, Ok(()));
    assert_eq!(world.master.report()?.counters.expired, 1);
    assert!(world.sandbox.mount_line(&path).is_some_and(|line| line.contains(" - autofs ")));
    Ok(())
}

#[test]
fn setpipefd_of_a_mount_that_has_a_pipe_is_busy() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d"))?;
    let arguments = [world.at("d")?, world.pipe()?].concat();
    world.probe("catatonic", &arguments[..2]).run().assert_success();
    // Both of one group, that of the shell.
    let script = "\"$@\" && exec \"$@\"";
    let twice = world.sandbox.command("sh").args(["-c", script, "sh"]).arg(program("autofs-probe"));
    assert_errno(twice.arg("set-pipe").args(&arguments).run(), Errno::EBUSY);
    Ok(())
}

#[test]
fn setpipefd_by_a_group_of_another_pid_namespace_is_invalid() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d"))?;
    let arguments = [world.at("d")?, world.pipe()?].concat();
    world.probe("catatonic", &arguments[..2]).run().assert_success();
    let nested = world.sandbox.command("unshare").args(["-pf", "setsid"]).arg(program("autofs-probe"));
    assert_errno(nested.arg("set-pipe").args(&arguments).run(), Errno::EINVAL);
    assert_eq!(world.option("d", "fd").as_deref(), Some("-1"));
    Ok(())
}

#[test]
fn the_kernel_sets_o_direct_on_the_write_end() -> Result<()> {
    require!(Root, Autofs);
    let mut world = World::new(MasterOptions::new().direct("d").like_automount())?;
    let [_, read_fd] = world.pipe()?;
    let write_fd = world.option("d", "fd").context("no fd")?;
    for (fd, direct) in [(read_fd, false), (write_fd, true)] {
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", world.master.pid()))?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).context("no flags")?;
        let flags = u32::from_str_radix(flags.trim(), 8)?;
        assert_eq!(flags & rustix::fs::OFlags::DIRECT.bits() != 0, direct, "descriptor {fd}: {flags:o}");
    }
    Ok(())
}

#[test]
fn a_bind_mount_shows_the_same_superblock() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new(MasterOptions::new().indirect("i"))?;
    let copy = world.sandbox.mkdir("copy")?;
    world.sandbox.command("mount").arg("--bind").arg(world.path("i")).arg(copy).run().assert_success();
    let lines = world.sandbox.autofs_lines();
    let devices: Vec<_> = lines.iter().map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(devices.len(), 2);
    assert_eq!(devices[0], devices[1]);
    Ok(())
}

#[test]
fn sigterm_ends_a_wait_of_a_process_without_handler() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new(MasterOptions::new().indirect("i").arg("--swallow"))?;
    let mut touch = world.sandbox.touch_in_background(world.path("i/key"));
    touch.wait_until_blocked();
    touch.process().signal(nix::sys::signal::Signal::SIGTERM)?;
    assert_eq!(touch.join(), Err(TouchError::Killed(15)));
    Ok(())
}

#[test]
fn an_unmount_that_propagates_leaves_what_is_on_the_mount_at_its_place() -> Result<()> {
    require!(Root);
    let sandbox = Sandbox::new()?;
    let work = sandbox.mkdir("work")?;
    let script = |script: &str| {
        let script = format!("set -e; cd {}; {script}", work.display());
        sandbox.command("sh").args(["-c", &script]).deadline(DEADLINE).run()
    };
    // What is mounted in `leads` is mounted and unmounted in `follows`. The place is first made free in the one, then taken
    // by others.
    script(
        "mkdir leads follows && mount -t tmpfs leads leads && mount --make-shared leads && mkdir leads/at &&
         mount --bind leads follows && mount --make-slave follows &&
         mount -t tmpfs empty leads/at && umount follows/at &&
         mount -t tmpfs old follows/at && mount -t tmpfs content follows/at && touch follows/at/here",
    )
    .assert_success();
    let held =
        script("umount follows/at; exec 9< follows/at; mount -t tmpfs content follows/at; umount leads/at");
    ensure!(held.end != Some(End::Exit(0)) && held.stderr.contains("busy"), "what is in use stays: {held}");
    script("touch follows/at/here; umount leads/at && test -e follows/at/here").assert_success();
    let mounts = sandbox.mountinfo();
    let there = |name: &str| mounts.lines().any(|line| line.contains(&format!(" - tmpfs {name} ")));
    ensure!(there("content") && !there("old"), "{mounts}");
    Ok(())
}
