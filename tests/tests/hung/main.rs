//! No tool hangs on a mount that hangs: every command against every kind of hung mount ends before its deadline, with a
//! right result or a sentence that tells what is wrong, and leaves no process behind.

mod commands;
mod kinds;

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use autofs_cr_common::model::Pid;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{End, Sandbox, Tool, images};
use nix::sys::signal::Signal;

use commands::{BESIDE, Command, FILES, FREEING, HARMLESS, furnish};
use kinds::World;

/// How long a command may take: the longest gives up a walk after 10 seconds, and the machine may be loaded.
const DEADLINE: Duration = Duration::from_secs(25);

/// How long a process that was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs all commands in a world, frees what hangs there, and looks whether anything is left.
fn survives(world: Result<World>, more: &[Command]) -> Result<()> {
    let mut world = world?;
    furnish(&world)?;
    let before = processes(&world.sandbox);
    let mut watch = Tool::inspect().arg("--watch").inside(&world.sandbox).deadline(DEADLINE).spawn();
    let running: Vec<_> =
        HARMLESS.iter().chain(more).map(|command| (command, start(command, &world))).collect();
    running.into_iter().for_each(|(command, running)| end(command, running, &world));
    watch.process().signal(Signal::SIGTERM)?;
    let watched = watch.finish();
    let is_ended = watched.end == Some(End::Signal(Signal::SIGTERM as i32));
    watched.check(is_ended, "--watch was not ended by the signal");
    assert_nothing_left(&world.sandbox, &before);
    for command in BESIDE {
        images::make_catatonic(&world.sandbox, &world.free_image);
        end(command, start(command, &world), &world);
    }
    for command in FREEING {
        end(command, start(command, &world), &world);
        assert_nothing_left(&world.sandbox, &before);
    }
    free(&mut world)?;
    for touch in std::mem::take(&mut world.touches) {
        // What it gets is said in other tests; here only that it ends.
        let _ = touch.join_within(PATIENCE).map_err(|error| println!("{error}"));
    }
    world.sandbox.assert_nothing_blocked();
    drop(world.master);
    world.sandbox.close()
}

fn start(command: &Command, world: &World) -> autofs_cr_tests::sandbox::Running {
    (command.build)(world).deadline(DEADLINE).spawn()
}

fn end(command: &Command, running: autofs_cr_tests::sandbox::Running, world: &World) {
    let finished = running.finish();
    println!("--- {}: {:?}\n{}", command.name, finished.end, finished.stderr);
    (command.check)(finished, world);
}

/// What the tools refuse to free as long as somebody stands in the way: a signal that stopped the master, or a pipe that
/// nobody empties.
fn free(world: &mut World) -> Result<()> {
    if let Some(master) = world.master.take() {
        master.kill()?;
    }
    let words = ["--free", "--kill", &world.path(world.mount)];
    Tool::fixup().args(words).inside(&world.sandbox).run().assert_success();
    Ok(())
}

fn processes(sandbox: &Sandbox) -> BTreeSet<Pid> {
    sandbox.processes().into_iter().collect()
}

/// Fails when there is a process that was not there before.
fn assert_nothing_left(sandbox: &Sandbox, before: &BTreeSet<Pid>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = processes(sandbox);
        let left: Vec<&Pid> = now.difference(before).collect();
        if left.is_empty() {
            return;
        }
        let told = |pid: &&Pid| {
            let file = |name: &str| read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            format!("{pid} {} in {}: {}", file("comm").trim(), file("wchan"), file("stat"))
        };
        let told: Vec<String> = left.iter().map(told).collect();
        assert!(Instant::now() < deadline, "left behind: {told:#?}");
        // There is no event for the end of what is no child of this process.
        sleep(Duration::from_millis(10));
    }
}

macro_rules! worlds {
    ($($test:ident: $make:ident, $more:expr;)+) => {$(
        #[test]
        fn $test() -> Result<()> {
            require!(Root, Autofs, Ptrace);
            survives(kinds::$make(), $more)
        }
    )+};
}

worlds! {
    nothing_hangs_on_a_direct_mount_whose_request_is_not_read: unread, &[];
    nothing_hangs_on_a_direct_mount_whose_request_is_not_answered: unanswered, FILES;
    nothing_hangs_on_a_direct_mount_whose_master_is_stopped: stopped, &[];
    nothing_hangs_on_a_direct_mount_whose_master_is_dead: orphaned, &[];
    nothing_hangs_on_a_catatonic_mount: catatonic, &[];
    nothing_hangs_on_an_indirect_key: key, FILES;
    nothing_hangs_on_an_offset: offset, &[];
    nothing_hangs_on_a_mount_with_others_above_and_below: covered, &[];
    nothing_hangs_on_a_direct_mount_in_an_expire: expire_of_a_direct_mount, FILES;
    nothing_hangs_on_a_key_in_an_expire: expire_of_a_key, FILES;
    nothing_hangs_on_a_pipe_that_is_full: full, &[];
}
