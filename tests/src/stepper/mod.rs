//! Runs a command from one system call to the next, and does something at the one that a test wants: kills it, or
//! somebody else.
//!
//! The command and all that it starts are its **family**. All of it is traced with ptrace(2), and nobody else is: a fixup
//! traces a master as it does without this. The system calls of all of the family are counted together as they are
//! entered, so that what is done at call `n` is done when `n` is about to begin and all before have been made. Meanwhile the
//! whole family is held; then it is let go, and nothing traces it any more.
//!
//! | file | what it has |
//! |---|---|
//! | `mod.rs` | what a test uses |
//! | `tracer.rs` | the thread that traces: ptrace knows threads, not processes |
//! | `sweep.rs` | trying one point after the other |
//! | `calls.rs` | which system calls change something |

mod calls;
mod sweep;
mod tracer;

use std::os::fd::OwnedFd;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use autofs_cr_common::model::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::sandbox::{DEADLINE, Running};
pub use calls::Calls;
pub use sweep::sweep;
use tracer::{Said, Tracer};

/// Which system call something is done at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its number; the first one is 1.
    pub number: u64,
    /// Which ones are counted.
    pub of: Calls,
}

impl Point {
    /// A system call by its number among all.
    pub fn any(number: u64) -> Self {
        Self { number, of: Calls::All }
    }

    /// A system call by its number among those that change something that others can see.
    pub fn change(number: u64) -> Self {
        Self { number, of: Calls::Changes }
    }

    /// A system call by its number among those that walk a path to a mount, or change one.
    pub fn mount(number: u64) -> Self {
        Self { number, of: Calls::Mounts }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// The point was reached, and the action done.
    Reached,
    /// The whole family ended by itself after this many calls.
    Ended(u64),
}

/// The processes of a command that is held at a point.
#[derive(Debug)]
pub struct Family {
    /// The system call that one of them is about to make.
    pub call: u64,
    /// The process of the command itself.
    pub tool: Pid,
    members: Vec<(Pid, OwnedFd)>,
}

/// Lets a command that is [held](crate::sandbox::TestCommand::held) go on to a point, does `action` there while its whole
/// family is held, and lets it go. Without a family that comes to that point this returns when all of it has ended.
///
/// One that takes longer than the deadline of all tests is killed, which is an error.
pub fn step(running: &mut Running, point: Point, action: impl FnOnce(&Family)) -> Result<Step> {
    let tool = running.process().pid();
    let (to_tracer, orders) = channel();
    let (sender, answers) = channel();
    let thread = std::thread::Builder::new()
        .name("tracer".to_owned())
        .spawn(move || Tracer::new(tool, point, sender, orders).run())
        .context("start the thread that traces")?;
    match answers.recv_timeout(DEADLINE) {
        Ok(Said::Held { call, threads }) => {
            let family = Family { call, tool, members: members(&threads) };
            action(&family);
            let _ = to_tracer.send(());
            // From here on nobody is traced, but for who could not be held: it is let go when it stops.
            let _ = answers.recv_timeout(DEADLINE);
            Ok(Step::Reached)
        }
        Ok(Said::Ended(count)) => Ok(Step::Ended(count)),
        Ok(Said::LetGo) => bail!("the command was let go before its point"),
        Ok(Said::Failed(why)) => bail!("trace {tool}: {why}"),
        Err(RecvTimeoutError::Timeout) => {
            running.process().kill()?;
            bail!("the command did not come to {point:?} in time")
        }
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Ok(()) => bail!("the thread that traces ended"),
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

impl Family {
    /// Its processes.
    pub fn processes(&self) -> impl Iterator<Item = Pid> {
        self.members.iter().map(|(pid, _)| *pid)
    }

    /// Kills all of it, as the kernel does with a control group that has no memory left, and waits until all are dead.
    ///
    /// # Panics
    /// When one does not die.
    pub fn kill(&self) {
        // First all: none of them goes on meanwhile, as they are held.
        self.members.iter().for_each(|(_, pidfd)| send_kill(pidfd));
        self.members.iter().for_each(|(pid, _)| wait_for_death(*pid));
    }

    /// Kills the process of the command alone, and waits until it is dead; what it started goes on when it is let go.
    ///
    /// # Panics
    /// When it does not die.
    pub fn kill_tool(&self) {
        for (pid, pidfd) in self.members.iter().filter(|(pid, _)| *pid == self.tool) {
            send_kill(pidfd);
            wait_for_death(*pid);
        }
    }
}

/// The processes of these threads.
fn members(threads: &[Pid]) -> Vec<(Pid, OwnedFd)> {
    let mut processes: Vec<Pid> = threads.iter().filter_map(|&thread| process_of(thread)).collect();
    processes.sort_unstable();
    processes.dedup();
    let open = |pid: Pid| {
        let raw = rustix::process::Pid::from_raw(pid.as_raw())?;
        Some((pid, pidfd_open(raw, PidfdFlags::empty()).ok()?))
    };
    processes.into_iter().filter_map(open).collect()
}

fn process_of(thread: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

fn send_kill(pidfd: &OwnedFd) {
    // One that is dead already is fine.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
}

/// A thread that is traced is there until it is reaped, which the thread that traces does later: so a pidfd does not tell
/// the death of a process with several threads.
fn wait_for_death(pid: Pid) {
    let deadline = Instant::now() + DEADLINE;
    while !is_dead(pid) {
        assert!(Instant::now() < deadline, "process {pid} does not die");
        std::thread::yield_now();
    }
}

/// Whether no thread of a process runs any more.
fn is_dead(pid: Pid) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with(['Z', 'X']));
        state.unwrap_or(true)
    })
}
