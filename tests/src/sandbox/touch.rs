//! Touches of triggers.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use autofs_cr_common::model::Pid;
use nix::errno::Errno;

use super::process::{Place, Process};
use super::{DEADLINE, End, program};

/// Why a touch did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TouchError {
    /// The kernel said so.
    Errno(Errno),
    /// A signal killed it.
    Killed(i32),
    /// It did not end in time; it was killed.
    Deadline,
    /// The touch itself went wrong.
    Other(String),
}

impl std::fmt::Display for TouchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Errno(errno) => errno.fmt(f),
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
            Self::Deadline => f.write_str("it did not end in time"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for TouchError {}

/// A process that opens a path.
pub struct Touch(Process);

impl Touch {
    pub(super) fn start(place: Place, path: &Path) -> Result<Self> {
        let helper = program("sandbox-init");
        let mut process = Process::start(place, helper.as_os_str(), |command| {
            command.arg("touch").arg(path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())
        })?;
        process.collect_output();
        Ok(Self(process))
    }

    /// Its pid, as the test sees it.
    pub fn pid(&self) -> Pid {
        self.0.pid()
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.0
    }

    /// Whether it has ended; it goes on otherwise.
    pub fn has_ended(&mut self) -> bool {
        !self.0.is_running()
    }

    /// Waits until it is blocked in autofs.
    ///
    /// # Panics
    /// When it is not within the usual deadline, or ends.
    pub fn wait_until_blocked(&mut self) {
        let pid = self.pid();
        super::wait_until_blocked(&mut self.0, 1, || vec![pid]);
    }

    /// Waits for what came of it, under the usual deadline.
    pub fn join(self) -> Result<String, TouchError> {
        self.join_within(DEADLINE)
    }

    /// Waits for what came of it.
    pub fn join_within(mut self, deadline: Duration) -> Result<String, TouchError> {
        let end = self.0.wait(deadline).map_err(|error| TouchError::Other(format!("{error:#}")))?;
        let Some(end) = end else {
            let _ = self.0.kill();
            return Err(TouchError::Deadline);
        };
        self.outcome(end)
    }

    /// Kills it with SIGKILL.
    pub fn kill(mut self) -> Result<(), TouchError> {
        let end = self.0.kill().map_err(|error| TouchError::Other(format!("{error:#}")))?;
        self.outcome(end).map(drop)
    }

    fn outcome(&mut self, end: End) -> Result<String, TouchError> {
        let (stdout, stderr) = self.0.output();
        match end {
            End::Exit(0) => Ok(stdout),
            End::Signal(signal) => Err(TouchError::Killed(signal)),
            End::Exit(_) => match stderr.trim().parse() {
                Ok(errno) => Err(TouchError::Errno(Errno::from_raw(errno))),
                Err(_) => Err(TouchError::Other(stderr)),
            },
        }
    }
}
