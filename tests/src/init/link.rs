//! The helper's end of the link to the test.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A connection to the test that started this process.
pub struct Link(UnixStream);

impl Link {
    /// Connects to the abstract socket `name`.
    pub fn connect(name: &str) -> Result<Self> {
        let address = SocketAddr::from_abstract_name(name).context("name the link")?;
        UnixStream::connect_addr(&address).map(Self).context("connect to the test")
    }

    /// Tells one thing.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes()).context("tell the test")
    }

    /// Waits for the end of `child`, and tells it; when the link closes first, kills it.
    pub fn watch(&mut self, child: &mut Child) -> Result<ExitStatus> {
        let pid = Pid::from_child(child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd")?;
        let mut fds =
            [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, PollTimeout::NONE).context("wait for the child")?;
        if fds[0].any() != Some(true) {
            child.kill().context("end the child")?;
        }
        let status = child.wait().context("reap the child")?;
        // The test may be gone already.
        let _ = self.tell(&describe(status));
        Ok(status)
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    }
}
