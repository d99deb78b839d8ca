//! Giving superblocks their device numbers.
//!
//! The kernel hands out the lowest free number (`get_anon_bdev` in fs/super.c), and a number is free
//! again as soon as its superblock is gone. So superblocks are made until the wanted number comes; those
//! with a lower one are kept as fillers until the end, and let go when their number is wanted. Each
//! number is filled at most once, so the work grows with the highest number and not with the
//! square of the mounts.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use autofs_cr_common::model::Device;

use super::superblock::device;

/// How long a number may be taken that was free when the plan was made, or was freed just now: something
/// that mounts for a moment, as a service that starts does, lets it go again.
const PATIENCE: Duration = Duration::from_secs(1);

/// When such a number is tried again first: whoever holds it may be through with it at once. Each next time is twice as long.
const SHORTEST: Duration = Duration::from_micros(50);

/// And at last it is tried that often.
const LONGEST: Duration = Duration::from_millis(2);

/// Superblocks that hold device numbers which are not wanted yet.
#[derive(Debug, Default)]
pub struct Numbers {
    fillers: BTreeMap<u32, OwnedFd>,
}

/// Why a superblock did not get its number.
#[derive(Debug, thiserror::Error)]
pub enum NumberError {
    /// Something on the host has it.
    #[error("device {0} is taken by something else on this host")]
    Taken(Device),
    /// No superblock could be made.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Numbers {
    /// Makes a superblock with this number by `create`, which gives a mount of a new one.
    pub fn make(
        &mut self,
        wanted: Device,
        mut create: impl FnMut() -> io::Result<OwnedFd>,
    ) -> Result<OwnedFd, NumberError> {
        self.fillers.remove(&wanted.minor);
        let (deadline, mut pause) = (Instant::now() + PATIENCE, SHORTEST);
        loop {
            let made = create()?;
            let got = device(&made)?;
            if got == wanted {
                return Ok(made);
            }
            if got.minor < wanted.minor {
                self.fillers.insert(got.minor, made);
            } else if Instant::now() < deadline {
                // Nothing tells when a number is free again, so it has to be tried.
                sleep(pause);
                pause = LONGEST.min(pause * 2);
            } else {
                return Err(NumberError::Taken(wanted));
            }
        }
    }

    /// Makes a superblock with any number but those that are wanted for others.
    pub fn any_but(
        &mut self,
        wanted: impl Fn(Device) -> bool,
        mut create: impl FnMut() -> io::Result<OwnedFd>,
    ) -> io::Result<OwnedFd> {
        loop {
            let made = create()?;
            let got = device(&made)?;
            if !wanted(got) {
                return Ok(made);
            }
            self.fillers.insert(got.minor, made);
        }
    }

    /// Lets all fillers go.
    pub fn release(&mut self) {
        self.fillers.clear();
    }
}
