//! The thread that traces.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use autofs_cr_common::model::Pid;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid as Tid;

use super::Point;

/// How long a thread may take to stop. One that sleeps where only the kernel can wake it does not.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the thread tells.
pub(super) enum Said {
    /// The point is reached, with this call; these threads are held.
    Held { call: u64, threads: Vec<Pid> },
    /// The family ended before, after so many calls.
    Ended(u64),
    /// All are let go.
    LetGo,
    /// It cannot trace.
    Failed(Errno),
}

/// How a thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    /// It is stopped, and gets this signal when it goes on.
    Stopped(Option<Signal>),
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The helper has not yet stopped itself. It may still be seen to execute its own program.
    Before,
    /// The next program that the helper executes is the command.
    Ready,
    Counting,
    /// All are to stop.
    Holding,
}

pub(super) struct Tracer {
    tool: Tid,
    point: Point,
    count: u64,
    phase: Phase,
    threads: HashMap<Tid, State>,
    said: Sender<Said>,
    go_on: Receiver<()>,
}

/// What a stop is.
#[derive(Clone, Copy)]
enum Stop {
    Ended(Tid),
    /// A system call begins or is over.
    Call(Tid),
    /// The helper has become the command.
    Executed(Tid),
    /// It has a new child or thread, which is traced too.
    Forked(Tid),
    /// Something else, after which the signal is handed on.
    Other(Tid, Option<Signal>),
}

impl Tracer {
    pub(super) fn new(tool: Pid, point: Point, said: Sender<Said>, go_on: Receiver<()>) -> Self {
        let (count, phase, threads) = (0, Phase::Before, HashMap::new());
        Self { tool: tool.to_nix(), point, count, phase, threads, said, go_on }
    }

    pub(super) fn run(mut self) {
        let said = match self.trace() {
            Ok(said) => said,
            Err(error) => Said::Failed(error),
        };
        let _ = self.said.send(said);
    }

    fn trace(&mut self) -> nix::Result<Said> {
        self.seize()?;
        loop {
            let Some(stop) = wait(None)? else { return Ok(Said::Ended(self.count)) };
            if let Some(call) = self.handle(stop)? {
                self.hold()?;
                let threads = self.threads.keys().filter_map(|&tid| Pid::from_nix(tid)).collect();
                let _ = self.said.send(Said::Held { call, threads });
                let _ = self.go_on.recv();
                return self.let_go();
            }
        }
    }

    /// Attaches to the helper, which has stopped or stops itself before it becomes the command.
    fn seize(&mut self) -> nix::Result<()> {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(self.tool, options)?;
        self.threads.insert(self.tool, State::Runs);
        Ok(())
    }

    /// The number of the system call that begins, if that is the point.
    fn handle(&mut self, stop: Stop) -> nix::Result<Option<u64>> {
        match stop {
            Stop::Ended(tid) => drop(self.threads.remove(&tid)),
            Stop::Call(tid) => {
                self.threads.insert(tid, State::Stopped(None));
                if let Some(call) = self.counted(tid) {
                    self.count += 1;
                    if self.count == self.point.number {
                        return Ok(Some(call));
                    }
                }
                self.resume(tid)?;
            }
            Stop::Executed(tid) => {
                if tid == self.tool && self.phase == Phase::Ready {
                    self.phase = Phase::Counting;
                }
                self.threads.insert(tid, State::Stopped(None));
                self.resume(tid)?;
            }
            Stop::Forked(tid) => {
                let new = ptrace::getevent(tid).unwrap_or_default();
                // It may have stopped for the first time already.
                self.threads.entry(Tid::from_raw(new as i32)).or_insert(State::Runs);
                self.threads.insert(tid, State::Stopped(None));
                self.resume(tid)?;
            }
            Stop::Other(tid, signal) => {
                let signal = self.handed_on(tid, signal);
                self.threads.insert(tid, State::Stopped(signal));
                self.resume(tid)?;
            }
        }
        Ok(None)
    }

    /// The call that a thread is about to make, if it is one that counts.
    fn counted(&self, tid: Tid) -> Option<u64> {
        let entered = ptrace::syscall_info(tid).is_ok_and(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY);
        let call = entered.then(|| ptrace::getregs(tid).ok())??.orig_rax;
        self.point.of.has(call).then_some(call)
    }

    /// The stop that the helper waits for this thread with is over.
    fn handed_on(&mut self, tid: Tid, signal: Option<Signal>) -> Option<Signal> {
        let is_before = matches!(self.phase, Phase::Before | Phase::Ready);
        if is_before && signal == Some(Signal::SIGSTOP) {
            self.phase = Phase::Ready;
            let _ = kill(tid, Signal::SIGCONT);
            return None;
        }
        signal
    }

    fn resume(&mut self, tid: Tid) -> nix::Result<()> {
        if self.phase == Phase::Holding {
            return Ok(());
        }
        let Some(State::Stopped(signal)) = self.threads.insert(tid, State::Runs) else { return Ok(()) };
        let resumed = match self.phase {
            Phase::Before | Phase::Ready => ptrace::cont(tid, signal),
            Phase::Counting | Phase::Holding => ptrace::syscall(tid, signal),
        };
        unless_gone(resumed)
    }

    /// Stops all.
    fn hold(&mut self) -> nix::Result<()> {
        self.phase = Phase::Holding;
        for tid in self.running() {
            unless_gone(ptrace::interrupt(tid))?;
        }
        let deadline = Instant::now() + PATIENCE;
        while !self.running().is_empty() && Instant::now() < deadline {
            match wait(Some(WaitPidFlag::WNOHANG))? {
                Some(stop) => drop(self.handle(stop)?),
                None => std::thread::yield_now(),
            }
        }
        Ok(())
    }

    fn running(&self) -> Vec<Tid> {
        let running = self.threads.iter().filter(|(_, state)| **state == State::Runs);
        running.map(|(tid, _)| *tid).collect()
    }

    /// Traces nobody any more.
    fn let_go(&mut self) -> nix::Result<Said> {
        let stopped: Vec<(Tid, State)> = self.threads.drain().collect();
        let (stopped, running): (Vec<_>, Vec<_>) =
            stopped.into_iter().partition(|(_, state)| *state != State::Runs);
        for (tid, state) in stopped {
            let State::Stopped(signal) = state else { continue };
            unless_gone(ptrace::detach(tid, signal))?;
        }
        if !running.is_empty() {
            let _ = self.said.send(Said::LetGo);
        }
        self.threads.extend(running);
        // Who could not be held stops when the kernel wakes it. Those that were killed are reaped here or when this
        // thread ends.
        while !self.threads.is_empty() {
            match wait(None)? {
                None => break,
                Some(Stop::Ended(tid)) => drop(self.threads.remove(&tid)),
                Some(Stop::Call(tid) | Stop::Executed(tid) | Stop::Forked(tid) | Stop::Other(tid, _)) => {
                    self.threads.remove(&tid);
                    unless_gone(ptrace::detach(tid, None))?;
                }
            }
        }
        Ok(Said::LetGo)
    }
}

/// The next stop of any thread that this one traces; none if there is no such thread, or with WNOHANG if none has
/// stopped.
fn wait(flag: Option<WaitPidFlag>) -> nix::Result<Option<Stop>> {
    // Only those of this thread: other threads of the test have children of their own.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | flag.unwrap_or(WaitPidFlag::empty());
    loop {
        return Ok(Some(match waitpid(None::<Tid>, Some(flags)) {
            Ok(WaitStatus::Exited(tid, _) | WaitStatus::Signaled(tid, ..)) => Stop::Ended(tid),
            Ok(WaitStatus::PtraceSyscall(tid)) => Stop::Call(tid),
            Ok(WaitStatus::PtraceEvent(tid, _, libc::PTRACE_EVENT_EXEC)) => Stop::Executed(tid),
            Ok(WaitStatus::PtraceEvent(
                tid,
                _,
                libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE,
            )) => Stop::Forked(tid),
            // The stop of a group: the signal was handed on before.
            Ok(WaitStatus::PtraceEvent(tid, Signal::SIGSTOP, _)) => Stop::Other(tid, Some(Signal::SIGSTOP)),
            Ok(WaitStatus::PtraceEvent(tid, ..)) => Stop::Other(tid, None),
            Ok(WaitStatus::Stopped(tid, signal)) => Stop::Other(tid, Some(signal)),
            Ok(WaitStatus::Continued(_)) => continue,
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        }));
    }
}

/// A thread that is killed just now cannot be told anything.
fn unless_gone(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ESRCH) => Ok(()),
        result => result,
    }
}
