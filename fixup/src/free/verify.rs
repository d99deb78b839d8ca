//! Asking the kernel what came of it.

use std::collections::BTreeSet;
use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use autofs_cr_common::doc::report::Waiter;
use autofs_cr_common::model::{Device, KernelPipe, Pid, State};
use autofs_cr_common::proc::Stat;
use autofs_cr_common::scan::is_sending_request;

use super::World;
use super::hung::Hung;

/// What became of a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its master serves it.
    Served,
    /// Its master is gone, and it is ready for another one.
    Ready,
    /// Its master lives, and could not be connected again.
    Cut,
    /// It is as it was.
    Unchanged,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Served => "served again",
            Self::Ready => "ready for a master",
            Self::Cut => "catatonic, and its master has to be restarted",
            Self::Unchanged => "as it was: it could not be freed",
        })
    }
}

/// What mountinfo says of the superblocks, some of which were connected again.
pub fn ends(world: &World, hung: &[Hung<'_>], connected: &BTreeSet<Device>) -> anyhow::Result<Vec<End>> {
    let mounts = world.mounts()?;
    let end = |one: &Hung<'_>| {
        let pipe = mounts.options(one.superblock.device).map(|found| found.pipe);
        let is_same = pipe == one.superblock.pipe.map(KernelPipe::Inode);
        match one.superblock.state {
            // Taken away meanwhile.
            _ if pipe.is_none() => End::Ready,
            State::Connected if connected.contains(&one.superblock.device) => End::Served,
            _ if is_same => End::Unchanged,
            State::Connected | State::Delegated if pipe == Some(KernelPipe::None) => End::Cut,
            _ if pipe == Some(KernelPipe::None) => End::Ready,
            // A new master was faster.
            _ => End::Served,
        }
    };
    Ok(hung.iter().map(end).collect())
}

/// Threads that waited, with how often each had slept.
pub struct Watched<'a> {
    world: &'a World,
    waiters: Vec<(&'a Waiter, Option<u64>)>,
}

impl<'a> Watched<'a> {
    /// All who wait on these.
    pub fn all(world: &'a World, hung: &'a [Hung<'a>]) -> Self {
        let waiters = hung.iter().flat_map(Hung::waiters);
        Self { world, waiters: waiters.map(|waiter| (waiter, sleeps(waiter.pid, waiter.tid))).collect() }
    }

    /// Leaves out who waits on other mounts than these.
    pub fn keep(&mut self, devices: &BTreeSet<Device>) {
        self.waiters.retain(|(waiter, _)| waiter.device.is_some_and(|device| devices.contains(&device)));
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        self.waiters.len()
    }

    /// Waits until none is in that wait any more; those who still are. There is no event to wait for.
    pub fn wait(&self, deadline: Instant) -> Vec<String> {
        loop {
            let left = self.waiters.iter().filter(|(waiter, sleeps)| self.waits(waiter, *sleeps));
            let left: Vec<String> = left.map(|(waiter, _)| name(waiter)).collect();
            if left.is_empty() || Instant::now() >= deadline {
                return left;
            }
            sleep(Duration::from_millis(2));
        }
    }

    /// Whether a thread is still in the same wait. One that asks again has slept again; so has one whose turn it was to write
    /// its request, and which found no room for it.
    fn waits(&self, waiter: &Waiter, before: Option<u64>) -> bool {
        let is_it = |stat: &Stat| stat.start_time == waiter.start_time && matches!(stat.state, b'S' | b'D');
        let Ok(process) = self.world.proc.process(waiter.pid) else { return false };
        let is_asleep = process.thread_stat(waiter.tid).is_ok_and(|stat| is_it(&stat));
        let is_sending = || process.thread(waiter.tid).is_ok_and(|thread| is_sending_request(&thread));
        is_asleep && (sleeps(waiter.pid, waiter.tid) == before || (waiter.unsent && is_sending()))
    }
}

/// How often a thread has gone to sleep by itself.
fn sleeps(pid: Pid, tid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

/// A waiter, for people.
pub fn name(waiter: &Waiter) -> String {
    let thread = if waiter.tid == waiter.pid { String::new() } else { format!("thread {} of ", waiter.tid) };
    format!("{thread}process {} ({})", waiter.pid, waiter.command)
}
