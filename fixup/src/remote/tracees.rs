//! Holding every thread of a process in a ptrace stop.

use std::collections::BTreeSet;
use std::io;
use std::marker::PhantomData;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use super::arch;
use super::error::{Error, Result};
use super::facts::{self, Status};

/// The event number of a stop that was asked for with PTRACE_INTERRUPT (linux/ptrace.h).
const PTRACE_EVENT_STOP: i32 = 128;

/// Where the kernel keeps the threads of a frozen control group: version 2, the same where the compiler has put it into
/// its caller, and version 1.
const FREEZERS: [&str; 3] = ["do_freezer_trap", "get_signal", "__refrigerator"];

/// How long dropping waits for a thread to stop.
const LAST_PATIENCE: Duration = Duration::from_millis(500);

/// The threads of a process, all stopped. Dropping it lets them go on with everything as it was; so
/// does the end of the thread that made it, however it ends, because the kernel then detaches them.
#[derive(Debug)]
pub(super) struct Tracees {
    pid: Pid,
    stopped: BTreeSet<Pid>,
    /// Seized, but not (yet) stopped.
    running: BTreeSet<Pid>,
    /// Seen dead; a leader stays in the list until all others have ended.
    ended: BTreeSet<Pid>,
    /// ptrace works only from the thread that attached.
    bound_to_thread: PhantomData<*const ()>,
}

impl Tracees {
    /// Attaches to every thread of `pid` and stops it.
    pub fn attach(pid: Pid, deadline: Instant) -> Result<Self> {
        refuse_what_cannot_be_held(pid)?;
        let mut tracees = Self {
            pid,
            stopped: BTreeSet::new(),
            running: BTreeSet::new(),
            ended: BTreeSet::new(),
            bound_to_thread: PhantomData,
        };
        // A thread may start others until it is itself stopped or has ended, so look again until nothing is new.
        while tracees.seize_new_threads()? {
            tracees.wait_until_stopped(deadline)?;
            if Instant::now() >= deadline {
                return Err(Error::Timeout { pid: pid.as_raw(), what: "the stop of all threads" });
            }
        }
        Ok(tracees)
    }

    /// The threads that are stopped.
    pub fn threads(&self) -> impl Iterator<Item = Pid> + '_ {
        self.stopped.iter().copied()
    }

    /// Lets one thread go on for good.
    pub fn release(&mut self, tid: Pid) -> Result<()> {
        self.stopped.remove(&tid);
        match ptrace::detach(tid, None) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(Error::call("ptrace detach", tid.as_raw(), error)),
        }
    }

    /// Stops a thread that was let run while it stayed attached, and lets it go for good.
    pub fn stop_and_release(&mut self, tid: Pid, deadline: Instant) -> Result<()> {
        self.stopped.remove(&tid);
        if self.interrupt(tid)? {
            self.wait_until_stopped(deadline)?;
            if self.stopped.contains(&tid) {
                self.release(tid)?;
            }
        }
        Ok(())
    }

    /// Seizes those that were not seen yet, and asks them to stop; whether something is new since the last look.
    fn seize_new_threads(&mut self) -> Result<bool> {
        let listed = facts::threads(self.pid)?;
        // The kernel ends the list early where a thread ends while it is read.
        let mut is_new = listed.len() != facts::thread_count(self.pid)?;
        for tid in listed {
            if [&self.stopped, &self.running, &self.ended].iter().any(|known| known.contains(&tid)) {
                continue;
            }
            // Also if it ended since the list was read: it may have started another one before.
            is_new = true;
            if is_dead(self.pid, tid) {
                self.ended.insert(tid);
                continue;
            }
            match ptrace::seize(tid, Options::PTRACE_O_TRACESYSGOOD) {
                Ok(()) => drop(self.interrupt(tid)?),
                Err(Errno::ESRCH) => {}
                Err(Errno::EPERM) if is_dead(self.pid, tid) => {}
                Err(error) => return Err(Error::call("ptrace seize", tid.as_raw(), error)),
            }
        }
        Ok(is_new)
    }

    /// Asks a thread to stop; false if it is gone.
    fn interrupt(&mut self, tid: Pid) -> Result<bool> {
        match ptrace::interrupt(tid) {
            Ok(()) => Ok(self.running.insert(tid)),
            Err(Errno::ESRCH) => Ok(false),
            Err(error) => Err(Error::call("ptrace interrupt", tid.as_raw(), error)),
        }
    }

    fn wait_until_stopped(&mut self, deadline: Instant) -> Result<()> {
        while let Some(tid) = self.running.first().copied() {
            match wait_for_stop(self.pid, tid, deadline)? {
                Stop::Interrupted => {
                    self.running.remove(&tid);
                    self.stopped.insert(tid);
                    arch::undo_interruption(self.pid, tid)?;
                }
                // The stop that was asked for comes after the handler was set up.
                Stop::Signal(signal) => resume(tid, signal)?,
                Stop::Group => {
                    self.running.remove(&tid);
                    self.stopped.insert(tid);
                    return Err(Error::GroupStopped { pid: self.pid.as_raw() });
                }
                Stop::Call => resume(tid, None)?,
                Stop::Ended => {
                    self.running.remove(&tid);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Tracees {
    fn drop(&mut self) {
        for tid in std::mem::take(&mut self.running) {
            // It could have stopped since it was last looked at. One that has not stays attached until
            // the calling thread ends: ptrace cannot let go of a thread that runs.
            match wait_for_stop(self.pid, tid, Instant::now()) {
                Ok(Stop::Interrupted | Stop::Group | Stop::Call) => drop(ptrace::detach(tid, None)),
                Ok(Stop::Signal(signal)) => drop(ptrace::detach(tid, signal)),
                Ok(Stop::Ended) | Err(_) => {}
            }
        }
        for tid in std::mem::take(&mut self.stopped) {
            if ptrace::detach(tid, None).is_err() {
                // It has ended, or runs the chain: then it has to be stopped once more.
                let _ = self.stop_and_release(tid, Instant::now() + LAST_PATIENCE);
            }
        }
    }
}

/// Why a traced thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// By PTRACE_INTERRUPT.
    Interrupted,
    /// A signal is about to be delivered; none if nix has no name for it.
    Signal(Option<Signal>),
    /// The whole process was stopped by a signal.
    Group,
    /// At the entry or the exit of a system call.
    Call,
    /// It did not: it is gone.
    Ended,
}

/// Waits until a thread stops. There is no event to wait for with a deadline: waitpid has none, and
/// SIGCHLD reaches the right thread only in a process that has no other. A stop takes some
/// microseconds, so this looks often at first and then at most once in a millisecond.
pub(super) fn wait_for_stop(pid: Pid, tid: Pid, deadline: Instant) -> Result<Stop> {
    let mut pause = Duration::from_micros(5);
    loop {
        match waitpid(tid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {}
            Ok(status) => return Ok(classify(status)),
            Err(Errno::ECHILD) => return Ok(Stop::Ended),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(Error::call("waitpid", tid.as_raw(), error)),
        }
        if Instant::now() >= deadline {
            let place = facts::sleeps_in(pid, tid);
            return Err(Error::Unstoppable { pid: pid.as_raw(), tid: tid.as_raw(), place });
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    }
}

fn classify(status: WaitStatus) -> Stop {
    match status {
        WaitStatus::PtraceEvent(_, Signal::SIGTRAP, PTRACE_EVENT_STOP) => Stop::Interrupted,
        WaitStatus::PtraceEvent(_, _, PTRACE_EVENT_STOP) => Stop::Group,
        WaitStatus::Stopped(_, signal) => Stop::Signal(Some(signal)),
        WaitStatus::PtraceSyscall(_) | WaitStatus::PtraceEvent(..) => Stop::Call,
        WaitStatus::Exited(..) | WaitStatus::Signaled(..) => Stop::Ended,
        WaitStatus::Continued(_) | WaitStatus::StillAlive => Stop::Signal(None),
    }
}

/// Lets a stopped thread run on, still attached.
pub(super) fn resume(tid: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::cont(tid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(Error::call("ptrace cont", tid.as_raw(), error)),
    }
}

fn is_dead(pid: Pid, tid: Pid) -> bool {
    match Status::read(pid, tid) {
        Ok(status) => matches!(status.state, 'Z' | 'X'),
        Err(_) => true,
    }
}

fn refuse_what_cannot_be_held(pid: Pid) -> Result<()> {
    if pid == getpid() {
        return Err(Error::Myself { pid: pid.as_raw() });
    }
    if facts::is_32_bit(pid) {
        return Err(Error::Unsuitable { pid: pid.as_raw(), reason: "it runs a 32-bit program".to_owned() });
    }
    for tid in facts::threads(pid)? {
        let status = match Status::read(pid, tid) {
            Ok(status) => status,
            Err(Error::Gone { .. }) => continue,
            Err(error) => return Err(error),
        };
        if status.tracer != 0 {
            return Err(Error::Traced { pid: pid.as_raw(), tracer: status.tracer });
        }
        if status.state == 'T' {
            return Err(Error::GroupStopped { pid: pid.as_raw() });
        }
        // It could be stopped, but would not run what it is told to before it is thawed.
        if FREEZERS.contains(&&*facts::sleeps_in(pid, tid)) {
            return Err(Error::Frozen { pid: pid.as_raw() });
        }
        if status.state == 'Z' && tid == pid && facts::threads(pid)?.len() == 1 {
            return Err(Error::Gone { pid: pid.as_raw() });
        }
    }
    Ok(())
}

/// The pid that a pidfd stands for, as this process numbers it. An error if that process has ended.
pub(super) fn pid_of(pidfd: std::os::fd::BorrowedFd<'_>) -> Result<Pid> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(&path).map_err(|source| Error::Proc { path: path.clone(), source })?;
    let pid = text
        .lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok())
        .ok_or_else(|| Error::Proc { path, source: io::Error::other("not a pidfd") })?;
    if pid > 0 { Ok(Pid::from_raw(pid)) } else { Err(Error::Gone { pid }) }
}
