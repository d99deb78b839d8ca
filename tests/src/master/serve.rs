//! The ways to wait for requests.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::event::epoll;
use rustix::io::Errno;

use super::cli::{Cli, Wait};
use super::control::{Control, Next, say};
use super::daemon::Mood;
use super::mounts::ReadEnd;
use super::packet::SIZE;
use super::{Shared, lock};

/// Where a command comes from among the event sources of an epoll queue.
const COMMANDS: u64 = u64::MAX;

/// Serves until the end of the process.
pub fn serve(cli: &Cli, shared: &Shared, mut pipes: Vec<ReadEnd>) -> Result<()> {
    if cli.ignore_requests {
        // The only way in which it can stop ignoring them.
        return poll_loop(shared, &pipes, &mut vec![true; pipes.len()], PollTimeout::NONE);
    }
    match cli.wait {
        Wait::Read if cli.single => read_single(shared, pipes),
        Wait::Read => {
            let first = if pipes.is_empty() { bail!("no pipe to read") } else { pipes.remove(0) };
            start_readers(shared, pipes)?;
            start_control(shared)?;
            say("ready");
            read_pipe(shared, &first);
            park_for_ever()
        }
        Wait::Futex => {
            start_readers(shared, pipes)?;
            start_control(shared)?;
            say("ready");
            park_for_ever()
        }
        Wait::Poll | Wait::PollTimeout => {
            // An hour: long enough for any test, and the kernel restarts such a call in another way.
            let timeout =
                if cli.wait == Wait::Poll { PollTimeout::NONE } else { PollTimeout::from(u16::MAX) };
            let mut open: Vec<bool> = vec![true; pipes.len()];
            poll_loop(shared, &pipes, &mut open, timeout)
        }
        Wait::Epoll => epoll_loop(shared, &pipes),
    }
}

fn park_for_ever() -> Result<()> {
    loop {
        thread::park();
    }
}

fn start_readers(shared: &Shared, pipes: Vec<ReadEnd>) -> Result<()> {
    for pipe in pipes {
        let shared = Arc::clone(shared);
        thread::Builder::new().spawn(move || read_pipe(&shared, &pipe)).context("start a reader")?;
    }
    Ok(())
}

fn start_control(shared: &Shared) -> Result<()> {
    let shared = Arc::clone(shared);
    let body = move || {
        let mut control = Control::default();
        while control.read(&shared) == Next::More {}
    };
    thread::Builder::new().spawn(body).context("start the control thread")?;
    Ok(())
}

/// What became of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Handled,
    Nothing,
    HungUp,
}

fn read_one(shared: &Shared, pipe: &OwnedFd) -> Outcome {
    let mut packet = [0; SIZE];
    match rustix::io::read(pipe, &mut packet) {
        Ok(0) => {
            lock(shared).counters.hangups += 1;
            Outcome::HungUp
        }
        Ok(size) => {
            lock(shared).handle(&packet[..size]);
            Outcome::Handled
        }
        Err(Errno::INTR) => {
            lock(shared).counters.interrupted += 1;
            Outcome::Nothing
        }
        Err(Errno::AGAIN) => Outcome::Nothing,
        Err(error) => {
            eprintln!("reference-master: read a pipe: {error}");
            lock(shared).counters.errors += 1;
            Outcome::HungUp
        }
    }
}

/// Reads a pipe until it hangs up. One that does not block is waited for.
fn read_pipe(shared: &Shared, pipe: &OwnedFd) {
    loop {
        match read_one(shared, pipe) {
            Outcome::Handled => {}
            Outcome::HungUp => return,
            Outcome::Nothing => {
                let _ = poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            }
        }
    }
}

fn read_single(shared: &Shared, mut pipes: Vec<ReadEnd>) -> Result<()> {
    let (Some(pipe), true) = (pipes.pop(), pipes.is_empty()) else { bail!("--single wants one pipe") };
    let mut control = Control::default();
    say("ready");
    while read_one(shared, &pipe) != Outcome::HungUp {
        control.read_available(shared);
    }
    loop {
        if control.read(shared) == Next::Closed {
            park_for_ever()?;
        }
    }
}

/// One thread that polls standard input and those pipes that are still open.
fn poll_loop(shared: &Shared, pipes: &[ReadEnd], open: &mut [bool], timeout: PollTimeout) -> Result<()> {
    let stdin = io::stdin();
    let mut control = Control::default();
    let mut commands = Next::More;
    say("ready");
    loop {
        let ignores = lock(shared).mood == Mood::Ignoring;
        let at: Vec<usize> = (0..open.len()).filter(|at| open[*at] && !ignores).collect();
        let mut fds: Vec<PollFd> =
            at.iter().map(|at| PollFd::new(pipes[*at].as_fd(), PollFlags::POLLIN)).collect();
        if commands == Next::More {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => {
                lock(shared).counters.interrupted += 1;
                continue;
            }
            Err(error) => return Err(error).context("poll"),
        }
        for (at, fd) in at.iter().zip(&fds) {
            if fd.any() == Some(true) {
                open[*at] = read_one(shared, &pipes[*at]) != Outcome::HungUp;
            }
        }
        if commands == Next::More && fds.last().and_then(PollFd::any) == Some(true) {
            commands = control.read(shared);
        }
    }
}

/// One thread that waits for standard input and the pipes by epoll.
fn epoll_loop(shared: &Shared, pipes: &[ReadEnd]) -> Result<()> {
    let queue = epoll::create(epoll::CreateFlags::CLOEXEC).context("make an epoll queue")?;
    for (at, pipe) in pipes.iter().enumerate() {
        let data = epoll::EventData::new_u64(at as u64);
        epoll::add(&queue, pipe, data, epoll::EventFlags::IN).context("add a pipe")?;
    }
    let stdin = io::stdin();
    // A regular file or /dev/null cannot be waited for, and has no commands.
    let _ = epoll::add(&queue, &stdin, epoll::EventData::new_u64(COMMANDS), epoll::EventFlags::IN);
    let mut control = Control::default();
    say("ready");
    loop {
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&queue, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) => {}
            Err(Errno::INTR) => {
                lock(shared).counters.interrupted += 1;
                continue;
            }
            Err(error) => return Err(error).context("wait for events"),
        }
        for event in events {
            match event.data.u64() {
                COMMANDS => {
                    if control.read(shared) == Next::Closed {
                        epoll::delete(&queue, &stdin).context("leave standard input")?;
                    }
                }
                at => {
                    let Some(pipe) = pipes.get(at as usize) else { continue };
                    if read_one(shared, pipe) == Outcome::HungUp {
                        epoll::delete(&queue, pipe).context("leave a pipe")?;
                    }
                }
            }
        }
    }
}
