//! Working in other processes, each time in a child: its end lets go of a thread that does not stop.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use autofs_cr_common::child::Child;
use autofs_cr_common::model::{Device, Pid, TextPath};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::World;
use crate::inside;
use crate::live::Process;
use crate::opener::{errors, pair};
use crate::remote::{Error, Stopped};

/// How long a process may take to open mounts.
const STEP: Duration = Duration::from_secs(3);

/// How long a process may take to stop, which is a matter of microseconds.
const STOP: Duration = Duration::from_secs(1);

/// How many mounts a process opens at once: as many as fit into one message.
pub const AT_ONCE: usize = 200;

/// Whether a process can make system calls for this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ability {
    /// It can.
    Able,
    /// Not before somebody lets go of it: a tracer, or who stopped it by a signal.
    Held(String),
    /// It cannot; mostly a thread of it waits where no signal reaches it.
    Unable(String),
}

/// The living processes of a group.
pub fn members(world: &World, group: Pid) -> Vec<Process> {
    let pids = world.proc.pids().unwrap_or_default();
    let others = pids.into_iter().filter(|pid| *pid != Pid::this());
    let member = |pid: Pid| {
        let stat = world.proc.stat(pid).ok()?;
        let is_member = stat.group == group.as_raw() && !stat.is_dead();
        is_member.then(|| Process::open(&world.proc, pid, stat.start_time).ok())?
    };
    others.filter_map(member).collect()
}

/// Finds out, by having it make calls that leave nothing.
pub fn ability(world: &World, pid: Pid, start_time: u64) -> anyhow::Result<Ability> {
    let Ok(process) = Process::open(&world.proc, pid, start_time) else {
        return Ok(Ability::Unable("it has ended".to_owned()));
    };
    let child = Child::spawn(|channel| Ok(channel.send(&try_out(world, &process), &[])?));
    let child = child.context("cannot start a child")?;
    let ability = child.receive(Some(world.step(3 * STOP)));
    Ok(ability.map_or_else(|error| Ability::Unable(error.to_string()), |(ability, _)| ability))
}

fn try_out(world: &World, process: &Process) -> Ability {
    if let Err(error) = process.check_rights() {
        return Ability::Unable(format!("{error:#}"));
    }
    let patience = world.step(STOP);
    loop {
        let deadline = world.step(STOP);
        let tried = Stopped::attach(process.pidfd(), deadline);
        match tried.and_then(|stopped| stopped.start(deadline)?.finish(deadline)) {
            Ok(()) => return Ability::Able,
            // Perhaps by another fixup, which soon lets go of it. There is no event to wait for.
            Err(Error::Traced { .. }) if Instant::now() < patience => sleep(Duration::from_millis(5)),
            Err(error @ (Error::Traced { .. } | Error::GroupStopped { .. } | Error::Frozen { .. })) => {
                return Ability::Held(whole(error));
            }
            Err(error) => return Ability::Unable(whole(error)),
        }
    }
}

/// An error with its causes.
fn whole(error: Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

/// Has a process open mounts.
pub fn open_mounts(
    world: &World,
    process: &Process,
    wanted: &[(usize, TextPath, Device)],
) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
    let open = || -> anyhow::Result<_> {
        let deadline = world.step(STEP);
        let mut session = Stopped::attach(process.pidfd(), deadline)?.start(deadline)?;
        let places: Vec<_> = wanted.iter().map(|(_, place, device)| (place, *device)).collect();
        let opened = inside::open(&mut session, &world.device, &places, deadline);
        session.finish(world.step(STEP))?;
        opened
    };
    let child = Child::spawn(|channel| {
        let opened = open().map_err(|error| format!("{error:#}"));
        let fds: Vec<_> = opened.iter().flatten().flatten().map(AsFd::as_fd).collect();
        let answer: Result<Vec<i32>, &String> = opened.as_deref().map(errors);
        Ok(channel.send(&answer, &fds)?)
    });
    let child = child.context("cannot start a child")?;
    let (answer, fds) = child.receive::<Result<Vec<i32>, String>>(Some(world.step(2 * STEP)))?;
    pair(answer.map_err(anyhow::Error::msg)?, fds)
}
