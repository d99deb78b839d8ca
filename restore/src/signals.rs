//! The signals that ask for the end. They are blocked until they are events, so that none of them can end
//! restore between two stages and leave something behind.

use nix::sys::signal::{SigSet, Signal};

/// From a terminal that closes, a user, or a service manager.
pub const ENDING: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// Keeps them pending, in this thread and those it starts.
pub fn block() -> nix::Result<()> {
    ending().thread_block()
}

/// Lets them come, also those that are pending.
pub fn unblock() -> nix::Result<()> {
    ending().thread_unblock()
}

fn ending() -> SigSet {
    ENDING.into_iter().collect()
}
