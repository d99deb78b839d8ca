//! What a process must have again when a fixup is through with it, however that ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use autofs_cr_common::model::Pid;
use nix::sys::ptrace::{self, Options, regset};
use nix::sys::wait::{WaitPidFlag, waitpid};

use super::DEADLINE;

/// How long a process still needs after the end of a fixup.
const SOON: Duration = Duration::from_secs(5);

/// Descriptors, signals, what each thread is blocked in, and if asked for its registers.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    /// By its number: what each is open on, and with which flags.
    pub descriptors: BTreeMap<String, String>,
    signals: BTreeMap<String, String>,
    blocked_in: BTreeMap<String, String>,
    registers: Option<BTreeMap<String, String>>,
    is_busy: bool,
}

impl Traces {
    fn of(pid: Pid, with_registers: bool) -> Result<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let mut descriptors = BTreeMap::new();
        for entry in std::fs::read_dir(directory.join("fd"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // One that was closed since the folder was read is none.
            let info = std::fs::read_to_string(directory.join("fdinfo").join(&name));
            let (Ok(info), Ok(target)) = (info, std::fs::read_link(entry.path())) else { continue };
            let flags = info.lines().find(|line| line.starts_with("flags:")).unwrap_or_default();
            descriptors.insert(name, format!("{} {flags}", target.display()));
        }
        let (mut signals, mut blocked_in) = (BTreeMap::new(), BTreeMap::new());
        for path in threads(&directory)? {
            let thread = path.display().to_string();
            let status = std::fs::read_to_string(path.join("status"))?;
            let lines = status.lines().filter(|line| {
                ["SigPnd", "SigBlk", "SigIgn", "SigCgt", "TracerPid"]
                    .iter()
                    .any(|name| line.starts_with(name))
            });
            signals.insert(thread.clone(), lines.collect::<Vec<_>>().join(" "));
            blocked_in.insert(thread, system_call(&path)?);
        }
        let registers = with_registers.then(|| registers(&directory)).transpose()?;
        Ok(Self { descriptors, signals, blocked_in, registers, is_busy: false })
    }

    /// When every thread is blocked, as after a while.
    pub fn at_rest(pid: Pid) -> Result<Self> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let traces = Self::of(pid, false)?;
            let at_rest = traces.blocked_in.values().all(|call| call != "running");
            if at_rest || Instant::now() > deadline {
                return Ok(traces);
            }
            std::thread::yield_now();
        }
    }

    /// The same, with the registers and the floating-point state of each thread. They are read by ptrace, after which
    /// epoll_wait(2) fails with EINTR: not for who waits in that.
    pub fn with_registers(pid: Pid) -> Result<Self> {
        Self::at_rest(pid)?;
        Self::of(pid, true)
    }

    /// For a process that also does other things, as systemd does: what it had open for those, it may close.
    #[must_use]
    pub fn of_a_busy_one(self) -> Self {
        Self { is_busy: true, ..self }
    }

    fn may_be_closed(&self, descriptor: &str) -> bool {
        self.is_busy && !descriptor.starts_with("pipe:")
    }

    /// Fails unless the process soon is as it was.
    pub fn assert_left_by(&self, pid: Pid) -> Result<()> {
        self.assert_left_but_for(pid, &[])
    }

    /// The same, where these descriptors may be open on something else.
    pub fn assert_left_but_for(&self, pid: Pid, but_for: &[i32]) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            // Registers only at rest: a thread on its way there has others.
            let mut now = Self::of(pid, false)?;
            if now.blocked_in == self.blocked_in && now.signals == self.signals && self.registers.is_some() {
                now = Self::of(pid, true)?;
            }
            now.is_busy = self.is_busy;
            for number in but_for.iter().map(ToString::to_string) {
                let before = self.descriptors.get(&number).cloned().unwrap_or_default();
                now.descriptors.entry(number).and_modify(|now| *now = before);
            }
            for (number, what) in self.descriptors.iter().filter(|(_, what)| self.may_be_closed(what)) {
                now.descriptors.entry(number.clone()).or_insert_with(|| what.clone());
            }
            if now == *self {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it is not as it was: {:#?}", self.differences(&now));
            std::thread::yield_now();
        }
    }

    /// What was, and what is.
    fn differences<'a>(&'a self, now: &'a Self) -> Vec<(&'a String, Option<&'a String>, Option<&'a String>)> {
        let pairs = [
            (Some(&self.descriptors), Some(&now.descriptors)),
            (Some(&self.signals), Some(&now.signals)),
            (Some(&self.blocked_in), Some(&now.blocked_in)),
            (self.registers.as_ref(), now.registers.as_ref()),
        ];
        let all = pairs.into_iter().filter_map(|(before, after)| Some((before?, after?)));
        let all = all.flat_map(|(before, after)| {
            let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            keys.into_iter().map(|key| (key, before.get(key), after.get(key)))
        });
        all.filter(|(_, before, after)| before != after).collect()
    }
}

fn threads(process: &Path) -> Result<Vec<PathBuf>> {
    std::fs::read_dir(process.join("task"))?.map(|entry| Ok(entry?.path())).collect()
}

/// The system call that a thread is blocked in: its arguments, stack pointer and instruction pointer. The
/// number is left out, as a call with a timeout that was interrupted goes on as restart_syscall(2).
fn system_call(task: &Path) -> Result<String> {
    let text = std::fs::read_to_string(task.join("syscall"))?;
    Ok(text.trim().split_once(' ').map_or(text.trim(), |(_, rest)| rest).to_owned())
}

/// The registers of each thread that is blocked in a system call, for which it is stopped an instant.
fn registers(process: &Path) -> Result<BTreeMap<String, String>> {
    let read = |path: PathBuf| {
        let tid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let tid = nix::unistd::Pid::from_raw(tid.context("no number of a thread")?);
        ptrace::seize(tid, Options::empty()).context("stop a thread")?;
        ptrace::interrupt(tid)?;
        waitpid(tid, Some(WaitPidFlag::__WALL))?;
        let mut general = ptrace::getregs(tid)?;
        // Those have the number and the result of the call, which is made once more when it goes on.
        (general.rax, general.orig_rax) = (0, 0);
        let floating = ptrace::getregset::<regset::NT_PRFPREG>(tid)?;
        ptrace::detach(tid, None)?;
        Ok((format!("registers of {tid}"), format!("{general:x?} {floating:x?}")))
    };
    threads(process)?.into_iter().map(read).collect()
}
