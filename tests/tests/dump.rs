//! autofs-dump on the real kernel.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use autofs_cr_common::doc::image::{Directory, End, Image, Master as ImageMaster, Mode, Mount, Superblock};
use autofs_cr_common::doc::report::{RequestKind, Within};
use autofs_cr_common::doc::{self};
use autofs_cr_common::masters::MasterKind;
use autofs_cr_common::model::{FdFlags, MountType, Pid, State};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{Finished, MasterOptions, Sandbox, TestCommand, Tool, program};

/// The image of a sandbox, asked for from outside.
#[track_caller]
fn dump(sandbox: &Sandbox) -> Image {
    image(&Tool::dump().target(sandbox).run().assert_success())
}

#[track_caller]
fn image(run: &Finished) -> Image {
    doc::parse(run.stdout.as_bytes(), "the image").expect("a valid image")
}

#[track_caller]
fn mount<'a>(image: &'a Image, sandbox: &Sandbox, name: &str) -> &'a Mount {
    let place = sandbox.path(name);
    image.mounts.iter().find(|mount| *mount.mount_point == *place).expect("the mount is there")
}

#[track_caller]
fn superblock<'a>(image: &'a Image, sandbox: &Sandbox, name: &str) -> &'a Superblock {
    let device = mount(image, sandbox, name).device;
    image.superblocks.iter().find(|superblock| superblock.device == device).expect("its superblock")
}

#[track_caller]
fn master_of<'a>(image: &'a Image, superblock: &Superblock) -> &'a ImageMaster {
    image.master(superblock.master.as_ref().expect("a master")).expect("the master is there")
}

fn probe(sandbox: &Sandbox, words: &[&str]) -> Finished {
    sandbox.command(program("autofs-probe")).args(words).run()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Runs a shell script inside.
#[track_caller]
fn sh(sandbox: &Sandbox, script: &str) -> String {
    let work = text(sandbox.work());
    sandbox.run(["sh", "-c", &format!("set -e; cd {work}; {script}")]).assert_success().stdout
}

#[test]
fn all_options_of_a_superblock_are_in_the_image() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let options = ["--timeout=77", "--uid=5", "--gid=6", "--strictexpire", "--ignore", "--minproto=4"];
    let _master = sandbox.master(MasterOptions::new().direct("d").offset("o").args(options))?;
    let _other = sandbox.master(MasterOptions::new().indirect("i").arg("--timeout=0"))?;
    let image = dump(&sandbox);
    for (name, kind) in [("d", MountType::Direct), ("o", MountType::Offset)] {
        let options = &superblock(&image, &sandbox, name).options;
        assert_eq!((options.mount_type, options.timeout), (kind, 77));
        assert_eq!((options.minproto, options.maxproto, options.uid, options.gid), (4, 5, 5, 6));
        assert!(options.strictexpire && options.ignore);
    }
    let options = &superblock(&image, &sandbox, "i").options;
    assert_eq!((options.mount_type, options.timeout, options.minproto), (MountType::Indirect, 0, 5));
    assert!(!options.strictexpire && !options.ignore);
    Ok(())
}

#[test]
fn flags_and_propagation_of_the_mounts_are_in_the_image() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().indirect("i").indirect("plain").indirect("u"))?;
    sh(&sandbox, "mount -o remount,bind,nosuid,noexec,noatime i; mount --make-unbindable u");
    sh(&sandbox, "mount --make-shared i; mkdir peer slave; mount --bind i peer");
    sh(&sandbox, "mount --bind i slave; mount --make-slave slave; mount --make-shared slave");
    let image = dump(&sandbox);
    let shown = |name: &str| mount(&image, &sandbox, name).propagation.to_string();
    assert_eq!(mount(&image, &sandbox, "i").options, "rw,nosuid,noexec,noatime");
    assert_eq!((shown("plain"), shown("u")), ("private".into(), "unbindable".into()));
    // The numbers count from 1 in the order of the list, which goes by path.
    assert_eq!(
        (shown("i"), shown("peer"), shown("slave")),
        ("shared:1".into(), "shared:1".into(), "shared:2,slave:1".into())
    );
    assert_eq!(superblock(&image, &sandbox, "peer").device, superblock(&image, &sandbox, "i").device);
    Ok(())
}

#[test]
fn mounts_come_in_the_order_in_which_they_have_to_be_made() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    // The inner one is made first, at a place from which it is moved into the outer one's content.
    let _inner = sandbox.master(MasterOptions::new().indirect("inner"))?;
    let _outer = sandbox.master(MasterOptions::new().direct("outer"))?;
    sandbox.touch(sandbox.path("outer"))?;
    sh(&sandbox, "mkdir outer/deep; mount --move inner outer/deep");
    let over = sandbox.master(MasterOptions::new().indirect("twice"))?;
    let again = sandbox.master(MasterOptions::new().indirect("twice"))?;
    let image = dump(&sandbox);
    let order: Vec<(String, Within, bool)> = image
        .mounts
        .iter()
        .map(|mount| {
            (text(mount.mount_point.strip_prefix(sandbox.work()).expect("in it")), mount.within, mount.covers)
        })
        .collect();
    let expected = [
        ("outer", Within::Other, false),
        ("twice", Within::Other, false),
        ("twice", Within::Autofs, true),
        ("outer/deep", Within::Content, false),
    ];
    assert_eq!(order, expected.map(|(name, within, covers)| (name.to_owned(), within, covers)));
    let pids: Vec<_> = image.mounts[1..3]
        .iter()
        .filter_map(|mount| image.superblocks.iter().find(|superblock| superblock.device == mount.device))
        .map(|superblock| master_of(&image, superblock).pid)
        .collect();
    assert_eq!(pids, [Some(over.pid_inside()), Some(again.pid_inside())]);
    Ok(())
}

#[test]
fn directories_and_symlinks_are_read_and_no_mount_is_started() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().indirect("i").direct("d").direct("full");
    let mut master = sandbox.master(options.args([
        "--subdir=empty",
        "--subdir=covered",
        "--subdir=a name",
        "--symlink=link=/etc/a b",
    ]))?;
    sandbox.touch(sandbox.path("i/covered"))?;
    sandbox.touch(sandbox.path("i/made"))?;
    sandbox.touch(sandbox.path("full"))?;
    let image = dump(&sandbox);
    let inside = superblock(&image, &sandbox, "i");
    let paths: Vec<String> = inside.directories.iter().map(|directory| directory.path.to_string()).collect();
    assert_eq!(paths, ["a name", "covered", "empty", "made"]);
    let links: Vec<(String, String)> =
        inside.symlinks.iter().map(|link| (link.path.to_string(), link.target.to_string())).collect();
    assert_eq!(links, [("link".to_owned(), "/etc/a b".to_owned())]);
    let mode = |path: &str| -> Option<Mode> {
        inside
            .directories
            .iter()
            .find(|directory| *directory.path == *Path::new(path))
            .map(|found| found.mode)
    };
    assert_eq!(mode("empty"), mode("a name"));
    assert_eq!(mode("covered"), Some(Mode(0o555)));
    let known = master.report()?;
    for mount in &known.mounts {
        let name = text(mount.path.strip_prefix(sandbox.work())?);
        assert_eq!(superblock(&image, &sandbox, &name).inode, Some(mount.inode), "{name}");
    }
    assert_eq!(known.counters.served, 3, "the three touches");
    master.assert_undisturbed();
    Ok(())
}

#[test]
fn directories_below_directories_are_read_and_those_under_mounts_inferred() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().indirect("i").offset("i/key/sub/off");
    let mut master = sandbox.master(options)?;
    let before = master.report()?.counters;
    let image = dump(&sandbox);
    let inside = superblock(&image, &sandbox, "i");
    let paths: Vec<String> = inside.directories.iter().map(|directory| directory.path.to_string()).collect();
    assert_eq!(paths, ["key", "key/sub", "key/sub/off"]);
    let offset = mount(&image, &sandbox, "i/key/sub/off");
    assert_eq!((offset.within, offset.covers), (Within::Autofs, false));
    assert_eq!(master.report()?.counters, before);

    // With something mounted on the key, only the mount below it tells of the directories.
    sh(&sandbox, "mount -t tmpfs cover i/key");
    let run = Tool::dump().target(&sandbox).run().assert_code(1);
    run.assert_stderr_contains("hides it, so that no path leads to it");
    Ok(())
}

#[test]
fn masters_have_the_ids_of_their_own_pid_namespace() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let systemd_like =
        sandbox.master(MasterOptions::new().direct("s1").direct("s2").like_systemd().arg("--read-fd=40"))?;
    let mut keeper = sandbox.master(MasterOptions::new().direct("k").indirect("ki").arg("--control-fds"))?;
    let image = dump(&sandbox);
    assert_eq!(image.masters.len(), 2);

    let master = master_of(&image, superblock(&image, &sandbox, "s1"));
    let pid = systemd_like.pid_inside();
    assert_eq!((master.pid, master.pgrp), (Some(pid), Some(pid)));
    assert_eq!((master.id.as_str(), master.kind), (&*format!("reference-maste-{pid}"), MasterKind::Unknown));
    assert_eq!(master.pipes.len(), 2);
    for pipe in &master.pipes {
        let read_end = pipe.read_end.context("a read end")?;
        assert!(read_end.fd >= 40 && read_end.flags.nonblock, "{read_end:?}");
        assert_eq!(pipe.write_end, None);
    }

    let report = keeper.report()?;
    let inside = superblock(&image, &sandbox, "k");
    let master = master_of(&image, inside);
    let [pipe] = master.pipes.as_slice() else { panic!("one pipe: {:?}", master.pipes) };
    let read_end = pipe.read_end.context("a read end")?;
    assert_eq!((read_end.fd, read_end.flags.nonblock), (report.mounts[0].read_fd, false));
    let write_end = pipe.write_end.context("a write end")?;
    let option = format!("fd={}", write_end.fd);
    let line = sandbox.mount_line(sandbox.path("k")).context("the mount")?;
    assert!(line.split([',', ' ']).any(|word| word == option), "{option} is not in {line}");
    for mount in &report.mounts {
        let name = text(mount.path.strip_prefix(sandbox.work())?);
        let [End { fd, .. }] = superblock(&image, &sandbox, &name).control_fds[..] else {
            panic!("one control fd")
        };
        assert_eq!(Some(fd), mount.control_fd);
    }

    // From inside it is the same image.
    let inside = image_text(&Tool::dump().inside(&sandbox).run());
    assert_eq!(inside, image_text(&Tool::dump().target(&sandbox).run()));
    Ok(())
}

#[track_caller]
fn image_text(run: &Finished) -> String {
    assert!(run.end == Some(autofs_cr_tests::sandbox::End::Exit(0)), "{run}");
    run.stdout.clone()
}

#[test]
fn a_dead_master_is_named_by_its_group_in_its_own_numbers() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d"))?;
    let (outer, inner) = (master.pid(), master.pid_inside());
    assert_ne!(outer, inner);
    let before = dump(&sandbox);
    let write_end = master_of(&before, superblock(&before, &sandbox, "d")).pipes[0].write_end;
    master.kill()?;
    let image = dump(&sandbox);
    let inside = superblock(&image, &sandbox, "d");
    assert_eq!((inside.state, inside.pgrp), (State::Orphaned, None));
    let master = master_of(&image, inside);
    assert_eq!(master.id, format!("pgrp-{inner}"));
    assert_eq!((master.pid, master.pgrp), (None, Some(inner)));
    assert_eq!(master.pipes[0].read_end, None);
    assert_eq!(master.pipes[0].write_end.map(|end| end.fd), write_end.map(|end| end.fd));
    assert_eq!(master.pipes[0].write_end.map(|end| end.flags), Some(FdFlags::default()));
    assert_eq!(
        image_text(&Tool::dump().inside(&sandbox).run()),
        image_text(&Tool::dump().target(&sandbox).run())
    );
    Ok(())
}

#[test]
fn a_delegated_mount_keeps_its_group() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d"))?;
    let (read_fd, pid) = (master.report()?.mounts[0].read_fd, master.pid_inside());
    let script = format!("exec 7</proc/{pid}/fd/{read_fd}; : >holds; exec sleep 1000");
    let _holder = sandbox
        .command("setsid")
        .args(["sh", "-c", &format!("cd {}; {script}", text(sandbox.work()))])
        .spawn();
    sh(&sandbox, "until [ -e holds ]; do sleep 0.01; done");
    master.kill()?;
    let image = dump(&sandbox);
    let inside = superblock(&image, &sandbox, "d");
    assert_eq!((inside.state, inside.pgrp), (State::Delegated, Some(pid)));
    let master = master_of(&image, inside);
    assert_eq!(master.command.as_bytes(), b"sleep");
    assert_eq!(master.pipes[0].read_end, Some(End { fd: 7, flags: FdFlags::default() }));
    Ok(())
}

#[test]
fn a_catatonic_mount_has_no_master_and_keeps_its_contents() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().indirect("i").arg("--subdir=sub"))?;
    let known = master.report()?.mounts.remove(0);
    probe(&sandbox, &["catatonic", &text(&known.path), &known.device]).assert_success();
    let image = dump(&sandbox);
    let inside = superblock(&image, &sandbox, "i");
    assert_eq!((inside.state, &inside.master, inside.pipe), (State::Catatonic, &None, None));
    assert_eq!(inside.inode, Some(known.inode));
    let paths: Vec<&Directory> = inside.directories.iter().collect();
    assert_eq!(paths.iter().map(|directory| directory.path.to_string()).collect::<Vec<_>>(), ["sub"]);
    assert_eq!(image.masters.len(), 0);
    Ok(())
}

#[test]
fn unread_requests_are_copied_and_not_consumed() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().direct("d").indirect("i").arg("--ignore-requests").arg("--subdir=key");
    let mut master = sandbox.master(options)?;
    let known = master.report()?.mounts;
    let mut touches = ["i/key", "i/other", "d"].map(|name| sandbox.touch_in_background(sandbox.path(name)));
    for touch in &mut touches {
        touch.wait_until_blocked();
    }
    let run = Tool::dump().target(&sandbox).run().assert_success();
    assert_eq!(run.stderr, "", "what waits is not walked to, so nothing has to time out");
    let image = image(&run);
    assert_eq!(image_text(&Tool::dump().target(&sandbox).run()), run.stdout);
    let requests = &master_of(&image, superblock(&image, &sandbox, "d")).pipes[0].requests;
    let mut names: Vec<Option<String>> =
        requests.iter().map(|request| request.name.as_ref().map(ToString::to_string)).collect();
    names.sort();
    assert_eq!(names, [None, Some("key".to_owned()), Some("other".to_owned())]);
    assert!(requests.iter().all(|request| request.kind == RequestKind::Mount));
    let inside: Vec<Pid> = requests.iter().filter_map(|request| Pid::new(request.pid as i32)).collect();
    assert_eq!(inside.len(), 3);
    // Its root could not be opened, but the request tells of it.
    let root = known.iter().find(|mount| mount.path == sandbox.path("d")).context("the master's mount")?;
    assert_eq!(superblock(&image, &sandbox, "d").inode, Some(root.inode));
    let paths: Vec<String> =
        superblock(&image, &sandbox, "i").directories.iter().map(|found| found.path.to_string()).collect();
    assert!(paths.contains(&"key".to_owned()), "{paths:?}");
    for touch in &mut touches {
        assert!(!touch.has_ended());
    }
    for touch in touches {
        assert!(touch.kill().is_err());
    }
    Ok(())
}

/// A dump of a sandbox in which requests were read and are not answered.
#[track_caller]
fn dump_of_stuck_mounts(own_pid_namespace: bool) -> Result<Duration> {
    let sandbox = Sandbox::builder().own_pid_namespace(own_pid_namespace).build()?;
    let options = MasterOptions::new().direct("a").direct("stuck").direct("z").arg("--swallow");
    let mut master = sandbox.master(options)?;
    let options = MasterOptions::new().indirect("i").args(["--swallow", "--subdir=one", "--subdir=two"]);
    let mut other = sandbox.master(options)?;
    let mut touches = ["stuck", "i/one"].map(|name| sandbox.touch_in_background(sandbox.path(name)));
    for touch in &mut touches {
        touch.wait_until_blocked();
    }
    while master.report()?.counters.swallowed + other.report()?.counters.swallowed < 2 {}
    let start = Instant::now();
    let run = Tool::dump()
        .target(&sandbox)
        .args(["--timeout", "0.3"])
        .deadline(Duration::from_secs(10))
        .run()
        .assert_success()
        .assert_stderr_contains(&format!("a request for {} ", text(&sandbox.path("stuck"))))
        .assert_stderr_contains(&format!("a request for {} ", text(&sandbox.path("i/one"))));
    let taken = start.elapsed();
    let image = image(&run);
    let inode = |name: &str| superblock(&image, &sandbox, name).inode;
    assert!(inode("a").is_some() && inode("z").is_some() && inode("i").is_some());
    assert_eq!(inode("stuck"), None);
    let paths: Vec<String> =
        superblock(&image, &sandbox, "i").directories.iter().map(|found| found.path.to_string()).collect();
    assert_eq!(paths, ["one", "two"]);
    for touch in touches {
        assert!(touch.kill().is_err());
    }
    Ok(taken)
}

#[test]
fn requests_that_are_never_answered_hold_the_dump_up_for_the_timeout_each() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    assert!(dump_of_stuck_mounts(false)? >= Duration::from_millis(600));
    Ok(())
}

#[test]
fn requests_that_are_never_answered_are_noticed_at_once_from_outside_the_pid_namespace() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    dump_of_stuck_mounts(true)?;
    Ok(())
}

#[test]
fn the_same_state_gives_the_same_bytes_from_a_report_and_from_a_scan() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().direct("d").indirect("i").offset("o").like_automount();
    let _master = sandbox.master(options)?;
    sandbox.touch(sandbox.path("d"))?;
    let scanned = image_text(&Tool::dump().target(&sandbox).run());
    assert_eq!(image_text(&Tool::dump().target(&sandbox).run()), scanned);
    let inspect = Tool::inspect().target(&sandbox).args(["-f", "yaml"]);
    let (_, piped) = inspect.pipe(Tool::dump().args(["-i", "-"]));
    assert_eq!(image_text(&piped), scanned);
    // Inside, from the namespace of the tools themselves.
    let (_, piped) = Tool::inspect()
        .inside(&sandbox)
        .args(["-f", "yaml"])
        .pipe(Tool::dump().inside(&sandbox).args(["-i", "-"]));
    assert_eq!(image_text(&piped), scanned);

    let report = Tool::inspect().args(["-A", "-f", "yaml"]).run().assert_success().stdout;
    let all = Tool::dump().args(["-i", "-"]).stdin(report.clone()).run().assert_code(1);
    all.assert_stderr_contains("name a process of the one that is meant with --pid");
    let chosen = Tool::dump().target(&sandbox).args(["-i", "-"]).stdin(report).run();
    assert_eq!(image_text(&chosen), scanned);
    Ok(())
}

#[test]
fn mount_points_are_those_from_the_root_of_the_target() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let _master = sandbox.master(MasterOptions::new().direct("d").indirect("i").arg("--subdir=x"))?;
    let image = dump(&sandbox);
    assert_eq!(image.mounts.len(), 2);
    assert_eq!(superblock(&image, &sandbox, "i").directories.len(), 1);
    assert!(superblock(&image, &sandbox, "d").inode.is_some());
    Ok(())
}

#[test]
fn nothing_there_is_an_empty_image() -> Result<()> {
    require!(Root);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let run = Tool::dump().target(&sandbox).run().assert_success();
    assert_eq!(run.stdout, "format: \"autofs-cr/image/1\"\nmasters: []\nsuperblocks: []\nmounts: []\n...\n");
    assert_eq!(run.stderr, "autofs-dump: no autofs mount is there\n");
    Ok(())
}

#[test]
fn a_master_in_another_pid_namespace_than_the_target_is_refused() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("d"))?;
    let _inner = sandbox.command("unshare").args(["--pid", "--fork", "sleep", "1000"]).spawn();
    let of_init = std::fs::read_link(format!("/proc/{}/ns/pid", sandbox.pid()))?;
    let is_inner = |pid: &Pid| {
        std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|namespace| namespace != of_init)
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let target = loop {
        match sandbox.processes().into_iter().rfind(is_inner) {
            Some(pid) => break pid,
            None => assert!(Instant::now() < deadline, "unshare starts nothing"),
        }
    };
    let run = Tool::dump().args(["-p", &target.to_string()]).run().assert_code(1);
    let run = run.assert_stderr_contains(&format!("cannot dump {}: its master", text(&sandbox.path("d"))));
    let run = run.assert_stderr_contains("is in another pid namespace");
    assert_eq!(run.stdout, "");
    Ok(())
}

#[test]
fn what_no_path_leads_to_is_refused_and_the_file_stays_as_it_was() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("above/d").indirect("i"))?;
    sh(&sandbox, "mount -t tmpfs cover above; mkdir above/d");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("image");
    std::fs::write(&file, "old")?;
    let run = Tool::dump().target(&sandbox).arg("-o").arg(&file).run().assert_code(1);
    run.assert_stderr_contains(&format!("cannot dump {}: a later mount", text(&sandbox.path("above/d"))));
    assert_eq!(std::fs::read(&file)?, b"old");
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 1);

    sh(&sandbox, "umount above");
    Tool::dump().target(&sandbox).arg("-o").arg(&file).run().assert_success();
    doc::parse::<Image>(&std::fs::read(&file)?, "the file")?;
    assert_eq!(master.report()?.counters.served, 0);
    Ok(())
}

#[test]
fn less_than_root_is_told_so() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("d"))?;
    let run = Tool::dump().inside(&sandbox).user(65534).run().assert_code(1);
    run.assert_stderr_contains("cannot read the contents of autofs mounts: CAP_SYS_ADMIN");
    Ok(())
}

#[test]
fn a_missing_control_device_is_named() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("d"))?;
    let tool = text(&program("autofs-dump"));
    let script = format!("mount -t tmpfs none /dev && exec {tool}");
    let run = sandbox.command("unshare").args(["-m", "sh", "-c", &script]).run().assert_code(1);
    run.assert_stderr_contains("cannot open /dev/autofs: No such file");
    Ok(())
}

#[test]
fn a_report_that_is_wrong_or_old_is_refused() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d").indirect("i"))?;
    let report = Tool::inspect().target(&sandbox).args(["-f", "yaml"]).run().assert_success().stdout;
    let refused = |text: String, named: &str| {
        let run = Tool::dump().args(["-i", "-"]).stdin(text).run().assert_code(1);
        assert_eq!(run.stderr.lines().count(), 1, "{run}");
        let run = run.assert_stderr_contains(named);
        assert_eq!(run.stdout, "");
    };
    refused(String::new(), "standard input is empty");
    refused("{}".into(), "missing field `format`");
    refused(report[..report.len() - 5].into(), "it is cut off");
    refused(report.replace("report/1", "report/9"), "version 9 of the report format is not known");
    refused(report.replace("report/1", "image/1"), "this is the format of the image; the report is needed");
    refused(report.replacen("hidden:", "hiddne:", 1), "unknown field `hiddne`");
    refused(report.replacen("state: \"connected\"", "state: \"fine\"", 1), "unknown variant `fine`");
    let (before, after) = report.split_once("superblocks:\n").context("superblocks")?;
    let twice = format!("{before}superblocks:\n{}\n{after}", after.lines().next().context("a superblock")?);
    refused(twice, "superblocks of the report: they are not sorted by device");
    let place = text(&sandbox.path("d"));
    refused(
        report.replace(&format!("\"{place}\""), "\"relative\""),
        "mount_point 'relative' of the report is not absolute",
    );
    refused(
        report.replace(&format!("\"{place}\""), "\"/elsewhere\""),
        "mount '/elsewhere' of the report is gone",
    );
    let (device, other) = ("device: \"0:", "device: \"9:");
    let at = report.rfind(device).context("a device")?;
    let foreign = format!("{}{other}{}", &report[..at], &report[at + device.len()..]);
    refused(foreign, "is no superblock of the report");
    let pid = master.pid();
    refused(
        report.replace(&format!("pid: {pid}, ids"), "pid: 2147483647, ids"),
        "is no process of the report",
    );

    master.kill()?;
    refused(report.clone(), &format!("process {pid} of the report is gone or another one; scan anew"));
    drop(sandbox);
    refused(report, "of the report is gone or another one; scan anew");
    Ok(())
}

#[test]
fn what_is_asked_for_wrongly_is_named() {
    let gone = i32::MAX.to_string();
    let run = Tool::dump().args(["-p", &gone]).run().assert_code(1);
    assert_eq!(run.stderr, format!("autofs-dump: process {gone} does not exist\n"));
    for arguments in [&["-p", "-1"][..], &["--timeout", "x"], &["--timeout", "-1"], &["extra"]] {
        Tool::dump().args(arguments).run().assert_code(2);
    }
    let run = Tool::dump().args(["-i", "/nonexistent/file"]).run().assert_code(1);
    run.assert_stderr_contains("cannot read /nonexistent/file: No such file");
    TestCommand::new(program("autofs-dump")).arg("--help").run().assert_success();
}

#[test]
fn mounts_can_be_chosen_and_left_out() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _one = sandbox.master(MasterOptions::new().direct("a/x").direct("a/y").direct("ab"))?;
    let _other = sandbox.master(MasterOptions::new().indirect("i"))?;
    let dump = |words: &[&str]| Tool::dump().target(&sandbox).args(words).run();
    let [a, x, ab, i] = ["a", "a/x", "ab", "i"].map(|name| text(&sandbox.path(name)));
    let places = |image: &Image| -> Vec<PathBuf> {
        let mut places: Vec<_> = image.mounts.iter().map(|mount| mount.mount_point.to_path_buf()).collect();
        places.sort();
        places
    };
    let inside = |names: &[&str]| -> Vec<PathBuf> { names.iter().map(|name| sandbox.path(name)).collect() };

    let below = image(&dump(&[&a]).assert_success());
    assert_eq!((places(&below), below.superblocks.len()), (inside(&["a/x", "a/y"]), 2));
    assert_eq!(below.masters.len(), 1, "the other master has nothing to do with them");
    let others = image(&dump(&["--exclude", &x, "--exclude", &i]).assert_success());
    assert_eq!(places(&others), inside(&["a/y", "ab"]));
    let both = image(&dump(&["--exclude", &x, &a, &ab]).assert_success());
    assert_eq!(places(&both), inside(&["a/y", "ab"]));

    let nothing = format!("no autofs mount is at or below {a}/z");
    dump(&[&format!("{a}/z")]).assert_code(1).assert_stderr_contains(&nothing);
    dump(&["--exclude", &format!("{a}/z")]).assert_code(1).assert_stderr_contains(&nothing);
    dump(&["a"]).assert_code(2).assert_stderr_contains("not absolute");
    sandbox.close()
}
