//! The stage document: where restore stands, and what the fixups have to do. Written by restore,
//! read by fixup.

use serde::{Deserialize, Serialize};

use super::format::{Format, Kind};
use crate::model::{Pid, TextPath};

/// A stage document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// `autofs-cr/stage/1`
    pub format: Format<Stage>,
    /// The segment; absent if nothing is left to do for a fixup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<SegmentAddress>,
    /// The masters that wait for a fixup, by id.
    pub masters: Vec<Waiting>,
}

impl Kind for Stage {
    const NAME: &'static str = "stage";
    const VERSION: u32 = 1;
}

/// Where the segment is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct SegmentAddress {
    /// The name of the shared memory object (shm_open(3)).
    pub name: String,
    /// The process that made it, in the pid namespace of restore.
    pub coordinator: Pid,
    /// When that process started, in clock ticks since boot.
    pub start_time: u64,
    /// The descriptor on it in that process, for where /dev/shm is another one.
    pub fd: i32,
}

/// A master that waits for its fixup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// Its id in the image.
    pub id: String,
    /// Its name.
    pub command: TextPath,
    /// Its process id in the pid namespace of restore; absent if it does not live and has to be
    /// started by `autofs-fixup --exec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<Pid>,
    /// How many superblocks wait for it.
    pub superblocks: usize,
}
