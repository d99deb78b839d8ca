//! The four tools together, as a user chains them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use autofs_cr_common::model::{Pid, State};
use autofs_cr_common::segment::{Outcome, Progress, Segment};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{
    dump, lasting, make_catatonic, read_image as read, stage_text, start_restore,
};
use autofs_cr_tests::sandbox::{DEADLINE, MasterOptions, Sandbox, TestCommand, Tool, program};

#[test]
fn the_whole_pipeline_replaces_every_mount_under_its_masters() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut systemd = sandbox.master(MasterOptions::new().direct("a").direct("b").like_systemd())?;
    let mut other =
        sandbox.master(MasterOptions::new().indirect("i").args(["--subdir=in", "--identity=device"]))?;
    sandbox.touch(sandbox.path("a"))?;
    sandbox.touch(sandbox.path("i/key"))?;
    let before = dump(&sandbox);

    let report = Tool::inspect().target(&sandbox).args(["-f", "yaml"]).run().assert_success().stdout;
    let image = Tool::dump().args(["-i", "-"]).stdin(report).run().assert_success().stdout;
    assert_eq!(image, before, "from a report and from a scan of its own, dump gives the same");
    let (restored, fixed) =
        Tool::restore().target(&sandbox).arg("--replace").stdin(image).pipe(Tool::fixup());
    restored.assert_success().assert_stderr_contains("connect 2, create 1");
    fixed.assert_success();

    assert_eq!(lasting(&dump(&sandbox)), lasting(&before), "{before}");
    for path in ["a/served-by", "b/served-by", "i/key/served-by", "i/new/served-by"] {
        sandbox.read(sandbox.path(path))?;
    }
    systemd.assert_undisturbed();
    other.assert_undisturbed();
    sandbox.assert_nothing_blocked();
    sandbox.close()
}

#[test]
fn several_masters_are_fixed_side_by_side() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut masters = Vec::new();
    for (number, wait) in ["read", "poll", "epoll", "futex"].into_iter().enumerate() {
        let options = MasterOptions::new().direct(format!("d{number}")).indirect(format!("i{number}"));
        masters.push(sandbox.master(options.args([&format!("--wait={wait}"), "--threads=3"]))?);
    }
    let image = dump(&sandbox);
    make_catatonic(&sandbox, &image);
    let (restored, fixed) = Tool::restore().target(&sandbox).stdin(&*image).pipe(Tool::fixup());
    restored.assert_success().assert_stderr_contains("adopt 8");
    fixed.assert_success();
    assert_eq!(dump(&sandbox), image);
    for (number, master) in masters.iter_mut().enumerate() {
        sandbox.touch(sandbox.path(format!("d{number}")))?;
        sandbox.touch(sandbox.path(format!("i{number}/key")))?;
        master.assert_undisturbed();
    }
    sandbox.close()
}

#[test]
fn fixup_finds_the_segment_where_dev_shm_is_another_one() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d"))?;
    let image = dump(&sandbox);
    make_catatonic(&sandbox, &image);
    let elsewhere = format!("mount -t tmpfs none /dev/shm && exec {}", program("autofs-fixup").display());
    let fixup = TestCommand::new("unshare").args(["--mount", "sh", "-c", &elsewhere]);
    let (restored, fixed) = Tool::restore().target(&sandbox).stdin(image).pipe(fixup);
    fixed.assert_success();
    restored.assert_success();
    sandbox.touch(sandbox.path("d"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn restore_notices_a_fixup_that_dies_and_another_one_goes_on() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d"))?;
    let image = dump(&sandbox);
    make_catatonic(&sandbox, &image);
    let (restore, stage) = start_restore(&sandbox, &image, "")?;
    let segment = Segment::open_address(stage.segment.as_ref().context("no segment")?)?;
    assert_eq!(segment.progress(0)?, Progress::Created);
    drop(segment.claim(0)?);
    Tool::fixup().stdin(stage_text(&stage)).run().assert_success();
    restore.finish().assert_success().assert_stderr_contains("adopt 1");
    sandbox.touch(sandbox.path("d"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn a_restore_that_was_killed_can_be_run_again() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").arg("--identity=device"))?;
    let image = dump(&sandbox);
    sandbox.run(["umount", &sandbox.path("d").to_string_lossy()]).assert_success();
    let (mut restore, stage) = start_restore(&sandbox, &image, "--connect=fixup")?;
    restore.process().kill()?;
    drop(restore);
    Tool::fixup().stdin(stage_text(&stage)).run().assert_code(1);
    // The next restore would take it away, but not so soon.
    std::fs::remove_file(
        Path::new("/dev/shm").join(stage.segment.context("no segment")?.name.trim_start_matches('/')),
    )?;
    let (restored, fixed) = Tool::restore().target(&sandbox).stdin(&*image).pipe(Tool::fixup());
    restored.assert_success().assert_stderr_contains("adopt 1");
    fixed.assert_success();
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image));
    sandbox.touch(sandbox.path("d"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn fresh_namespaces_get_the_mounts_and_a_new_master_serves_them() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d").indirect("i").arg("--subdir=in"))?;
    let image = dump(&sandbox);
    let id = read(&image).masters[0].id.clone();
    let read_fd = read(&image).masters[0].pipes[0].read_end.context("a read end")?.fd;
    master.kill()?;
    for name in ["d", "i"] {
        sandbox.run(["umount", &sandbox.path(name).to_string_lossy()]).assert_success();
    }
    std::fs::write(sandbox.outside(sandbox.path("image")), &image)?;
    // The init of the fresh namespace: it starts the master, touches its mounts, and ends.
    let script = format!(
        "cd {work}; mkfifo in out; exec 18<>in 19<>out
         {fixup} --exec --master {id} -- {master} --pipe-fd={read_fd} <&18 >&19 &
         read line <&19; [ \"$line\" = ready ] || exit 90
         cat d/served-by i/key/served-by || exit 91
         kill $!; wait $!; exit 42",
        work = sandbox.work().display(),
        fixup = program("autofs-fixup").display(),
        master = program("reference-master").display(),
    );
    let restore =
        sandbox.command(program("autofs-restore")).args(["--init", "-i"]).arg(sandbox.path("image"));
    let before = sandbox.mountinfo();
    let restored = restore.args(["-o"]).arg(sandbox.path("stage")).args(["--", "bash", "-c", &script]).run();
    let restored = restored.assert_code(42).assert_stderr_contains("all is connected");
    assert_eq!(restored.stdout.lines().count(), 2, "{}", restored.stdout);
    assert_eq!(sandbox.mountinfo(), before, "nothing is mounted outside of the fresh namespace");
    sandbox.close()
}

/// A root directory with what a program needs to run, and nothing else: an empty /dev and /proc.
fn bare_root(sandbox: &Sandbox) -> Result<PathBuf> {
    let root = sandbox.mkdir("root")?;
    let tools = program("autofs-fixup");
    let tools = tools.parent().context("no folder of programs")?;
    for folder in ["/usr", "/bin", "/lib", "/lib64"].map(Path::new).into_iter().chain([tools]) {
        let place = sandbox.mkdir(Path::new("root").join(folder.strip_prefix("/")?))?;
        let bind = ["mount", "--bind", &folder.to_string_lossy(), &place.to_string_lossy()];
        sandbox.run(bind).assert_success();
    }
    sandbox.mkdir("root/proc")?;
    sandbox.mkdir("root/dev")?;
    sandbox.mkdir("root/d")?;
    Ok(root)
}

#[test]
fn a_bare_root_directory_is_enough_for_a_fresh_namespace() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let root = bare_root(&sandbox)?;
    let master = sandbox.master(MasterOptions::new().direct("d"))?;
    let image = dump(&sandbox).replace(&*sandbox.work().to_string_lossy(), "");
    master.kill()?;
    sandbox.run(["umount", &sandbox.path("d").to_string_lossy()]).assert_success();
    let script = format!(
        "mkfifo in out; exec 18<>in 19<>out
         # The tool is handed a descriptor of the control device; the master wants its own.
         {fixup} --exec -- bash -c 'mknod /dev/autofs c 10 235; exec {master} --pipe-fd=4' <&18 >&19 &
         read line <&19; [ \"$line\" = ready ] || exit 90
         read served < d/served-by || exit 91
         [ $$ = 1 ] || exit 92
         kill $!; wait $!; exit 42",
        fixup = program("autofs-fixup").display(),
        master = program("reference-master").display(),
    );
    let restore = sandbox.command(program("autofs-restore")).arg("--init").arg("--root").arg(&root);
    let restored = restore.args(["--", "bash", "-c", &script]).stdin(image).run();
    restored.assert_code(42).assert_stderr_contains("all is connected");
    sandbox.close()
}

#[test]
fn the_fresh_namespace_ends_when_no_master_comes() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d"))?;
    let image = dump(&sandbox);
    master.kill()?;
    sandbox.run(["umount", &sandbox.path("d").to_string_lossy()]).assert_success();
    let before = sandbox.mountinfo();
    let restore =
        sandbox.command(program("autofs-restore")).args(["--init", "--timeout=0.3", "--", "sleep", "1000"]);
    let restored = restore.stdin(image).run();
    restored.assert_code(1).assert_stderr_contains("the fresh namespace was ended");
    assert_eq!(sandbox.mountinfo(), before);
    sandbox.close()
}

#[test]
fn a_dead_masters_mounts_are_adopted_for_a_new_one() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d").indirect("i"))?;
    master.kill()?;
    let image = dump(&sandbox);
    assert!(read(&image).superblocks.iter().all(|superblock| superblock.state == State::Orphaned), "{image}");
    let (restore, stage) = start_restore(&sandbox, &image, "")?;
    let name = stage.segment.context("no segment")?.name;
    let fixup = program("autofs-fixup").into_os_string();
    let options = MasterOptions::new().via([fixup, "--exec".into(), "--".into()]);
    let mut new = sandbox.master(options.env("AUTOFS_CR_SEGMENT", name).arg("--pipe-fd=3"))?;
    restore.finish().assert_success();
    sandbox.touch(sandbox.path("d"))?;
    sandbox.touch(sandbox.path("i/key"))?;
    new.assert_undisturbed();
    sandbox.close()
}

#[test]
fn with_keep_going_one_failure_does_not_keep_the_others() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _bad = sandbox.master(MasterOptions::new().direct("bad"))?;
    let mut good = sandbox.master(MasterOptions::new().direct("good"))?;
    let image = dump(&sandbox);
    make_catatonic(&sandbox, &image);
    let (restore, stage) = start_restore(&sandbox, &image, "--keep-going")?;
    let segment = Segment::open_address(stage.segment.as_ref().context("no segment")?)?;
    let bad = segment.superblocks().iter().position(|superblock| superblock.mount_point.ends_with("bad"));
    segment.advance(bad.context("not published")?, Progress::Failed(nix::errno::Errno::EIO))?;
    let fixup = Tool::fixup().arg("--pid").arg(good.pid().to_string()).stdin(stage_text(&stage));
    fixup.run().assert_success();
    let restored = restore.finish().assert_code(3);
    restored
        .assert_stderr_contains("bad was not connected: ")
        .assert_stderr_contains("what is connected was left");
    assert_eq!(segment.outcome()?, Outcome::Finished);
    sandbox.touch(sandbox.path("good"))?;
    good.assert_undisturbed();
    sandbox.close()
}

#[test]
fn a_master_runs_on_while_the_fixup_of_another_is_awaited() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let outer =
        MasterOptions::new().indirect("i").args(["--subdir=in", "--identity=device", "--control-fds"]);
    let mut outer = sandbox.master(outer)?;
    let inner =
        MasterOptions::new().offset(sandbox.path("i/in")).args(["--identity=device", "--control-fds"]);
    let mut inner = sandbox.master(inner)?;
    let image = dump(&sandbox);
    assert!(read(&image).superblocks.iter().all(|superblock| !superblock.control_fds.is_empty()), "{image}");
    let (restore, stage) = start_restore(&sandbox, &image, "--replace")?;
    let segment = Segment::open_address(stage.segment.as_ref().context("no segment")?)?;
    let fixup = |pid: Pid| Tool::fixup().arg("--pid").arg(pid.to_string()).stdin(stage_text(&stage));
    let first = fixup(outer.pid()).spawn();
    let index = segment.masters().iter().position(|master| master.pid == Some(outer.pid_inside()));
    let index = index.context("not published")?;
    let deadline = Instant::now() + DEADLINE;
    while !segment.is_claimed(index)? {
        anyhow::ensure!(Instant::now() < deadline, "no fixup came");
        segment.wait(segment.wake_value(), Duration::from_millis(5))?;
    }
    outer.report().context("it does not run")?;
    for index in 0..segment.superblocks().len() {
        assert_eq!(segment.progress(index)?, Progress::Pending);
    }
    fixup(inner.pid()).run().assert_success();
    first.finish().assert_success();
    restore.finish().assert_success().assert_stderr_contains("create 2");
    assert_eq!(lasting(&dump(&sandbox)).superblocks, lasting(&image).superblocks, "{image}");
    sandbox.touch(sandbox.path("i/in"))?;
    sandbox.touch(sandbox.path("i/other"))?;
    outer.assert_undisturbed();
    inner.assert_undisturbed();
    sandbox.close()
}
