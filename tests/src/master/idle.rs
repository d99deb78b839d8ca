//! Threads that do nothing, each blocked in another system call.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::PollTimeout;
use rustix::event::epoll;
use rustix::pipe::{PipeFlags, pipe_with};

const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// Starts `count` of them.
pub fn start(count: usize) -> Result<()> {
    for number in 0..count {
        let block: fn() = match number % 5 {
            0 => sleep,
            1 => park,
            2 => poll,
            3 => read,
            _ => wait_epoll,
        };
        let name = format!("idle-{number}");
        thread::Builder::new()
            .name(name)
            .spawn(move || {
                loop {
                    block();
                }
            })
            .context("start an idle thread")?;
    }
    Ok(())
}

fn sleep() {
    thread::sleep(LONG);
}

fn park() {
    thread::park();
}

fn poll() {
    let _ = nix::poll::poll(&mut [], PollTimeout::NONE);
}

fn read() {
    if let Ok((read, _write)) = pipe_with(PipeFlags::CLOEXEC) {
        while rustix::io::read(&read, &mut [0; 1]) == Err(rustix::io::Errno::INTR) {}
    }
}

fn wait_epoll() {
    if let Ok(queue) = epoll::create(epoll::CreateFlags::CLOEXEC) {
        let mut events = [std::mem::MaybeUninit::uninit(); 1];
        let _ = epoll::wait(&queue, &mut events, None).map(drop);
    }
}
