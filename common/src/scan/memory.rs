//! Texts and numbers in the memory of other processes.
//!
//! A page of theirs may be one that somebody has to bring first (a file on a server that does not answer, a
//! userfaultfd that nobody serves), and reading it waits for that. So a child reads, under a deadline.

use std::io::{self, IoSliceMut};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use serde::{Deserialize, Serialize};

use crate::channel::{Channel, ChannelError};
use crate::child::{Child, ask};
use crate::model::Pid;

/// How long one read may take: most take some microseconds.
const DEADLINE: Duration = Duration::from_millis(500);

/// How often a child is lost to a page that does not come before nothing more is read.
const MOST_LOST: usize = 6;

/// The longest path that a system call takes, with its end (PATH_MAX).
const LONGEST: usize = 4096;

/// The smallest page of any machine: what is on one is there as a whole or not at all.
const PAGE: usize = 4096;

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    /// The bytes before the next NUL byte.
    Text,
    /// The four bytes of an `int`.
    Int,
}

/// Reads the memory of other processes.
#[derive(Default)]
pub(super) struct Memory {
    child: Option<Child>,
    lost: usize,
    /// Why no child could be made.
    failure: Option<io::Error>,
}

impl Memory {
    /// The text that ends with a NUL byte at this address of a thread's memory; `None` if it cannot be read.
    pub fn text(&mut self, tid: Pid, address: u64) -> Option<Vec<u8>> {
        self.read(tid, address, What::Text)
    }

    /// The `int` at this address of a thread's memory; `None` if it cannot be read.
    pub fn int(&mut self, tid: Pid, address: u64) -> Option<i32> {
        let bytes = self.read(tid, address, What::Int)?;
        Some(i32::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn read(&mut self, tid: Pid, address: u64, what: What) -> Option<Vec<u8>> {
        if self.lost >= MOST_LOST || self.failure.is_some() {
            return None;
        }
        let child = match &self.child {
            Some(child) => child,
            None => match Child::spawn(|channel| answer(&channel)) {
                Ok(child) => self.child.insert(child),
                Err(error) => {
                    self.failure = Some(error);
                    return None;
                }
            },
        };
        match ask(child, &(tid, address, what), Some(Instant::now() + DEADLINE)) {
            Ok(bytes) => bytes,
            Err(_) => {
                self.give_up();
                None
            }
        }
    }

    /// What kept texts from being read, for people.
    pub fn hidden(&self) -> Option<String> {
        let what = "what some threads that wait asked for";
        match &self.failure {
            Some(error) => Some(format!("{what}: no child could be made to read their memory: {error}")),
            None if self.lost > 0 => Some(format!("{what}: reading their memory did not end in time")),
            None => None,
        }
    }

    /// Leaves a child behind that does not answer. It is killed, but its end is not waited for: a page that a file
    /// server has to bring can keep it for as long as it likes.
    fn give_up(&mut self) {
        self.lost += 1;
        if let Some(child) = self.child.take() {
            let _ = kill(child.pid().to_nix(), Signal::SIGKILL);
            std::mem::forget(child);
        }
    }
}

/// The child's part.
fn answer(channel: &Channel) -> anyhow::Result<()> {
    loop {
        let (tid, address, what): (Pid, u64, What) = match channel.receive(None) {
            Ok((question, _)) => question,
            Err(ChannelError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        channel.send(&read(tid, address, what), &[])?;
    }
}

fn read(tid: Pid, address: u64, what: What) -> Option<Vec<u8>> {
    let longest = match what {
        What::Text => LONGEST,
        What::Int => size_of::<i32>(),
    };
    let mut bytes = vec![0; longest];
    let parts = pages(address, longest)?;
    let length = process_vm_readv(tid.to_nix(), &mut [IoSliceMut::new(&mut bytes)], &parts).ok()?;
    bytes.truncate(length);
    match what {
        What::Text => bytes.truncate(bytes.iter().position(|&byte| byte == 0)?),
        What::Int if length < longest => return None,
        What::Int => {}
    }
    Some(bytes)
}

/// The parts of so many bytes there, page by page: the call stops at the first that cannot be read, and gives
/// what came before.
fn pages(address: u64, length: usize) -> Option<Vec<RemoteIoVec>> {
    let start = usize::try_from(address).ok()?;
    let end = start.checked_add(length)?;
    let border = (start / PAGE + 1).checked_mul(PAGE)?;
    let mut parts = vec![RemoteIoVec { base: start, len: border.min(end) - start }];
    if border < end {
        parts.push(RemoteIoVec { base: border, len: end - border });
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_up_to_its_end() {
        let text = b"/net/a b\0more".to_vec();
        let found = read(Pid::this(), text.as_ptr() as u64, What::Text);
        assert_eq!(found.as_deref(), Some(&b"/net/a b"[..]));
        let number = read(Pid::this(), text.as_ptr() as u64, What::Int);
        assert_eq!(number.as_deref(), Some(&b"/net"[..]));
    }

    #[test]
    fn what_is_no_address_is_no_text() {
        for address in [0, 1, u64::MAX, u64::MAX - 10, 1 << 62] {
            assert_eq!(read(Pid::this(), address, What::Text), None, "{address:#x}");
        }
    }

    #[test]
    fn the_parts_are_pages() {
        let parts = |address| -> Vec<(usize, usize)> {
            pages(address, LONGEST).expect("an address").iter().map(|part| (part.base, part.len)).collect()
        };
        assert_eq!(parts(0x5000), [(0x5000, 4096)]);
        assert_eq!(parts(0x5ff0), [(0x5ff0, 16), (0x6000, 4080)]);
    }
}
