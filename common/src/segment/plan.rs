//! What the segment publishes, as plain data.

use std::time::Duration;

use crate::doc::image::End;
use crate::masters::MasterKind;
use crate::model::{Device, MountType, Pid, TextPath};

/// What a restore publishes for its fixups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The process that makes the segment.
    pub coordinator: Process,
    /// How long it waits until everything is connected. It ends on the clock CLOCK_MONOTONIC, which
    /// is another one in another time namespace: there only `Segment::outcome` tells the end.
    pub timeout: Duration,
    /// Whom the superblocks belong to.
    pub masters: Vec<Master>,
    /// The superblocks that a fixup has to connect.
    pub superblocks: Vec<Superblock>,
}

/// A process, safe from the reuse of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id in the pid namespace of the coordinator.
    pub pid: Pid,
    /// When it started, in clock ticks since boot (field 22 of /proc/PID/stat).
    pub start_time: u64,
}

/// A master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Its name in the image; no two are the same.
    pub id: String,
    /// What kind of master it is.
    pub kind: MasterKind,
    /// Its process id in its own pid namespace; `None` if it is still to come by `fixup --exec`.
    pub pid: Option<Pid>,
    /// The process as the coordinator sees it; `None` if it is still to come.
    pub process: Option<Process>,
    /// Its control pipes.
    pub pipes: Vec<Pipe>,
}

/// A control pipe of a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pipe {
    /// The end that the master reads.
    pub read_end: End,
    /// The end that the master keeps for itself, if it does.
    pub write_end: Option<End>,
}

/// A superblock to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Its device number.
    pub device: Device,
    /// What starts a request.
    pub mount_type: MountType,
    /// Its master: an index of `Plan::masters`.
    pub master: usize,
    /// Its pipe: an index of that master's `pipes`.
    pub pipe: usize,
    /// Where it is mounted, from the root of the target; absolute.
    pub mount_point: TextPath,
    /// The master's descriptors on its root.
    pub control_fds: Vec<End>,
}
