//! Architectures without an engine: everything is refused before anything is touched.

use std::io;

use nix::unistd::Pid;

use super::batch::Batch;
use super::error::{Error, Result};
use super::facts::Mapping;

pub(super) const REPORT: usize = 0;
pub(super) const INDEX: usize = 8;

pub(super) fn undo_interruption(_: Pid, _: Pid) -> Result<()> {
    Err(Error::Architecture)
}

pub(super) fn stack_pointer(_: Pid) -> Result<u64> {
    Err(Error::Architecture)
}

pub(super) fn encoded_size(_: &Batch<'_>) -> usize {
    0
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Gadgets;

impl Gadgets {
    pub fn find(_: Pid, _: &[Mapping]) -> Result<Self> {
        Err(Error::Architecture)
    }

    pub fn runs_chain(self, _: Pid, _: Pid) -> Result<bool> {
        Err(Error::Architecture)
    }
}

/// There is no value of this type.
#[derive(Clone, Debug)]
pub(super) enum Spot {}

impl Spot {
    pub fn examine(
        _: Pid,
        _: Pid,
        _: &[Mapping],
        _: &[(Pid, u64)],
    ) -> Result<std::result::Result<Self, String>> {
        Err(Error::Architecture)
    }

    pub fn rank(&self) -> u64 {
        match *self {}
    }

    pub fn tid(&self) -> Pid {
        match *self {}
    }

    pub fn layout(&self) -> Layout {
        match *self {}
    }
}

/// There is no value of this type.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layout {}

impl Layout {
    pub fn batch_room(&self) -> usize {
        match *self {}
    }

    pub fn sockets(&self) -> u64 {
        match *self {}
    }
}

pub(super) struct Chain {
    pub layout: Layout,
}

impl Chain {
    pub fn new(spot: &Spot, _: Gadgets) -> Self {
        match *spot {}
    }

    pub fn write(&self, _: Pid) -> io::Result<()> {
        match self.layout {}
    }

    pub fn respect_signals(&self, _: Pid) -> Result<()> {
        match self.layout {}
    }

    pub fn start(&self, _: Pid) -> Result<()> {
        match self.layout {}
    }

    pub fn call_result(&self, _: Pid) -> Result<Option<i64>> {
        match self.layout {}
    }

    pub fn encode(&self, _: &Batch<'_>, _: i32) -> Vec<u8> {
        match self.layout {}
    }

    pub fn received(_: &[u8]) -> usize {
        0
    }
}
