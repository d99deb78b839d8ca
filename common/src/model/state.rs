//! The states of a superblock.

use std::fmt;

use serde::{Deserialize, Serialize};

/// In what state a superblock is, as the design defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A process of the mount's process group holds the read end.
    Connected,
    /// The read end is held only by a process outside that group.
    Delegated,
    /// The kernel still has a pipe, and no process holds its read end.
    Orphaned,
    /// The kernel has no pipe.
    Catatonic,
    /// This process may not see enough to tell.
    Unknown,
}

impl State {
    /// Whether a request is sent to a process that lives.
    pub fn is_served(self) -> bool {
        matches!(self, Self::Connected | Self::Delegated)
    }

    /// All states, the best first.
    pub const ALL: [Self; 5] =
        [Self::Connected, Self::Delegated, Self::Orphaned, Self::Catatonic, Self::Unknown];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Delegated => "delegated",
            Self::Orphaned => "orphaned",
            Self::Catatonic => "catatonic",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
