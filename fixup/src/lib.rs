//! The parts of autofs-fixup: how a master is connected to its mounts from its own context.
#![forbid(unsafe_code)]

pub mod remote;
