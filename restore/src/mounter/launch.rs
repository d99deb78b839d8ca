//! Becoming the init of a fresh namespace.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::OwnedFd;

use anyhow::Context;
use autofs_cr_common::sys::process::default_sigpipe;
use nix::sys::stat::Mode;

/// The command that is executed.
#[derive(Debug)]
pub struct Launch {
    /// The program, looked up in PATH, and its arguments.
    pub command: Vec<CString>,
    /// Its whole environment, as `NAME=VALUE`.
    pub environment: Vec<CString>,
    /// Descriptors that the environment names and the command inherits.
    pub inherited: Vec<OwnedFd>,
}

impl Launch {
    /// Executes the command in place of this process, with this umask.
    pub fn exec(&self, umask: Mode) -> anyhow::Result<Infallible> {
        let program = self.command.first().context("no command was given")?;
        super::fresh::mount_proc().context("cannot mount a fresh /proc")?;
        nix::unistd::chdir("/")?;
        default_sigpipe()?;
        crate::signals::unblock()?;
        nix::sys::stat::umask(umask);
        for fd in &self.inherited {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        nix::unistd::execvpe(program, &self.command, &self.environment)
            .with_context(|| format!("cannot execute {}", program.to_string_lossy()))
    }
}
