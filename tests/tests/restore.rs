//! autofs-restore on the real kernel: each plan, what it keeps, and that it leaves no trace when it fails.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use autofs_cr_common::doc::Stage;
use autofs_cr_common::model::State;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::delegated::Delegated;
use autofs_cr_tests::sandbox::images::{dump, lasting, make_catatonic, read_image as read, start_restore};
use autofs_cr_tests::sandbox::{
    DEADLINE, Finished, Master, MasterOptions, Running, Sandbox, TestCommand, Tool, program,
};
use nix::sys::signal::Signal;

fn restore(sandbox: &Sandbox, image: &str) -> TestCommand {
    Tool::restore().target(sandbox).arg("--timeout=10").stdin(image)
}

/// Restores, and runs the fixups that are needed.
fn restore_and_fix(sandbox: &Sandbox, image: &str, arguments: &[&str]) -> (Finished, Finished) {
    let (restored, fixed) = restore(sandbox, image).args(arguments).pipe(Tool::fixup());
    (restored.assert_success(), fixed.assert_success())
}

/// The segment that a stage document names is gone.
#[track_caller]
fn assert_segment_is_gone(stage: &Stage) {
    let name = &stage.segment.as_ref().expect("a segment").name;
    assert!(!Path::new(&format!("/dev/shm{name}")).exists(), "{name} is left");
}

fn descriptors(master: &Master) -> BTreeSet<(String, String)> {
    let folder = format!("/proc/{}/fd", master.pid());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            (entry.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned())
        })
        .collect()
}

/// A master like systemd, with one mount touched and one not.
fn like_systemd(sandbox: &Sandbox) -> Result<Master> {
    let master =
        sandbox.master(MasterOptions::new().direct("a").direct("b").like_systemd().arg("--timeout=77"))?;
    sandbox.touch(sandbox.path("a"))?;
    Ok(master)
}

#[test]
fn what_is_there_and_connected_is_kept() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = like_systemd(&sandbox)?;
    let before = sandbox.mountinfo();
    let restored = restore(&sandbox, &dump(&sandbox)).run().assert_success();
    restored.assert_stderr_contains("keep 2").assert_stdout_contains("masters: []");
    assert_eq!(sandbox.mountinfo(), before);
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn a_replaced_mount_is_connected_from_its_first_instant_and_the_master_sees_no_hang_up() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = like_systemd(&sandbox)?;
    let image = dump(&sandbox);
    let open = descriptors(&master);
    let content = sandbox.read(sandbox.path("a/served-by"))?;
    let restored = restore(&sandbox, &image).arg("--replace").run().assert_success();
    restored.assert_stderr_contains("connect 2");
    assert_eq!(descriptors(&master), open);
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{image}");
    assert_eq!(sandbox.read(sandbox.path("a/served-by"))?, content, "the content was moved over");
    assert!(sandbox.read(sandbox.path("b/served-by"))?.starts_with(&master.pid_inside().to_string()));
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn an_open_file_on_content_stays_usable_while_the_mount_below_is_replaced() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let master = like_systemd(&sandbox)?;
    let mount_id = |line: &str| line.split(' ').next().map(str::to_owned);
    let content = |sandbox: &Sandbox| {
        sandbox.mountinfo().lines().find(|line| line.contains(" content ")).and_then(mount_id)
    };
    let before = content(&sandbox).context("no content is mounted")?;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(sandbox.outside(sandbox.path("a/open")))?;
    restore(&sandbox, &dump(&sandbox)).arg("--replace").run().assert_success();
    assert_eq!(content(&sandbox), Some(before), "the same mount is on the new superblock");
    std::io::Write::write_all(&mut &file, b"still here")?;
    assert_eq!(sandbox.read(sandbox.path("a/open"))?, "still here");
    drop((file, master));
    sandbox.close()
}

#[test]
fn a_catatonic_mount_is_adopted_in_place_and_serves_again() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("a").indirect("i").like_automount())?;
    let image = dump(&sandbox);
    make_catatonic(&sandbox, &image);
    assert!(read(&dump(&sandbox)).superblocks.iter().all(|superblock| superblock.state == State::Catatonic));
    let (restored, _) = restore_and_fix(&sandbox, &image, &[]);
    restored.assert_stderr_contains("adopt 2");
    assert_eq!(dump(&sandbox), image, "the superblocks themselves stayed");
    sandbox.touch(sandbox.path("a"))?;
    sandbox.touch(sandbox.path("i/key"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn mounts_with_directories_inside_are_replaced_by_way_of_the_fixup() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().indirect("i").arg("--subdir=browse").arg("--symlink=link=/nowhere");
    let mut master = sandbox.master(options.args([
        "--strictexpire",
        "--ignore",
        "--uid=5",
        "--gid=6",
        "--timeout=99",
        "--identity=device",
    ]))?;
    sandbox.touch(sandbox.path("i/key"))?;
    let image = dump(&sandbox);
    let (restored, _) = restore_and_fix(&sandbox, &image, &["--replace"]);
    restored.assert_stderr_contains("create 1");
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{image}");
    assert!(sandbox.read(sandbox.path("i/key/served-by"))?.ends_with(" 1\n"), "the content was moved over");
    sandbox.touch(sandbox.path("i/other"))?;
    sandbox.touch(sandbox.path("i/browse"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn what_was_mounted_after_the_dump_is_moved_over_too() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    for subdir in [None, Some("--subdir=browse")] {
        let sandbox = Sandbox::new()?;
        let options = MasterOptions::new().indirect("i").args(["--identity=device"]).args(subdir);
        let mut master = sandbox.master(options)?;
        let image = dump(&sandbox);
        sandbox.touch(sandbox.path("i/late"))?;
        restore_and_fix(&sandbox, &image, &["--replace"]);
        assert!(sandbox.read(sandbox.path("i/late/served-by"))?.ends_with(" 1\n"), "it was served once only");
        restore_and_fix(&sandbox, &dump(&sandbox), &["--replace"]);
        assert!(sandbox.read(sandbox.path("i/late/served-by"))?.ends_with(" 1\n"));
        sandbox.touch(sandbox.path("i/new"))?;
        master.assert_undisturbed();
        sandbox.close()?;
    }
    Ok(())
}

#[test]
fn control_fds_are_pointed_to_the_new_superblock() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().indirect("i").arg("--subdir=browse").args([
        "--control-fds",
        "--identity=device",
        "--wait=poll",
    ]);
    let mut master = sandbox.master(options)?;
    sandbox.touch(sandbox.path("i/key"))?;
    let image = dump(&sandbox);
    assert!(!read(&image).superblocks[0].control_fds.is_empty(), "{image}");
    let open = descriptors(&master);
    restore_and_fix(&sandbox, &image, &["--replace"]);
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{image}");
    assert_eq!(descriptors(&master), open);
    sandbox.touch(sandbox.path("i/other"))?;
    sandbox.touch(sandbox.path("i/browse"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn a_catatonic_mount_of_the_image_is_made_catatonic() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let master = like_systemd(&sandbox)?;
    let device = read(&dump(&sandbox)).superblocks[1].device.to_string();
    let place = sandbox.path("b");
    let place = place.to_string_lossy();
    sandbox.run([&program("autofs-probe").to_string_lossy(), "catatonic", &place, &device]).assert_success();
    let image = dump(&sandbox);
    sandbox.run(["umount", &place]).assert_success();
    restore(&sandbox, &image).run().assert_success().assert_stderr_contains("leave 1");
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{image}");
    drop(master);
    sandbox.close()
}

#[test]
fn device_numbers_are_kept_in_any_order_of_making() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    // It keeps its write ends, so that it sees no hang-up when a mount is unmounted by hand.
    let mut options =
        MasterOptions::new().args(["--pipes=each", "--nonblock", "--wait=epoll", "--identity=device"]);
    for number in 0..20 {
        options = options.direct(format!("m/{number:02}"));
    }
    let mut master = sandbox.master(options)?;
    let image = dump(&sandbox);
    for mount in read(&image).mounts.iter().step_by(3) {
        sandbox.run(["umount", &mount.mount_point.to_string()]).assert_success();
    }
    restore(&sandbox, &image).run().assert_success().assert_stderr_contains("keep 13, connect 7");
    assert_eq!(lasting(&dump(&sandbox)).superblocks, lasting(&image).superblocks, "{image}");
    restore(&sandbox, &image).arg("--replace").run().assert_success().assert_stderr_contains("connect 20");
    assert_eq!(lasting(&dump(&sandbox)).superblocks, lasting(&image).superblocks, "{image}");
    for number in 0..20 {
        sandbox.touch(sandbox.path(format!("m/{number:02}")))?;
    }
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn bind_mounts_and_mounts_inside_each_other_come_back_in_their_order() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().indirect("i").args(["--subdir=in", "--identity=device"]);
    let mut master = sandbox.master(options)?;
    let (other, inner) = (sandbox.mkdir("other")?, sandbox.path("i/in"));
    // A bind mount of the whole superblock, and an offset trigger inside of it.
    sandbox
        .run(["mount", "--bind", &sandbox.path("i").to_string_lossy(), &other.to_string_lossy()])
        .assert_success();
    let mut second = sandbox.master(MasterOptions::new().offset(&inner).like_systemd())?;
    let image = dump(&sandbox);
    assert_eq!(read(&image).mounts.len(), 3, "{image}");
    restore_and_fix(&sandbox, &image, &["--replace"]);
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{image}");
    sandbox.touch(&inner)?;
    sandbox.touch(sandbox.path("i/key"))?;
    master.assert_undisturbed();
    second.assert_undisturbed();
    sandbox.close()
}

#[test]
fn another_autofs_mount_in_the_way_is_an_error_without_replace() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _master = like_systemd(&sandbox)?;
    let device = read(&dump(&sandbox)).superblocks[1].device.to_string();
    let image = dump(&sandbox).replace(&format!("\"{device}\""), "\"0:199999\"");
    let before = sandbox.mountinfo();
    restore(&sandbox, &image).run().assert_code(1).assert_stderr_contains("use --replace");
    assert_eq!(sandbox.mountinfo(), before);
    sandbox.close()
}

/// Restores an image whose mounts are gone, so that it has to fail in some way, and checks that nothing
/// is left of it.
fn assert_leaves_no_trace(spoil: impl Fn(&Sandbox, &str) -> String, named: &str) -> Result<()> {
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("a").direct("b").like_systemd())?;
    let image = dump(&sandbox);
    sandbox.run(["umount", &sandbox.path("a").to_string_lossy()]).assert_success();
    sandbox.run(["umount", &sandbox.path("b").to_string_lossy()]).assert_success();
    let image = spoil(&sandbox, &image);
    let (before, open) = (sandbox.mountinfo(), descriptors(&master));
    restore(&sandbox, &image).run().assert_code(1).assert_stderr_contains(named);
    assert_eq!(sandbox.mountinfo(), before);
    assert_eq!(descriptors(&master), open);
    drop(master);
    sandbox.close()
}

#[test]
fn a_missing_mount_point_leaves_no_trace() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    assert_leaves_no_trace(
        |sandbox, image| {
            sandbox.run(["rmdir", &sandbox.path("b").to_string_lossy()]).assert_success();
            image.to_owned()
        },
        "/b does not exist",
    )
}

#[test]
fn a_device_number_that_a_mount_has_is_named_before_anything_is_done() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    assert_leaves_no_trace(
        |sandbox, image| {
            // The tmpfs that the sandbox works in.
            let line = sandbox.mount_line(sandbox.work()).expect("mounted");
            let device = line.split(' ').nth(2).expect("a device").to_owned();
            let first = read(image).superblocks[0].device.to_string();
            image.replace(&format!("\"{first}\""), &format!("\"{device}\""))
        },
        "is taken by",
    )
}

#[test]
fn a_device_number_that_is_taken_unseen_is_found_and_all_is_undone() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    // The device of a pipe's file system is in no mount table, and is as low as they come.
    let (read_end, _write_end) = nix::unistd::pipe()?;
    let device = rustix::fs::fstat(&read_end)?.st_dev;
    let device = autofs_cr_common::model::Device::from_stat(device);
    assert_leaves_no_trace(
        |_, image| {
            let second = read(image).superblocks[1].device.to_string();
            image.replace(&format!("\"{second}\""), &format!("\"{device}\""))
        },
        "taken by something else",
    )
}

#[test]
fn without_a_fixup_everything_is_undone_when_the_timeout_passes() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let master = like_systemd(&sandbox)?;
    let image = dump(&sandbox);
    sandbox.run(["umount", &sandbox.path("b").to_string_lossy()]).assert_success();
    let (before, open) = (sandbox.mountinfo(), descriptors(&master));
    let restored =
        Tool::restore().target(&sandbox).args(["--timeout=0.3", "--connect=fixup"]).stdin(&*image).run();
    restored
        .assert_code(1)
        .assert_stderr_contains("timeout passed")
        .assert_stderr_contains("everything was undone");
    assert_eq!(sandbox.mountinfo(), before);
    assert_eq!(descriptors(&master), open);
    drop(master);
    sandbox.close()
}

#[test]
fn a_replacement_whose_fixup_does_not_get_through_is_undone() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = like_systemd(&sandbox)?;
    sandbox.touch(sandbox.path("a"))?;
    let image = dump(&sandbox);
    // A stopped process cannot run the calls that connect it.
    master.process().signal(Signal::SIGSTOP)?;
    let restore = restore(&sandbox, &image).args(["--replace", "--connect=fixup"]);
    let (restored, fixed) = restore.pipe(Tool::fixup());
    fixed.assert_code(1).assert_stderr_contains("kill -CONT");
    restored.assert_code(1).assert_stderr_contains("undone");
    master.process().signal(Signal::SIGCONT)?;
    let after = read(&dump(&sandbox));
    let b = sandbox.path("b").to_string_lossy().into_owned();
    let device =
        after.mounts.iter().find(|mount| mount.mount_point.to_string() == b).context("b is gone")?.device;
    let superblock = after.superblocks.iter().find(|superblock| superblock.device == device);
    assert_eq!(superblock.map(|superblock| superblock.state), Some(State::Connected));
    sandbox.touch(sandbox.path("b"))?;
    assert!(sandbox.read(sandbox.path("a/served-by"))?.ends_with(" 1\n"), "content stays");
    sandbox.close()
}

#[test]
fn sigint_and_sigterm_undo_everything() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let sandbox = Sandbox::new()?;
        let master = like_systemd(&sandbox)?;
        let image = dump(&sandbox);
        sandbox.run(["umount", &sandbox.path("b").to_string_lossy()]).assert_success();
        let before = sandbox.mountinfo();
        let (mut running, stage) = start_restore(&sandbox, &image, "--connect=fixup")?;
        running.process().signal(signal)?;
        running.finish().assert_code(1).assert_stderr_contains("everything was undone");
        assert_eq!(sandbox.mountinfo(), before, "{signal}");
        assert_segment_is_gone(&stage);
        drop(master);
        sandbox.close()?;
    }
    Ok(())
}

#[test]
fn a_signal_to_the_whole_process_group_undoes_everything() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    // As Ctrl-C in a terminal, and timeout(1).
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let sandbox = Sandbox::new()?;
        let master = like_systemd(&sandbox)?;
        let image = dump(&sandbox);
        sandbox.run(["umount", &sandbox.path("b").to_string_lossy()]).assert_success();
        let before = sandbox.mountinfo();
        let (mut running, stage) = start_restore(&sandbox, &image, "--connect=fixup")?;
        // It leads its group.
        nix::sys::signal::killpg(running.process().pid().to_nix(), signal)?;
        running.finish().assert_code(1).assert_stderr_contains("everything was undone");
        assert_eq!(sandbox.mountinfo(), before, "{signal}");
        assert_segment_is_gone(&stage);
        drop(master);
        sandbox.close()?;
    }
    Ok(())
}

#[test]
fn a_dry_run_prints_the_plan_and_changes_nothing() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _master = like_systemd(&sandbox)?;
    let before = sandbox.mountinfo();
    let printed = restore(&sandbox, &dump(&sandbox)).args(["--replace", "-n"]).run().assert_success();
    printed.assert_stdout_contains("connect").assert_stdout_contains("moves 1 mount over");
    assert_eq!(sandbox.mountinfo(), before);
    sandbox.close()
}

#[test]
fn replacing_what_a_master_knows_by_its_inode_is_refused_before_anything_is_done() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _master = like_systemd(&sandbox)?;
    let before = sandbox.mountinfo();
    let restored = restore(&sandbox, &dump(&sandbox)).args(["--replace", "--identity=inode"]).run();
    restored.assert_code(1).assert_stderr_contains("compares the inode number");
    assert_eq!(sandbox.mountinfo(), before);
    sandbox.close()
}

#[test]
fn bad_input_is_named() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _master = like_systemd(&sandbox)?;
    let image = dump(&sandbox);
    let before = sandbox.mountinfo();
    let cut = &image[..image.len() / 2];
    for (text, named) in [
        ("", "is empty"),
        (cut, "cut off"),
        (&image.replace("image/1", "image/9"), "version 9"),
        (&image.replace("image/1", "report/1"), "autofs-dump writes one"),
        (&image.replace("timeout", "timeuot"), "timeuot"),
        (&image.replace("timeout: 77", "timeout: many"), "timeout"),
        (&image.replace(&*sandbox.path("b").to_string_lossy(), "/../b"), "is not absolute and plain"),
    ] {
        restore(&sandbox, text).run().assert_code(1).assert_stderr_contains(named);
    }
    let nobody = Tool::restore().arg("--pid=2147483647").stdin(&*image).run();
    nobody.assert_code(1).assert_stderr_contains("process 2147483647 does not exist");
    restore(&sandbox, &image).arg("--what").run().assert_code(2);
    Tool::restore().args(["--pid=0"]).run().assert_code(2).assert_stderr_contains("no process id");
    assert_eq!(sandbox.mountinfo(), before);
    sandbox.close()
}

#[test]
fn without_the_control_device_nothing_is_done() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _master = like_systemd(&sandbox)?;
    let image = dump(&sandbox);
    for (hide, cause) in [
        ("mount -t tmpfs none /dev", "No such file"),
        ("mount --bind /dev/null /dev/autofs", "Inappropriate ioctl"),
    ] {
        let script =
            format!("{hide} && exec {} --replace -p {}", program("autofs-restore").display(), sandbox.pid());
        let restored =
            TestCommand::new("unshare").args(["--mount", "sh", "-c", &script]).stdin(&*image).run();
        restored.assert_code(1).assert_stderr_contains("/dev/autofs").assert_stderr_contains(cause);
    }
    sandbox.close()
}

#[test]
fn another_user_is_told_what_is_missing() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _master = like_systemd(&sandbox)?;
    let image = dump(&sandbox);
    let restored = restore(&sandbox, &image).user(65534).run().assert_code(1);
    restored.assert_stderr_contains("CAP_SYS_ADMIN");
    Tool::restore().stdin(&*image).user(65534).run().assert_code(1).assert_stderr_contains("CAP_SYS_ADMIN");
    sandbox.close()
}

/// A shell in the sandbox that is somewhere, or has something, until it is dropped: started by the words
/// before it, and after a command.
fn holder(sandbox: &Sandbox, words: &[&str], command: &str) -> Result<Running> {
    let ready = sandbox.path("holder");
    nix::unistd::mkfifo(
        &sandbox.outside(&ready),
        nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
    )?;
    let script = format!("{command}; echo > {} && exec sleep 1000", ready.display());
    let words = words.iter().copied().chain(["sh", "-c", &script]);
    let running = sandbox.command("env").args(words).spawn();
    fs::read(sandbox.outside(&ready))?;
    Ok(running)
}

#[test]
fn a_mount_that_is_in_use_is_not_replaced() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().indirect("i").args(["--subdir=in", "--identity=device"]);
    let mut master = sandbox.master(options)?;
    sandbox.touch(sandbox.path("i/key"))?;
    let image = dump(&sandbox);
    let _holder = holder(&sandbox, &[], &format!("cd {}", sandbox.path("i").display()))?;
    let before = sandbox.mountinfo();
    let (restored, fixed) = restore(&sandbox, &image).arg("--replace").pipe(Tool::fixup());
    restored
        .assert_code(1)
        .assert_stderr_contains("it is in use")
        .assert_stderr_contains("everything was undone");
    fixed.assert_code(1);
    assert_eq!(sandbox.mountinfo(), before);
    assert!(sandbox.read(sandbox.path("i/key/served-by"))?.ends_with(" 1\n"), "content went back");
    sandbox.touch(sandbox.path("i/other"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn a_copy_in_another_mount_namespace_is_named_before_anything_is_done() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = like_systemd(&sandbox)?;
    let _holder = holder(&sandbox, &["unshare", "--mount", "--propagation", "private"], "true")?;
    let image = dump(&sandbox);
    let before = sandbox.mountinfo();
    let restored = restore(&sandbox, &image).arg("--replace").run();
    restored.assert_code(1).assert_stderr_contains("shows it too");
    assert_eq!(sandbox.mountinfo(), before);
    sandbox.touch(sandbox.path("b"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn bind_mounts_keep_their_own_options() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().indirect("i").like_systemd())?;
    let other = sandbox.mkdir("other")?.to_string_lossy().into_owned();
    let place = sandbox.path("i").to_string_lossy().into_owned();
    sandbox.run(["mount", "--bind", &place, &other]).assert_success();
    sandbox.run(["mount", "-o", "remount,bind,nosuid,noexec", &place]).assert_success();
    let image = dump(&sandbox);
    restore(&sandbox, &image).arg("--replace").run().assert_success();
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{image}");
    assert!(image.contains("nosuid,noexec"), "{image}");
    sandbox.touch(sandbox.path("i/key"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn what_a_killed_restore_parked_is_moved_back_by_the_next() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("a").args(["--identity=device"]))?;
    sandbox.touch(sandbox.path("a"))?;
    let image = dump(&sandbox);
    let (place, parking) = (sandbox.path("a"), sandbox.mkdir("parking")?);
    let (place, parking) = (place.to_string_lossy(), parking.to_string_lossy());
    // As restore leaves it when it is killed between the old superblock and the new one.
    let parked = format!(
        "mount -t tmpfs autofs-cr-parking {parking} && mkdir {parking}/0 && ln -s {place} {parking}/0.was-at &&
         mount --move {place} {parking}/0 && umount {place}"
    );
    sandbox.run(["sh", "-c", &parked]).assert_success();
    let restored = restore(&sandbox, &image).run().assert_success();
    restored.assert_stderr_contains("is moved back").assert_stderr_contains("connect 1");
    assert!(sandbox.read(sandbox.path("a/served-by"))?.ends_with(" 1\n"));
    assert!(!sandbox.outside(&*parking).exists(), "the place is gone");
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{image}");
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn a_mount_of_another_living_master_is_not_adopted() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("a"))?;
    let image = dump(&sandbox).replace("inode: ", "inode: 9").replace("pipe: ", "pipe: 9");
    let id = read(&image).masters[0].id.clone();
    let image = image.replace(&id, "other-77").replace("pid: 2", "pid: 77");
    let restored = restore(&sandbox, &image).run();
    restored.assert_code(1).assert_stderr_contains("is served by");
    sandbox.close()
}

#[test]
fn a_timeout_that_was_adopted_is_set_back_when_no_fixup_comes() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("a").arg("--timeout=77"))?;
    let image = dump(&sandbox);
    make_catatonic(&sandbox, &image);
    let before = sandbox.mountinfo();
    let image = image.replace("timeout: 77", "timeout: 44");
    let restored = Tool::restore().target(&sandbox).arg("--timeout=0.3").stdin(image).run();
    restored.assert_code(1).assert_stderr_contains("everything was undone");
    assert_eq!(sandbox.mountinfo(), before);
    sandbox.close()
}

#[test]
fn directories_get_their_modes_whatever_the_umask() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master =
        sandbox.master(MasterOptions::new().indirect("i").args(["--subdir=in", "--identity=device"]))?;
    let image = dump(&sandbox);
    let script = format!("umask 077; exec {} --replace \"$@\"", program("autofs-restore").display());
    let restore = TestCommand::new("sh").args(["-c", &script, "sh"]).target(&sandbox).stdin(&*image);
    let (restored, fixed) = restore.pipe(Tool::fixup());
    restored.assert_success().assert_stderr_contains("create 1");
    fixed.assert_success();
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{image}");
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn a_step_that_takes_longer_than_a_short_timeout_is_waited_for() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("a").like_systemd())?;
    let image = dump(&sandbox);
    sandbox.run(["umount", &sandbox.path("a").to_string_lossy()]).assert_success();
    // Taken unseen, which is waited for longer than the timeout.
    let (read_end, _write_end) = nix::unistd::pipe()?;
    let device = autofs_cr_common::model::Device::from_stat(rustix::fs::fstat(&read_end)?.st_dev);
    let image = image.replace(&read(&image).superblocks[0].device.to_string(), &device.to_string());
    let restored = Tool::restore().target(&sandbox).arg("--timeout=0.2").stdin(image).run();
    restored.assert_code(1).assert_stderr_contains("taken by something else");
    sandbox.close()
}

/// Many mounts that are gone, their master, and their image.
fn many(sandbox: &Sandbox, count: usize) -> Result<(Master, String)> {
    let mut options = MasterOptions::new().args(["--write-end=keep", "--wait=poll", "--identity=device"]);
    for number in 0..count {
        options = options.direct(format!("m/{number:03}"));
    }
    let master = sandbox.master(options)?;
    let image = dump(sandbox);
    let umount = format!("umount {}/*", sandbox.path("m").display());
    sandbox.run(["sh", "-c", &umount]).assert_success();
    Ok((master, image))
}

#[test]
fn more_mounts_than_one_order_are_made_and_undone() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let (mut master, image) = many(&sandbox, 600)?;
    let before = sandbox.mountinfo();
    let (mut running, _stage) = start_restore(&sandbox, &image, "--connect=fixup")?;
    running.process().signal(Signal::SIGTERM)?;
    running.finish().assert_code(1).assert_stderr_contains("everything was undone");
    assert_eq!(sandbox.mountinfo(), before);
    restore(&sandbox, &image).run().assert_success().assert_stderr_contains("connect 600");
    assert_eq!(lasting(&dump(&sandbox)).superblocks, lasting(&image).superblocks);
    sandbox.touch(sandbox.path("m/599"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn a_signal_while_all_is_connected_at_once_undoes_it() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let (mut master, image) = many(&sandbox, 3)?;
    let path = sandbox.outside(sandbox.path("image"));
    fs::write(&path, image)?;
    let before = sandbox.mountinfo();
    // A full pipe: restore has mounted all when it waits for room for the stage document.
    let (read_end, write_end) = nix::unistd::pipe()?;
    let mut full = fs::File::from(write_end);
    rustix::fs::fcntl_setfl(&full, rustix::fs::OFlags::NONBLOCK)?;
    while std::io::Write::write(&mut full, &[0; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&full, rustix::fs::OFlags::empty())?;
    let mut command = std::process::Command::new(program("autofs-restore"));
    command.arg("-p").arg(sandbox.pid().to_string()).arg("-i").arg(&path);
    let mut running = command.stdout(full).stderr(std::process::Stdio::piped()).spawn()?;
    drop(command);
    let deadline = std::time::Instant::now() + DEADLINE;
    while sandbox.mountinfo().matches(" autofs ").count() < before.matches(" autofs ").count() + 3 {
        anyhow::ensure!(running.try_wait()?.is_none() && std::time::Instant::now() < deadline, "not mounted");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.id() as i32), Signal::SIGINT)?;
    std::io::copy(&mut fs::File::from(read_end), &mut std::io::sink())?;
    let finished = running.wait_with_output()?;
    let told = String::from_utf8_lossy(&finished.stderr);
    assert_eq!(finished.status.code(), Some(1), "{told}");
    assert!(told.contains("everything was undone: ended by signal 2"), "{told}");
    assert_eq!(sandbox.mountinfo(), before);
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn keep_going_is_ended_by_a_signal_too() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let (_master, image) = many(&sandbox, 2)?;
    let before = sandbox.mountinfo();
    let (mut running, _stage) = start_restore(&sandbox, &image, "--connect=fixup --keep-going")?;
    running.process().signal(Signal::SIGINT)?;
    running.finish().assert_code(1).assert_stderr_contains("everything was undone: ended by signal 2");
    assert_eq!(sandbox.mountinfo(), before);
    sandbox.close()
}

#[test]
fn what_was_parked_comes_back_onto_a_mount_that_is_kept() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("a").args(["--identity=device"]))?;
    sandbox.touch(sandbox.path("a"))?;
    let image = dump(&sandbox);
    let (place, parking) = (sandbox.path("a"), sandbox.mkdir("parking")?);
    let (place, parking) = (place.to_string_lossy(), parking.to_string_lossy());
    // As restore leaves it when it is killed before it moves content onto the new superblock.
    let parked = format!(
        "mount -t tmpfs autofs-cr-parking {parking} && mkdir {parking}/0 && ln -s {place} {parking}/0.was-at &&
         mount --move {place} {parking}/0"
    );
    sandbox.run(["sh", "-c", &parked]).assert_success();
    let restored = restore(&sandbox, &image).run().assert_success();
    restored.assert_stderr_contains("is moved back").assert_stderr_contains("keep 1");
    assert!(sandbox.read(sandbox.path("a/served-by"))?.ends_with(" 1\n"), "it was served once only");
    assert!(!sandbox.outside(&*parking).exists(), "the place is gone");
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn a_delegated_mount_is_made_anew_with_its_group_and_never_adopted() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut reader = sandbox.master(MasterOptions::new().direct("own"))?;
    let Delegated { place, mut group } = Delegated::start(&sandbox, &mut reader, false)?;
    let leader = group.process().pid_inside()?;
    let image = Tool::dump().target(&sandbox).arg(&place).run().assert_success().stdout;
    let superblock = read(&image).superblocks.remove(0);
    assert_eq!((superblock.state, superblock.pgrp), (State::Delegated, Some(leader)));
    let line = sandbox.mount_line(&place).context("it is there")?;

    let restored = Tool::restore().target(&sandbox).arg("--replace").stdin(&*image).run();
    restored.assert_success().assert_stderr_contains("connect 1");
    let again = Tool::dump().target(&sandbox).arg(&place).run().assert_success().stdout;
    assert_eq!(lasting(&again), lasting(&image));
    assert_ne!(sandbox.mount_line(&place).context("it is there")?, line, "it is another mount");

    make_catatonic(&sandbox, &image);
    let before = sandbox.mountinfo();
    let refused = restore(&sandbox, &image).run().assert_code(1);
    refused
        .assert_stderr_contains("is delegated")
        .assert_stderr_contains(&format!("its process group is {leader}"));
    assert_eq!(sandbox.mountinfo(), before);
    reader.assert_undisturbed();
    sandbox.close()
}

#[test]
fn what_a_killed_restore_covered_is_uncovered_by_the_next() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    for arguments in [&[][..], &["--replace"]] {
        let sandbox = Sandbox::new()?;
        let mut master = sandbox.master(MasterOptions::new().direct("a").args(["--identity=device"]))?;
        sandbox.touch(sandbox.path("a"))?;
        let content = sandbox.mount_line(sandbox.path("a")).context("it is there")?;
        let image = dump(&sandbox);
        let (place, parking) = (sandbox.path("a"), sandbox.mkdir("parking")?);
        let (place, parking) = (place.to_string_lossy(), parking.to_string_lossy());
        // As restore leaves it when it is killed while the old superblock is there still.
        let probe = program("autofs-probe").display().to_string();
        let covered = format!(
            "mount -t tmpfs autofs-cr-parking {parking} && cd {parking} && mkdir 0 cover && ln -s {place} 0.was-at &&
             {probe} beneath cover {place} && mount --move {place} 0"
        );
        sandbox.run(["sh", "-c", &covered]).assert_success();
        sandbox.read(sandbox.path("a/served-by")).expect_err("an empty directory is there");

        let restored = Tool::restore().target(&sandbox).args(arguments).stdin(&*image).run().assert_success();
        restored.assert_stderr_contains("is moved back");
        let id = |line: &str| line.split(' ').next().map(str::to_owned);
        let mounts = sandbox.mountinfo();
        let here = mounts.lines().filter(|line| line.split(' ').nth(4) == Some(&*place));
        let others: Vec<_> = here.filter(|line| !line.contains(" - autofs ")).map(id).collect();
        assert_eq!(others, [id(&content)], "{mounts}");
        assert!(!mounts.contains("autofs-cr-parking"), "{mounts}");
        assert!(sandbox.read(sandbox.path("a/served-by"))?.ends_with(" 1\n"));
        assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{image}");
        master.assert_undisturbed();
        sandbox.close()?;
    }
    Ok(())
}

#[test]
fn a_restore_that_is_killed_at_any_instant_is_finished_by_the_next() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    // One that is killed can leave a segment until some later one, and an empty directory: not on the machine.
    let sandbox = Sandbox::builder().shm().build()?;
    sandbox.run(["mount", "-t", "tmpfs", "run", "/run"]).assert_success();
    let options = MasterOptions::new().indirect("i").arg("--identity=device");
    let mut master = sandbox.master(options)?;
    // This one has no write end of its own, and must never see a hang-up.
    let mut other = like_systemd(&sandbox)?;
    for name in ["a", "i/key", "i/other"] {
        sandbox.touch(sandbox.path(name))?;
    }
    let content = || -> BTreeSet<(String, String)> {
        let mounts = sandbox.mountinfo();
        let lines = mounts.lines().filter(|line| line.contains(" - tmpfs ") || line.contains("parking"));
        lines
            .filter_map(|line| Some((line.split(' ').next()?.into(), line.split(' ').nth(4)?.into())))
            .collect()
    };
    let (image, before) = (dump(&sandbox), content());
    for step in 0..40 {
        let restore = || Tool::restore().inside(&sandbox).arg("--replace").stdin(&*image);
        let fixup = || Tool::fixup().inside(&sandbox);
        let (mut running, connecting) = restore().spawn_pipe(fixup());
        // Not a wait for something: each instant shall be met by some of the rounds.
        std::thread::sleep(Duration::from_micros(700 * step));
        running.process().kill()?;
        let (killed, fixed) = (running.finish(), connecting.finish());
        let (restored, connected) = restore().pipe(fixup());
        let (restored, connected) = (restored.assert_success(), connected.assert_success());
        assert_eq!(content(), before, "round {step}: {killed}{fixed}{restored}{connected}");
    }
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{image}");
    for name in ["a", "b", "i/key", "i/new"] {
        sandbox.touch(sandbox.path(name))?;
    }
    sandbox.assert_nothing_blocked();
    other.assert_undisturbed();
    master.report()?;
    sandbox.close()
}
