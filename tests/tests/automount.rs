//! automount(8) as the master, with an indirect, a direct and an offset map.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use autofs_cr_common::model::Device;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::machine::autofs::{write_maps, write_maps_below};
use autofs_cr_tests::machine::{Autofs, Automount, Holder, Machine, overlay};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, lasting, make_catatonic, make_orphaned, read_image};
use autofs_cr_tests::sandbox::{Finished, Inside, Sandbox, Tool, Touch, TouchError, program};
use nix::errno::Errno;
use nix::sys::signal::Signal;

/// The triggers when `use_everything` has mounted a part of them: the indirect map, four keys of the direct one,
/// the offsets of two multi-mounts.
const TRIGGERS: usize = 8;

/// The ids of the mounts at and below a place that are no autofs mounts: what was mounted by automount.
fn content(machine: &Machine, place: &str) -> BTreeMap<String, String> {
    let mountinfo = machine.mountinfo();
    let lines = mountinfo.lines().filter(|line| !line.contains(" - autofs "));
    let mounts = lines.filter_map(|line| {
        let mut fields = line.split(' ');
        let id = fields.next()?.to_owned();
        Some((fields.nth(3)?.to_owned(), id))
    });
    mounts.filter(|(path, _)| path.starts_with(place)).collect()
}

/// The device number that each descriptor of a process is on whose number is in the list.
fn device_of(pid: impl std::fmt::Display, fd: i32) -> Result<Device> {
    let found = rustix::fs::stat(PathBuf::from(format!("/proc/{pid}/fd/{fd}")))?;
    Ok(Device { major: rustix::fs::major(found.st_dev), minor: rustix::fs::minor(found.st_dev) })
}

/// `autofs-dump PLACE | autofs-restore --replace | autofs-fixup`
fn replace(machine: &Machine, image: &str) -> (Finished, Finished) {
    Tool::restore().target(machine).arg("--replace").stdin(image).pipe(Tool::fixup())
}

/// Nothing is mounted below a place any more.
fn wait_until_expired(machine: &Machine, place: &str) {
    machine.wait_until(&format!("{place} expires"), || content(machine, place).is_empty());
}

#[test]
fn an_indirect_map_is_replaced_with_keys_mounted() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let _alone = alone();
    let machine = Machine::boot()?;
    let automount = Autofs::start(&machine, 2)?;
    let user = Holder::start(&machine, "/ind/a/file")?;
    machine.touch("/ind/t")?;
    let before = content(&machine, "/ind/a");
    let image = Tool::dump().target(&machine).arg("/ind").run().assert_success().stdout;
    let superblock = read_image(&image).superblocks.remove(0);
    let control = superblock.control_fds.first().context("automount has a control fd")?.fd;
    let line = machine.mount_line("/ind").context("it is there")?;

    let (restored, fixed) = replace(&machine, &image);
    restored.assert_success().assert_stderr_contains("create 1");
    fixed.assert_success().assert_stderr_contains("connected 1 mount of 1 master");

    assert_ne!(machine.mount_line("/ind").as_deref(), Some(line.as_str()), "it is another mount");
    assert_eq!(device_of(automount.pid(), control)?, superblock.device);
    assert_eq!(content(&machine, "/ind/a"), before, "keys stay");
    assert_eq!(machine.read("/ind/a/file")?, "a");
    assert_eq!(machine.read("/ind/b/file")?, "b");
    machine.touch("/ind/m/sub")?;
    assert_eq!(user.read()?, "a", "a file stays open");
    wait_until_expired(&machine, "/ind");
    assert_eq!(machine.read("/ind/b/file")?, "b");
    machine.assert_nothing_blocked();
    machine.assert_no_errors();
    machine.close()
}

/// What is there of /dir and /ind, with an open file, a multi-mount and one key on each; the file's content comes
/// by the holder.
fn use_everything(machine: &Machine) -> Result<Holder> {
    let user = Holder::start(machine, "/dir/a/file")?;
    for place in ["/dir/m/sub1", "/ind/m/sub", "/ind/a"] {
        machine.touch(place)?;
    }
    Ok(user)
}

/// All of it serves: what was mounted is as it was `before`, new keys are mounted, and all expires.
fn check_that_all_serves(
    machine: &Machine,
    automount: &Autofs<'_>,
    user: Holder,
    before: &BTreeMap<String, String>,
) -> Result<()> {
    assert_eq!(&content(machine, "/dir"), before);
    assert_eq!(user.read()?, "a");
    assert_eq!(machine.read("/dir/a/file")?, "a");
    for place in ["/dir/t", "/dir/m/sub2", "/ind/t"] {
        machine.touch(place)?;
    }
    assert_eq!(machine.read("/ind/b/file")?, "b");
    automount.expire()?;
    wait_until_expired(machine, "/ind");
    wait_until_expired(machine, "/dir");
    assert_eq!(machine.read("/dir/a/file")?, "a");
    machine.touch("/ind/m/sub")?;
    machine.assert_nothing_blocked();
    machine.assert_no_errors();
    Ok(())
}

/// Every mount is broken by `spoil`, adopted where it is, and serves as before.
fn adopt_what_was_spoilt(spoil: impl Fn(&Inside, &str)) -> Result<()> {
    let _alone = alone();
    let machine = Machine::boot()?;
    let automount = Autofs::start(&machine, 300)?;
    let user = use_everything(&machine)?;
    let image = dump(&machine);
    spoil(&machine, &image);
    let before = content(&machine, "/dir");

    let (restored, fixed) = Tool::restore().target(&machine).stdin(image).pipe(Tool::fixup());
    restored.assert_success().assert_stderr_contains(&format!("adopt {TRIGGERS}"));
    let connected = format!("connected {TRIGGERS} mounts of 1 master");
    fixed.assert_success().assert_stderr_contains(&connected);

    check_that_all_serves(&machine, &automount, user, &before)?;
    machine.close()
}

#[test]
fn triggers_that_turned_catatonic_are_adopted_in_place() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    adopt_what_was_spoilt(make_catatonic)
}

#[test]
fn triggers_that_were_orphaned_are_adopted_in_place() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    adopt_what_was_spoilt(make_orphaned)
}

#[test]
fn direct_triggers_are_not_replaced() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let machine = Machine::boot()?;
    let _automount = Autofs::start(&machine, 300)?;
    machine.touch("/dir/m/sub1")?;
    let before = machine.mountinfo();

    for image in [dump(&machine), Tool::dump().target(&machine).arg("/dir/m/sub2").run().stdout] {
        let restored = Tool::restore().target(&machine).arg("--replace").stdin(image).run();
        let restored =
            restored.assert_code(1).assert_stderr_contains("compares the inode number of its mount");
        restored.assert_stderr_contains("leave out --replace").assert_stderr_contains("send automount HUP");
    }
    assert_eq!(machine.mountinfo(), before);
    machine.touch("/dir/m/sub2")?;
    machine.close()
}

#[test]
fn a_trigger_that_was_unmounted_comes_back_by_hup() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let machine = Machine::boot()?;
    // No multi-mount is mounted: automount 5.1.9 dies of HUP then (SIGSEGV).
    let _automount = Autofs::start(&machine, 300)?;
    assert_eq!(machine.read("/dir/a/file")?, "a");
    // All else can be the same as before, also the id of the mount.
    let inode = || Tool::dump().target(&machine).arg("/dir/t").run().assert_success().stdout;
    let inode = || read_image(&inode()).superblocks[0].inode;
    let before = inode();
    machine.sh("umount /dir/t; systemctl reload autofs");
    machine.wait_until("automount mounts a new one", || machine.mount_line("/dir/t").is_some());
    assert_ne!(inode(), before);
    machine.touch("/dir/t")?;
    machine.assert_no_errors();
    machine.close()
}

#[test]
fn one_that_a_script_started_is_connected_in_its_group() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let _alone = alone();
    let machine = Machine::boot()?;
    write_maps(&machine, 300)?;
    // Not in a session of its own: its group's leader is the shell.
    let mut script = machine.spawn(["sh", "-c", "automount --foreground & wait"]);
    let leader = script.process().pid_inside()?;
    machine.wait_until("automount serves", || machine.autofs_lines().len() == 5);
    machine.touch("/dir/m/sub1")?;
    machine.touch("/ind/a")?;
    let image = dump(&machine);
    let master = read_image(&image).masters.remove(0);
    assert_eq!(master.pgrp, Some(leader), "{image}");
    assert_ne!(master.pid, Some(leader), "{image}");
    make_catatonic(&machine, &image);

    let (restored, fixed) = Tool::restore().target(&machine).stdin(&*image).pipe(Tool::fixup());
    restored.assert_success().assert_stderr_contains("adopt 7");
    fixed.assert_success();
    assert_eq!(lasting(&dump(&machine)), lasting(&image));
    machine.touch("/dir/m/sub2")?;
    assert_eq!(machine.read("/ind/b/file")?, "b");

    // The indirect map is made anew, in the group that is not named by its master.
    let image = Tool::dump().target(&machine).arg("/ind").run().assert_success().stdout;
    let (restored, fixed) = replace(&machine, &image);
    restored.assert_success();
    fixed.assert_success();
    machine.touch("/ind/t")?;
    machine.assert_nothing_blocked();
    machine.close()
}

#[test]
fn it_is_moved_to_fresh_namespaces() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let _alone = alone();
    let machine = Machine::boot()?;
    let _automount = Autofs::start(&machine, 300)?;
    assert_eq!(machine.read("/ind/a/file")?, "a");
    let image = dump(&machine);
    machine.close()?;

    let sandbox = Sandbox::new()?;
    let root = overlay(&sandbox)?;
    write_maps_below(&sandbox.outside(&root), 300)?;
    for place in ["ind", "dir/a", "dir/t", "dir/m", "dir/hang"] {
        sandbox.mkdir(PathBuf::from("root").join(place))?;
    }
    // The tools have to be in the new root.
    let programs = program("autofs-fixup").parent().context("no directory")?.to_owned();
    let inside = sandbox.mkdir(PathBuf::from("root/opt"))?;
    sandbox.run(["mount", "--bind", &programs.to_string_lossy(), &inside.to_string_lossy()]).assert_success();
    // It is ready when it has gone into the background.
    let script = "\
        /opt/autofs-fixup --exec -- automount --dont-check-daemon || exit 90
        cat /ind/a/file /ind/b/file /dir/a/file || exit 91
        ls /dir/m/sub1 /ind/m/sub >/dev/null || exit 92
        /opt/autofs-inspect --check || exit 93
        ! grep autofs-cr /proc/self/mountinfo || exit 94
        exit 42";
    let restore = Tool::restore().inside(&sandbox).args(["--init", "--root"]).arg(&root).stdin(image);
    let restored = restore.args(["--", "sh", "-c", script]).run();
    let restored = restored.assert_code(42).assert_stderr_contains("create 5; all is connected");
    restored.assert_stdout_contains("aba");
    sandbox.close()
}

#[test]
fn what_serves_in_another_machine_already_is_left_as_it_is() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let _alone = alone();
    let [one, other] = [Machine::boot()?, Machine::boot()?];
    let _automounts = (Autofs::start(&one, 300)?, Autofs::start(&other, 300)?);
    let _units =
        (Automount::start(&one, "/data", "/srv/a", 0)?, Automount::start(&other, "/data", "/srv/a", 0)?);
    let image = dump(&one);
    let before = other.mountinfo();
    let restored = Tool::restore().target(&other).stdin(image).run().assert_success();
    restored.assert_stderr_contains("keep 6").assert_stderr_contains("/data is served by systemd[");
    assert_eq!(other.mountinfo(), before);
    one.close()?;
    other.close()
}

/// Processes that wait on keys whose mounts never come: the first on the direct trigger, one that joined it, and one
/// on an indirect key.
struct Waiters {
    first: Touch,
    joined: Touch,
    indirect: Touch,
}

impl Waiters {
    fn start(machine: &Machine) -> Self {
        let wait_on = |path: &str| {
            let mut touch = machine.touch_in_background(path);
            touch.wait_until_blocked();
            touch
        };
        Self {
            first: wait_on("/dir/hang/file"),
            joined: wait_on("/dir/hang"),
            indirect: wait_on("/ind/hang"),
        }
    }
}

fn inspect(machine: &Machine) -> Finished {
    Tool::inspect().target(machine).run().assert_success()
}

/// What every mount serves, and that nobody waits.
fn check_that_keys_serve(machine: &Machine) -> Result<()> {
    assert_eq!(machine.read("/dir/a/file")?, "a");
    assert_eq!(machine.read("/ind/b/file")?, "b");
    machine.touch("/dir/m/sub1")?;
    machine.assert_nothing_blocked();
    Ok(())
}

#[test]
fn who_waits_is_freed_when_it_was_killed_and_a_new_one_hangs() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let machine = Machine::boot()?;
    let automount = Autofs::start(&machine, 300)?;
    assert_eq!(machine.read("/dir/a/file")?, "a");
    let waiters = Waiters::start(&machine);
    let shown = inspect(&machine).stderr;
    let told = "has read the request and not answered yet";
    assert_eq!(shown.matches(told).count(), 3, "{shown}");

    automount.kill()?;
    let shown = inspect(&machine);
    for (touch, how) in [(&waiters.first, "first"), (&waiters.joined, "joined"), (&waiters.indirect, "first")]
    {
        let line = shown.stderr.lines().find(|line| line.contains(&format!("[{}] of root ", touch.pid())));
        let line = line.with_context(|| format!("{} is not named: {shown}", touch.pid()))?;
        assert!(line.contains(how) && line.contains("its master is gone"), "{line}");
    }
    let check = Tool::inspect().target(&machine).arg("--check").run().assert_code(3);
    check.assert_stdout_contains("/dir/hang: orphaned").assert_stdout_contains("2 processes wait");

    let start = machine.spawn(["systemctl", "start", "autofs"]);
    machine.wait_until("the new automount hangs", || {
        let shown = inspect(&machine).stderr;
        shown.lines().any(|line| line.contains("automount[") && line.contains(" on /dir/hang "))
    });
    let free = |arguments: &[&str]| Tool::fixup().arg("--free").target(&machine).args(arguments).run();
    let refused = free(&[]).assert_code(1).assert_stderr_contains("--kill kills that process");
    refused.assert_stderr_contains(&format!("process {}", waiters.first.pid()));
    free(&["--kill"]).assert_success().assert_stderr_contains("killed 1 process");

    assert_eq!(waiters.first.join(), Err(TouchError::Killed(Signal::SIGKILL as i32)));
    assert_eq!(waiters.joined.join(), Err(TouchError::Errno(Errno::ENOENT)));
    start.finish().assert_success();
    // It has mounted a new trigger over the one that it could not use.
    Tool::inspect().target(&machine).arg("--check").run().assert_success();
    // By the new automount, which connected the indirect map again.
    assert_eq!(waiters.indirect.join(), Err(TouchError::Errno(Errno::ENOENT)));
    check_that_keys_serve(&machine)?;
    machine.close()
}

#[test]
fn who_waits_is_freed_before_a_new_one_starts_and_reconnects() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let machine = Machine::boot()?;
    let automount = Autofs::start(&machine, 300)?;
    let user = Holder::start(&machine, "/dir/a/file")?;
    let waiters = Waiters::start(&machine);
    automount.kill()?;

    let freed = Tool::fixup().args(["--free", "--kill"]).target(&machine).run().assert_success();
    let restart = format!("start it again: nsenter -t {} -a systemctl restart autofs\n", machine.pid());
    freed.assert_stderr_contains(&restart);
    assert_eq!(waiters.first.join(), Err(TouchError::Killed(Signal::SIGKILL as i32)));
    assert_eq!(waiters.joined.join(), Err(TouchError::Errno(Errno::ENOENT)));
    assert_eq!(waiters.indirect.join(), Err(TouchError::Errno(Errno::ENOENT)));

    machine.systemctl(["start", "autofs"]).assert_success();
    assert_eq!(machine.autofs_lines().len(), 5, "nothing is mounted twice: {}", machine.mountinfo());
    Tool::inspect().target(&machine).arg("--check").run().assert_success();
    assert_eq!(user.read()?, "a");
    check_that_keys_serve(&machine)?;
    machine.close()
}

#[test]
fn who_waits_is_freed_while_it_hangs_and_it_goes_on() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let machine = Machine::boot()?;
    let _automount = Autofs::start(&machine, 300)?;
    let waiters = Waiters::start(&machine);
    let free = Tool::fixup().arg("--free").target(&machine);
    let nothing = free.run().assert_success();
    nothing.assert_stderr_contains("nothing");
    let free = Tool::fixup().arg("--free").target(&machine);
    free.args(["/dir/hang", "/ind"]).run().assert_success().assert_stderr_contains("freed 2 mounts");
    for waiter in [waiters.first, waiters.joined, waiters.indirect] {
        assert_eq!(waiter.join(), Err(TouchError::Errno(Errno::ENOENT)));
    }
    Tool::inspect().target(&machine).arg("--check").run().assert_success();
    check_that_keys_serve(&machine)?;
    // The answers that come now are for nobody.
    machine.sh("echo >/run/hang; echo >/run/hang");
    machine.wait_until("automount has answered", || {
        machine.journal("autofs").matches("AUTOFS_DEV_IOCTL_FAIL").count() == 2
    });
    check_that_keys_serve(&machine)?;
    machine.close()
}

#[test]
fn an_indirect_map_in_heavy_use_is_replaced_and_nothing_is_mounted_twice() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let _alone = alone();
    let machine = Machine::boot()?;
    let _automount = Autofs::start(&machine, 300)?;
    machine.touch("/ind/a")?;
    let before = content(&machine, "/ind");
    let read = "while [ ! -e /run/enough ]; do read -r line </ind/a/file; done";
    let readers: Vec<_> = (0..2).map(|_| machine.spawn(["bash", "-c", read])).collect();
    for round in 0..10 {
        let image = Tool::dump().target(&machine).arg("/ind").run().assert_success().stdout;
        let (restored, fixed) = replace(&machine, &image);
        restored.assert_success();
        fixed.assert_success();
        assert_eq!(content(&machine, "/ind"), before, "round {round}");
    }
    machine.write("/run/enough", "")?;
    readers.into_iter().for_each(|reader| drop(reader.finish()));
    check_that_keys_serve(&machine)?;
    machine.assert_no_errors();
    machine.close()
}

#[test]
fn an_indirect_map_that_somebody_is_in_is_left_as_it_is() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let _alone = alone();
    let machine = Machine::boot()?;
    let _automount = Autofs::start(&machine, 300)?;
    machine.touch("/ind/a")?;
    let mut user = machine.spawn(["sh", "-c", "cd /ind; sleep 1000"]);
    machine.wait_until("the shell is there", || {
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", user.process().pid()));
        cwd.is_ok_and(|cwd| cwd == std::path::Path::new("/ind"))
    });
    let (before, mounts) = (content(&machine, "/ind"), dump(&machine));
    let image = Tool::dump().target(&machine).arg("/ind").run().assert_success().stdout;
    let (restored, _) = replace(&machine, &image);
    let restored = restored.assert_code(1).assert_stderr_contains("everything was undone");
    restored.assert_stderr_contains("it is in use by process");
    assert_eq!((content(&machine, "/ind"), dump(&machine)), (before, mounts));
    check_that_keys_serve(&machine)?;
    machine.close()
}
