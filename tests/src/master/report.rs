//! What the reference master says about itself: one line of JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// All that it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its pid, in its own pid namespace.
    pub pid: i32,
    /// Its mounts, in the order in which it made them.
    pub mounts: Vec<MountReport>,
    /// What it counted.
    pub counters: Counters,
}

/// What it remembers of one mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountReport {
    /// The mount point.
    pub path: PathBuf,
    /// The device that it remembers, `major:minor`.
    pub device: String,
    /// The inode of the root that it remembers.
    pub inode: u64,
    /// The number of the control descriptor that it keeps.
    pub control_fd: Option<i32>,
    /// The number of the pipe's read end.
    pub read_fd: i32,
}

/// What it counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests answered with content.
    pub served: u64,
    /// Expire requests answered.
    pub expired: u64,
    /// Requests answered with an error.
    pub failed: u64,
    /// Requests for a mount that it does not know, which it did not answer.
    pub ignored: u64,
    /// Requests whose wait had ended before the answer: the mount was catatonic in between.
    pub stale: u64,
    /// Requests that it read and swallowed on purpose.
    pub swallowed: u64,
    /// Pipes at whose end it came: the last write end was closed.
    pub hangups: u64,
    /// System calls that were interrupted.
    pub interrupted: u64,
    /// Other errors: of a system call, or an answer that the kernel refused.
    pub errors: u64,
}
