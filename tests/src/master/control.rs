//! Commands on standard input, answers on standard output.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use super::daemon::Mood;
use super::{Shared, lock};

/// What a read of commands says about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There may be more.
    More,
    /// No more will come.
    Closed,
}

/// Commands as they come: whole lines are acted on, the rest waits for more.
#[derive(Debug, Default)]
pub struct Control {
    pending: Vec<u8>,
}

impl Control {
    /// Reads once from standard input and does what whole lines say.
    pub fn read(&mut self, shared: &Shared) -> Next {
        let mut bytes = [0; 4096];
        match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(0) => return Next::Closed,
            Ok(count) => self.pending.extend_from_slice(&bytes[..count]),
            Err(rustix::io::Errno::INTR) => lock(shared).counters.interrupted += 1,
            Err(_) => return Next::Closed,
        }
        while let Some(at) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=at).collect();
            command(shared, String::from_utf8_lossy(&line).trim_end());
        }
        Next::More
    }

    /// Does what was said so far, without waiting.
    pub fn read_available(&mut self, shared: &Shared) {
        let stdin = io::stdin();
        loop {
            let mut fds = [nix::poll::PollFd::new(stdin.as_fd(), nix::poll::PollFlags::POLLIN)];
            let ready = nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO);
            if ready != Ok(1) || self.read(shared) == Next::Closed {
                return;
            }
        }
    }
}

/// Prints one line at once.
pub fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    // Nobody may listen any more.
    let _ = stdout.write_all(format!("{line}\n").as_bytes()).and_then(|()| stdout.flush());
}

fn command(shared: &Shared, line: &str) {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("report", "") => {
            let report = lock(shared).report();
            say(&serde_json::to_string(&report).unwrap_or_else(|error| format!("error: {error}")));
        }
        ("expire", path) => expire(shared, path),
        ("serve", "") => {
            lock(shared).mood = Mood::Serving;
            say("serving");
        }
        ("swallow", "") => {
            lock(shared).mood = Mood::Swallowing;
            say("swallowing");
        }
        ("quit", "") => std::process::exit(0),
        _ => say(&format!("error: unknown command '{line}'")),
    }
}

/// Has the kernel expire something, in a thread: the call waits until the master has answered.
fn expire(shared: &Shared, path: &str) {
    let (shared, path) = (shared.clone(), path.to_owned());
    std::thread::spawn(move || {
        let said = match expire_once(&shared, &path) {
            Ok(()) => format!("expire {path}: 0"),
            Err(error) => {
                let errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
                format!("expire {path}: {}", errno.unwrap_or(-1))
            }
        };
        say(&said);
    });
}

fn expire_once(shared: &Shared, path: &str) -> anyhow::Result<()> {
    let root = lock(shared).root_at(Path::new(path))?;
    // A device of its own: the lock must not be held while the kernel waits for an answer.
    let device = autofs_cr_common::sys::autofs::ControlDevice::open()?;
    Ok(device.expire(root.as_fd(), true)?)
}
