//! The engine in a process of its own, so that a test can kill it at any instant.
//!
//! `remote-driver PID NUMBER FILE` waits for one byte on standard input, then replaces descriptor NUMBER of
//! process PID with FILE, in a session of two batches, the second of which is sent while the first may still run.
#![forbid(unsafe_code)]

use std::env;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use autofs_fixup::remote::{Batch, Data, Stopped};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [pid, number, file] = arguments.as_slice() else { anyhow::bail!("usage: PID NUMBER FILE") };
    let pid = Pid::from_raw(pid.parse()?).context("pid 0")?;
    let number = number.parse()?;
    let file = File::open(file)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    std::io::stdin().read_exact(&mut [0])?;

    let deadline = Instant::now() + Duration::from_secs(20);
    let mut session = Stopped::attach(pidfd.as_fd(), deadline)?.start(deadline)?;
    let mut first = Batch::new();
    let received = first.receive(file.as_fd());
    first.receive(file.as_fd());
    // A request that no file knows: the call fails, and the batch goes on.
    first.ioctl(received, 0, Data::new([0; 8]).with_number(4, received));
    ensure!(session.send(&first)?, "the first batch does not fit");
    let mut second = Batch::new();
    let received = second.receive(file.as_fd());
    second.replace(number, received, true);
    ensure!(session.send(&second)?, "the second batch does not fit");
    session.wait(deadline)?;
    session.wait(deadline)?;
    session.finish(deadline)?;
    Ok(())
}
