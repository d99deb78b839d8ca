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

use autofs_cr_common::model::Device;

use super::superblock::device;

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
        loop {
            let made = create()?;
            let got = device(&made)?;
            if got == wanted {
                return Ok(made);
            }
            if got.minor > wanted.minor {
                return Err(NumberError::Taken(wanted));
            }
            self.fillers.insert(got.minor, made);
        }
    }

    /// Lets all fillers go.
    pub fn release(&mut self) {
        self.fillers.clear();
    }
}
