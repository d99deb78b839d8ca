//! The many processes of a large host: each holds many descriptors and sleeps.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use autofs_cr_common::sys::process::{Fork, exit_child, fork};
use rustix::pipe::pipe;

use crate::cli::CrowdOrder;

/// The subcommand: starts the processes, and ends when each has all its descriptors. They live on, and end with
/// the pid namespace that they are in.
pub fn run(order: &CrowdOrder) -> Result<()> {
    let (ready, tell) = pipe().context("make a pipe")?;
    for _ in 0..order.processes {
        if let Fork::Child = fork().context("start a process")? {
            exit_child(u8::from(live(order.descriptors, &tell).is_err()));
        }
    }
    drop(tell);
    let mut count = 0;
    let mut bytes = [0; 4096];
    loop {
        match rustix::io::read(&ready, &mut bytes).context("hear from the processes")? {
            0 => break,
            read => count += read,
        }
        if count == order.processes {
            return Ok(());
        }
    }
    ensure!(count == order.processes, "only {count} of {} processes are ready", order.processes);
    Ok(())
}

/// What each of them does.
fn live(descriptors: usize, tell: &OwnedFd) -> Result<()> {
    let held = open(descriptors)?;
    // Who started the crowd reads its output to the end.
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    rustix::io::write(tell, b".")?;
    loop {
        nix::unistd::pause();
        // What it holds is held until here, which is never left.
        std::hint::black_box(&held);
    }
}

/// Opens sockets, pipes and files by turns, until this process has as many descriptors.
fn open(descriptors: usize) -> Result<Vec<OwnedFd>> {
    let mut held = Vec::new();
    while held.last().is_none_or(|last: &OwnedFd| (last.as_raw_fd() as usize) + 1 < descriptors) {
        match held.len() % 5 {
            0 => {
                let (one, other) = UnixStream::pair()?;
                held.extend([one.into(), other.into()]);
            }
            2 => {
                let (read, write) = pipe()?;
                held.extend([read, write]);
            }
            _ => held.push(File::open("/proc/self/exe")?.into()),
        }
    }
    Ok(held)
}
