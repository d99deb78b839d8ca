//! The last resort: while who asked first lives and waits, nobody else can walk to a direct mount.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use autofs_cr_common::doc::report::{Waiter, WaiterRole};
use autofs_cr_common::target::open_pidfd;
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::World;
use super::hung::Hung;
use crate::opener::{Opener, Places, may_be_pending};

/// How long the mount may take to be opened before it is tried again.
const PATIENCE: Duration = Duration::from_millis(200);

/// Opens the root of a superblock by killing who asked first. Another one may come and be the first then,
/// so this goes on until the mount is open.
pub fn open(world: &World, one: &Hung<'_>, killed: &mut usize) -> anyhow::Result<OwnedFd> {
    let device = one.superblock.device;
    let mut opener =
        Opener::new(Places::List(vec![one.place()]), &world.device, world.target.as_ref()).hasty(PATIENCE);
    while Instant::now() < world.deadline {
        opener.prepare()?;
        let report = world.report()?;
        let pipe = report.superblock(device).context("it is not mounted any more")?.pipe;
        // Who waits on one that a new master serves is none of ours; on one without a pipe nobody waits.
        if pipe.is_some() && pipe != one.superblock.pipe {
            bail!("somebody else connected it meanwhile");
        }
        for waiter in report.waiters_on(device).filter(|waiter| waiter.role == WaiterRole::First) {
            *killed += usize::from(kill(world, waiter)?);
        }
        match opener.open(&[(0, device)])?.pop() {
            Some(Ok(root)) => return Ok(root),
            Some(Err(errno)) if !may_be_pending(errno) => {
                return Err(errno).context("cannot open it");
            }
            _ => {}
        }
    }
    Err(Errno::ETIMEDOUT).context("it could not be opened, though who asked first was killed")
}

/// Kills the process of a waiter and waits for its end; false if it has ended by itself.
fn kill(world: &World, waiter: &Waiter) -> anyhow::Result<bool> {
    let pidfd = match open_pidfd(waiter.pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
        Err(error) => return Err(error).context("cannot open a process"),
    };
    // The id could be another's by now.
    let stat = world.proc.process(waiter.pid).and_then(|process| process.thread_stat(waiter.tid));
    if !stat.is_ok_and(|stat| stat.start_time == waiter.start_time && stat.is_blocked()) {
        return Ok(false);
    }
    let (pid, command) = (waiter.pid, &waiter.command);
    world.voice.detail(format_args!("killing process {pid} ({command})"));
    pidfd_send_signal(&pidfd, Signal::KILL)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot kill process {pid}"))?;
    let left = world.deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).context("the time is too long")?;
    let mut polled = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    let ended = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timeout))).map_err(io::Error::from)?;
    if ended == 0 {
        bail!("process {pid} ({command}) was killed, and does not end");
    }
    Ok(true)
}
