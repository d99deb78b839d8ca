//! Process ids.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The id of a process, a thread or a process group, in some pid namespace. Never 0 and never
/// negative, so that it cannot be mistaken for "this process", "every process" or a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Pid(NonZeroU32);

/// The number is no process id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is no process id (expected a number from 1 to 2147483647)")]
pub struct ParsePidError(String);

impl Pid {
    /// The process that calls.
    pub fn this() -> Self {
        Self::from_nix(nix::unistd::getpid()).unwrap_or(Self(NonZeroU32::MIN))
    }

    /// The number; `None` for 0 and negative ones.
    pub fn new(pid: i32) -> Option<Self> {
        u32::try_from(pid).ok().and_then(NonZeroU32::new).map(Self)
    }

    /// From the type of nix; `None` for 0 and negative ones.
    pub fn from_nix(pid: nix::unistd::Pid) -> Option<Self> {
        Self::new(pid.as_raw())
    }

    /// The number.
    pub fn as_raw(self) -> i32 {
        self.0.get() as i32
    }

    /// The same as the type of nix.
    pub fn to_nix(self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.as_raw())
    }
}

impl TryFrom<u32> for Pid {
    type Error = ParsePidError;

    fn try_from(pid: u32) -> Result<Self, Self::Error> {
        i32::try_from(pid).ok().and_then(Self::new).ok_or_else(|| ParsePidError(pid.to_string()))
    }
}

impl From<Pid> for u32 {
    fn from(pid: Pid) -> Self {
        pid.0.get()
    }
}

impl FromStr for Pid {
    type Err = ParsePidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<i32>().ok().and_then(Self::new).ok_or_else(|| ParsePidError(text.to_owned()))
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
