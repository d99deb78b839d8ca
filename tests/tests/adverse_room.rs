//! No room where the tools need some: in /dev/shm, for mounts (fs.mount-max), for memory. Each says what it lacks, with
//! nothing changed or all undone.

use std::time::{Duration, Instant};

use anyhow::Result;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, lasting, make_catatonic};
use autofs_cr_tests::sandbox::{End, Finished, MasterOptions, Sandbox, TestCommand, Tool, program};

/// Before any timeout.
const SOON: Duration = Duration::from_secs(15);

/// What is done to /dev/shm, and why there can be no segment in it then.
const SHM: [(&str, &str); 5] = [
    (
        "mount -t tmpfs -o size=4k full /dev/shm && head -c 4096 /dev/zero >/dev/shm/x",
        "No space left on device",
    ),
    ("mount -t tmpfs -o nr_inodes=1 full /dev/shm", "No space left on device"),
    ("mount -t tmpfs -o ro readonly /dev/shm", "Read-only file system"),
    ("mount -t proc other /dev/shm", "Operation not supported"),
    (
        "mkdir /d && mount -t tmpfs d /d && touch /d/autofs && mount --bind /dev/autofs /d/autofs && mount -n --move /d /dev",
        "No such file or directory",
    ),
];

#[test]
fn without_room_in_dev_shm_nothing_is_changed() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    for (change, why) in SHM {
        let sandbox = Sandbox::builder().fresh_root().shm().build()?;
        let _master = sandbox.master(MasterOptions::new().direct("a").arg("--identity=device"))?;
        let image = dump(&sandbox);
        make_catatonic(&sandbox, &image);
        sandbox.run(["sh", "-c", change]).assert_success();
        let before = sandbox.mountinfo();
        let begun = Instant::now();
        let restore = sandbox.command(program("autofs-restore")).stdin(image);
        let (restored, fixed) = restore.pipe(sandbox.command(program("autofs-fixup")));
        let restored = restored.assert_code(1).assert_stderr_contains("cannot make a segment in /dev/shm");
        assert_eq!(restored.stderr.matches(why).count(), 1, "{restored}");
        fixed.assert_code(1);
        assert!(begun.elapsed() < SOON);
        assert_eq!(sandbox.mountinfo(), before);
        sandbox.close()?;
    }
    Ok(())
}

/// Leaves room for so many mounts in a sandbox. The limit is that of the machine, but what is counted is what a mount
/// namespace has: so it is filled, with trees that are copied whole.
const FILL: &str = r#"
set -e
[ -e /fill ] || {
    mkdir /fill
    mount -t tmpfs fill /fill
    # The copy that is mounted at /fill/N is a tree of 2^N mounts.
    for n in $(seq 0 14); do mkdir /fill/$n; mount -n --rbind /fill /fill/$n; done
}
# One is not shown: the root that pivot_root(2) has left.
left=$(($(cat /proc/sys/fs/mount-max) - $(wc -l </proc/self/mountinfo) - 1 - $1))
for n in $(seq 14 -1 0); do
    while [ $left -ge $((1 << n)) ]; do
        mount -n --rbind /fill/$n $(mktemp -d /fill/XXXXXX)
        left=$((left - (1 << n)))
    done
done
"#;

/// What is said then.
const NO_ROOM: &str = "(raise the sysctl fs.mount-max)";

/// A restore where there is room for so many mounts; everything is as before when that is not enough.
#[track_caller]
fn restore_with_room(sandbox: &Sandbox, image: &str, room: u32) -> Finished {
    sandbox.run(["sh", "-c", FILL, "fill", &room.to_string()]).assert_success();
    let before = sandbox.mountinfo();
    let restored = sandbox.command(program("autofs-restore")).arg("--replace").stdin(image).run();
    if restored.end != Some(End::Exit(0)) {
        assert!(sandbox.mountinfo() == before, "{room}: it is not as before: {:?}", restored.stderr);
    }
    restored
}

#[test]
fn without_room_for_more_mounts_everything_is_undone() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::builder().fresh_root().shm().build()?;
    let names = ["a", "b", "c", "d"];
    let options = names.iter().fold(MasterOptions::new(), |options, name| options.direct(name));
    let mut master = sandbox.master(options.arg("--identity=device"))?;
    sandbox.touch(sandbox.path("a"))?;
    let image = dump(&sandbox);
    // The work place, and in it a mount that keeps the pipe.
    restore_with_room(&sandbox, &image, 2).assert_success();
    restore_with_room(&sandbox, &image, 1).assert_code(1).assert_stderr_contains(NO_ROOM);
    let places = names.map(|name| sandbox.path(name).display().to_string());
    // The first has content.
    sandbox.command("umount").arg(&places[0]).args(&places).run().assert_success();
    restore_with_room(&sandbox, &image, 4).assert_code(1).assert_stderr_contains(NO_ROOM);
    master.assert_undisturbed();
    sandbox.close()
}

/// Limits of memory (RLIMIT_AS) in bytes: from one with which no program is loaded to one that is enough.
fn memory() -> impl Iterator<Item = String> {
    (6..26).map(|million| format!("--as={million}500000"))
}

/// Whether a program was not loaded, or the standard library has ended it: not in the middle of anything.
fn has_no_memory(finished: &Finished) -> bool {
    matches!(finished.end, Some(End::Exit(127) | End::Signal(libc::SIGABRT | libc::SIGSEGV)))
}

#[test]
fn mounts_are_replaced_or_left_alone_with_every_limit_of_memory() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::builder().fresh_root().shm().build()?;
    let options = MasterOptions::new().direct("a").indirect("i").like_automount();
    let mut master = sandbox.master(options.arg("--identity=device"))?;
    sandbox.touch(sandbox.path("a"))?;
    let image = dump(&sandbox);
    let restore = || Tool::restore().target(&sandbox).args(["--replace", "--timeout=10"]).stdin(&*image);
    let (mut refused, mut replaced) = (0, 0);
    for limit in memory() {
        let before = sandbox.mountinfo();
        let (restored, fixed) = restore().limited(&limit).pipe(Tool::fixup().limited(&limit));
        match restored.end {
            Some(End::Exit(0)) => replaced += 1,
            Some(End::Exit(1)) => {
                refused += 1;
                assert_eq!(sandbox.mountinfo(), before, "{limit}: {restored}{fixed}");
            }
            // As if it was killed.
            _ => {
                assert!(has_no_memory(&restored), "{limit}: {restored}{fixed}");
                let (again, fixed) = restore().pipe(Tool::fixup());
                again.assert_success();
                fixed.assert_success();
            }
        }
        assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{limit}");
        master.assert_undisturbed();
    }
    assert!(refused > 0 && replaced > 0, "{refused} {replaced}");
    sandbox.close()
}

#[test]
fn what_is_there_is_told_whole_or_not_at_all_with_every_limit_of_memory() -> Result<()> {
    require!(Root, Autofs);
    // It takes device numbers that the others here free.
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("a").indirect("i").like_systemd())?;
    let tools: [fn() -> TestCommand; 2] = [|| Tool::inspect().args(["-f", "yaml"]), Tool::dump];
    for tool in tools {
        let whole = tool().target(&sandbox).run().assert_success();
        for limit in memory() {
            let finished = tool().target(&sandbox).limited(&limit).run();
            let is_whole = finished.end == Some(End::Exit(0));
            assert!(
                is_whole || finished.end == Some(End::Exit(1)) || has_no_memory(&finished),
                "{limit}: {finished}"
            );
            assert_eq!(finished.stdout, if is_whole { &*whole.stdout } else { "" }, "{limit}: {finished}");
        }
    }
    sandbox.close()
}
