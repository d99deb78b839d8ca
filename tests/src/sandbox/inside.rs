//! The namespaces of a sandbox or a machine, seen from the test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use autofs_cr_common::model::Pid;

use super::process::Place;
use super::{DEADLINE, Finished, TestCommand, Touch, TouchError};

/// The mount and pid namespace of an init, and what can be done in them.
pub struct Inside {
    pid: Pid,
    namespace: PathBuf,
    // The kernel gives the number of a namespace that is gone to the next one; `end_all` must not kill
    // what is in that.
    _held: File,
}

impl Inside {
    /// Those that this process is in.
    pub(crate) fn of(pid: Pid) -> Result<Self> {
        let held = File::open(format!("/proc/{pid}/ns/mnt")).context("open the mount namespace")?;
        let namespace = mount_namespace(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, namespace, _held: held })
    }

    /// The pid of its init as the test sees it: what `-p` takes.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A path inside, as the test can open it. Do not walk onto autofs mounts by it.
    pub fn outside(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        PathBuf::from(format!("/proc/{}/root", self.pid)).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A command inside the namespaces: `sandbox.command("ls").arg("-l").run()`.
    pub fn command(&self, program: impl Into<PathBuf>) -> TestCommand {
        TestCommand::new(program.into()).inside(self)
    }

    /// Runs a command inside, under the usual deadline.
    pub fn run<const N: usize>(&self, words: [&str; N]) -> Finished {
        self.command(words[0]).args(&words[1..]).run()
    }

    /// Opens a path inside, as a process that is not the master: starts a mount if it is a trigger.
    pub fn touch(&self, path: impl AsRef<Path>) -> Result<(), TouchError> {
        self.touch_in_background(path).join().map(drop)
    }

    /// Reads a file inside.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String, TouchError> {
        self.touch_in_background(path).join()
    }

    /// Opens a path inside and does not wait: the handle can be joined or killed.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn touch_in_background(&self, path: impl AsRef<Path>) -> Touch {
        Touch::start(self.place(), path.as_ref()).expect("start a touch")
    }

    pub(super) fn place(&self) -> Place {
        Place { enter: Some(self.pid), ..Place::default() }
    }

    /// The mountinfo of its init.
    ///
    /// # Panics
    /// When its init is gone.
    pub fn mountinfo(&self) -> String {
        mountinfo(self.pid).expect("read the mountinfo of the sandbox")
    }

    /// Those lines of its mountinfo that are autofs mounts. `pgrp=` and the like are as the test sees them.
    pub fn autofs_lines(&self) -> Vec<String> {
        self.mountinfo().lines().filter(|line| line.contains(" - autofs ")).map(str::to_owned).collect()
    }

    /// The line of mountinfo of the topmost mount at a path inside.
    pub fn mount_line(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = path.as_ref().to_string_lossy().into_owned();
        self.mountinfo().lines().rfind(|line| line.split(' ').nth(4) == Some(&path)).map(str::to_owned)
    }

    /// The processes in its mount namespace, as the test sees them.
    pub fn processes(&self) -> Vec<Pid> {
        processes().filter(|pid| mount_namespace(*pid).as_ref() == Some(&self.namespace)).collect()
    }

    /// Fails when a process in it waits in autofs.
    ///
    /// # Panics
    /// When one does.
    pub fn assert_nothing_blocked(&self) {
        let blocked = super::blocked_in_autofs(&self.processes());
        assert!(blocked.is_empty(), "blocked in autofs: {blocked:?}\n{}", self.mountinfo());
    }

    /// Ends every process that is left in the mount namespace, which nobody else can be in.
    pub(crate) fn end_all(&self) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "processes {left:?} do not die");
            for pid in left {
                end_process(pid, deadline);
            }
        }
    }
}

/// Kills a process and waits for its end; one that is gone is fine.
fn end_process(pid: Pid, deadline: Instant) {
    use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(raw) = rustix::process::Pid::from_raw(pid.as_raw()) else { return };
    let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else { return };
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    let mut fds = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&pidfd), nix::poll::PollFlags::POLLIN)];
    let left = deadline.saturating_duration_since(Instant::now());
    let _ = nix::poll::poll(
        &mut fds,
        nix::poll::PollTimeout::try_from(left).unwrap_or(nix::poll::PollTimeout::MAX),
    );
}

/// Which mount namespace a process is in; `None` when it is gone, a zombie, or not visible.
pub(super) fn mount_namespace(pid: Pid) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

pub(super) fn mountinfo(pid: Pid) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// All processes that the test can see.
pub(crate) fn processes() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
