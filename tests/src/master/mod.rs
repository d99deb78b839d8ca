//! The reference master: a small autofs daemon, like automount(8) or systemd in what matters.
//!
//! | module | role |
//! |---|---|
//! | [`cli`] | its options |
//! | [`packet`] | the kernel's requests as they come out of the pipe |
//! | [`mounts`] | mounting autofs, or finding the mounts to take over |
//! | [`daemon`] | answering requests |
//! | [`serve`] | the ways to wait for them |
//! | [`control`] | commands on standard input |
//! | [`report`] | what it says about itself |
//!
//! It answers a request by mounting a tmpfs (source `content`) on the trigger, with a file
//! `served-by` that holds its pid and the number of serves so far.

mod cli;
mod control;
mod daemon;
mod idle;
mod mounts;
pub mod packet;
pub mod report;
mod serve;

pub use cli::{Cli, Identity, Pipes, Wait, WriteEnd};

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use nix::unistd::{Pid, setpgid};

use daemon::Daemon;

/// The daemon, shared by its threads.
type Shared = Arc<Mutex<Daemon>>;

/// Takes the lock. A thread that panicked has ended the daemon already.
fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, Daemon> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Mounts, or takes over, and serves until `quit` or the end of the process.
pub fn run(cli: &Cli) -> Result<()> {
    // First of all, before any other descriptor is opened.
    let inherited = cli.pipe_fd.map(mounts::inherited_pipe).transpose()?;
    if !cli.no_setpgid {
        become_group_leader()?;
    }
    let (daemon, pipes) = match inherited {
        Some(pipe) => mounts::take_over(cli, pipe)?,
        None => mounts::mount_all(cli)?,
    };
    idle::start(cli.threads)?;
    serve::serve(cli, &Arc::new(Mutex::new(daemon)), pipes)
}

fn become_group_leader() -> Result<()> {
    let this = Pid::this();
    if nix::unistd::getpgrp() == this {
        return Ok(());
    }
    setpgid(this, this).context("make a process group")
}
