//! The report: what is. Written by inspect, read by dump.
//!
//! Process ids are those that the writer sees; `ids` and `group_ids` go on to the process's own pid
//! namespace, as `NSpid` and `NSpgid` of /proc/PID/status do.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::format::{Format, Kind};
use crate::masters::MasterKind;
use crate::model::{Device, FdFlags, Options, Pid, Propagation, State, TextPath};

pub use crate::model::RunsIn;

/// A report. All lists are sorted, so that equal states give equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// `autofs-cr/report/1`
    pub format: Format<Report>,
    /// What could not be seen, a sentence each, and why.
    pub hidden: Vec<String>,
    /// The mount namespaces that were looked at, by id.
    pub namespaces: Vec<Namespace>,
    /// The processes that hold an end of a control pipe or a control fd, by pid.
    pub processes: Vec<Process>,
    /// The autofs instances, by device.
    pub superblocks: Vec<Superblock>,
    /// The mounts that show them, in the order of mountinfo: by their ids, so that one that was moved may stand
    /// before the one it is on.
    pub mounts: Vec<Mount>,
    /// What is mounted directly on an autofs mount.
    pub content: Vec<Content>,
    /// Requests that no process has read yet, by pipe, in the order of the pipe.
    pub requests: Vec<Request>,
    /// The threads that wait for a master, by process and thread. Absent in a report that was made before there was
    /// such a list.
    #[serde(default)]
    pub waiters: Vec<Waiter>,
    /// How many threads are blocked, and it could not be seen what they wait for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unseen_threads: u64,
    /// The processes whose requests fail, as their master cannot see them, by pid. Absent in a report that was made
    /// before there was such a list.
    #[serde(default)]
    pub strangers: Vec<Stranger>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Kind for Report {
    const NAME: &'static str = "report";
    const VERSION: u32 = 1;
}

/// A mount namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Its inode number (/proc/PID/ns/mnt).
    pub id: u64,
    /// The process through which it was looked at.
    pub process: Pid,
    /// When that process started, in clock ticks since boot (field 22 of /proc/PID/stat).
    pub start_time: u64,
    /// The inode number of that process's pid namespace (/proc/PID/ns/pid).
    pub pid_namespace: u64,
    /// Where that process runs.
    #[serde(default, skip_serializing_if = "RunsIn::is_unknown")]
    pub runs_in: RunsIn,
    /// A restore in it that has not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Unfinished>,
}

/// A restore that has not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Unfinished {
    /// Where its work place is mounted.
    pub work_place: TextPath,
    /// Whether it lives.
    pub restore: Life,
    /// The options that it had, as far as they matter for the next one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// Whether a restore lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// It is at work.
    AtWork,
    /// It was killed.
    Killed,
    /// It cannot be seen whether it lives.
    Unknown,
}

impl Life {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::AtWork, Self::Killed, Self::Unknown];

    /// As in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AtWork => "at_work",
            Self::Killed => "killed",
            Self::Unknown => "unknown",
        }
    }
}

/// A process that has to do with an autofs mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Its id for the writer of the report.
    pub pid: Pid,
    /// Its ids from the writer's pid namespace down to its own.
    pub ids: Vec<u32>,
    /// The ids of its process group, likewise.
    pub group_ids: Vec<u32>,
    /// The ids of its session, likewise.
    pub session_ids: Vec<u32>,
    /// The inode number of its pid namespace.
    pub pid_namespace: u64,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// Its name (/proc/PID/comm).
    pub command: TextPath,
    /// What kind of master it would be.
    pub kind: MasterKind,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "RunsIn::is_unknown")]
    pub runs_in: RunsIn,
    /// What keeps it from running; absent if nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halt: Option<Halt>,
    /// The ends of control pipes that it holds, by descriptor.
    pub pipe_ends: Vec<PipeEnd>,
    /// Its descriptors on roots of autofs superblocks, by number.
    pub control_fds: Vec<ControlFd>,
}

impl Process {
    /// Its descriptors on the root of this superblock.
    pub fn control_fds_on(&self, device: Device) -> impl Iterator<Item = &ControlFd> {
        self.control_fds.iter().filter(move |control| control.device == device)
    }

    /// The id in its own pid namespace.
    pub fn own_id(&self) -> Option<Pid> {
        self.ids.last().and_then(|&id| Pid::try_from(id).ok())
    }

    /// The id of its process group in its own pid namespace; `None` if the group is not visible there.
    pub fn own_group(&self) -> Option<Pid> {
        self.group_ids.last().and_then(|&id| Pid::try_from(id).ok())
    }

    /// The id of its session in its own pid namespace; `None` if it is not visible there.
    pub fn own_session(&self) -> Option<Pid> {
        self.session_ids.last().and_then(|&id| Pid::try_from(id).ok())
    }
}

/// What keeps a process from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum Halt {
    /// A signal, until SIGCONT comes.
    Stopped,
    /// A tracer, as a debugger.
    Traced,
    /// The freezer of its control group (of the second hierarchy), until somebody thaws that.
    Frozen,
}

/// One descriptor on a control pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct PipeEnd {
    /// The inode number of the pipe.
    pub pipe: u64,
    /// The descriptor number.
    pub fd: i32,
    /// Which end it is.
    pub access: Access,
    /// Its flags.
    #[serde(default, skip_serializing_if = "FdFlags::is_empty")]
    pub flags: FdFlags,
}

impl PipeEnd {
    /// It is, or can be used as, the read end.
    pub fn reads(&self) -> bool {
        self.access != Access::Write
    }
}

/// The direction in which a descriptor is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// For reading.
    Read,
    /// For writing.
    Write,
    /// For both, as a pipe opened through /proc can be.
    Both,
}

/// A control fd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct ControlFd {
    /// The superblock on whose root it is open.
    pub device: Device,
    /// The descriptor number.
    pub fd: i32,
    /// Its flags.
    #[serde(default, skip_serializing_if = "FdFlags::is_empty")]
    pub flags: FdFlags,
}

/// One autofs instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Superblock {
    /// Its device number.
    pub device: Device,
    /// What it was made with.
    pub options: Options,
    /// Its state.
    pub state: State,
    /// Why it is in that state, for people.
    pub reason: String,
    /// The inode number of its pipe; absent if it is catatonic or the kernel does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipe: Option<u64>,
    /// The process group that may walk freely, for the writer of the report; absent if not visible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgrp: Option<Pid>,
    /// The number of the pipe's write end in the master when it was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// Its master: an entry of `processes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<Pid>,
}

/// One mount that shows an autofs superblock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The mount namespace it is in.
    pub namespace: u64,
    /// Its id, unique on the host while it is mounted.
    pub id: u64,
    /// The id of the mount that it is mounted on.
    pub parent: u64,
    /// The superblock.
    pub device: Device,
    /// The directory of the superblock that it shows as its root: `/`, but for a bind mount of less.
    pub root: TextPath,
    /// Where it is, from the root of the process through which the namespace was looked at.
    pub mount_point: TextPath,
    /// The options of the mount (not of the superblock), as in mountinfo.
    pub options: String,
    /// Its propagation, with the peer groups of mountinfo.
    pub propagation: Propagation,
    /// The name that the master gave as the source.
    pub source: TextPath,
    /// What it is mounted on.
    #[serde(default, skip_serializing_if = "Within::is_other")]
    pub within: Within,
    /// Its mount point is the root of the mount that it is mounted on, so that it covers that one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub covers: bool,
    /// A later mount on a directory above hides it, so that no path leads to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub buried: bool,
    /// It is a copy that its master does not serve as it does its own mount; absent if it is as good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyFault>,
}

/// What is wrong with a mount that is a copy of the one that the master made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum CopyFault {
    /// What the master mounts does not appear here, as nothing is propagated from its mount (the first of the superblock in
    /// the master's mount namespace): an access that has it mount something fails with ELOOP ("Too many levels of symbolic links").
    Severed,
    /// The superblock is mounted nowhere in the mount namespace of its master any more: nobody will serve it. Where the
    /// master lives and still reads the pipe, an access hangs. Of a superblock that is not served, this is only said
    /// where it was systemd as process 1 that served it: where another master was is not known when it is gone.
    Stale,
}

impl CopyFault {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Severed => "severed",
            Self::Stale => "stale",
        }
    }
}

/// What an autofs mount is mounted on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum Within {
    /// An autofs mount.
    Autofs,
    /// A mount that is, directly or not, on an autofs mount.
    Content,
    /// Any other mount.
    #[default]
    Other,
}

impl Within {
    /// For serde: not worth writing.
    pub fn is_other(&self) -> bool {
        *self == Self::Other
    }
}

/// Something that is mounted directly on an autofs mount, and is no autofs mount itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The mount namespace it is in.
    pub namespace: u64,
    /// Its mount id.
    pub id: u64,
    /// The autofs mount that it is on.
    pub parent: u64,
    /// Where it is.
    pub mount_point: TextPath,
    /// The type of its file system.
    pub fstype: TextPath,
    /// Its source.
    pub source: TextPath,
}

/// A request that waits unread in a pipe: what the kernel wrote (linux/auto_fs.h).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The inode number of the pipe.
    pub pipe: u64,
    /// The superblock.
    pub device: Device,
    /// What is asked for.
    pub kind: RequestKind,
    /// The number by which the answer names the request.
    pub token: u32,
    /// The inode number of the superblock's root.
    pub inode: u64,
    /// The user of the first who asked.
    pub uid: u32,
    /// The group of the first who asked.
    pub gid: u32,
    /// The thread that asked first, in the master's pid namespace; 0 if it is not visible there.
    pub pid: u32,
    /// The process of that thread, likewise.
    pub tgid: u32,
    /// The name that was asked for; only an indirect mount has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<TextPath>,
}

/// What the kernel asks of a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum RequestKind {
    /// To mount something.
    Mount,
    /// To unmount something that was not used for long.
    Expire,
}

/// A thread that waits in autofs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Waiter {
    /// Its process, for the writer of the report.
    pub pid: Pid,
    /// The thread, likewise; the same number as `pid` in the first thread of a process.
    pub tid: Pid,
    /// When the thread started, in clock ticks since boot: with `tid` it names one thread for good.
    pub start_time: u64,
    /// The name of the thread (/proc/PID/task/TID/comm).
    pub command: TextPath,
    /// Its user.
    pub uid: u32,
    /// What it waits for.
    pub role: WaiterRole,
    /// Its request is not in the pipe yet, as that has no room: nothing but a master that reads ends this wait, or the end
    /// of all who could.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsent: bool,
    /// The superblock that it waits on; absent if that could not be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// What it asked for, as it would name it: an absolute path from its own root directory; absent if that could
    /// not be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<TextPath>,
    /// The mount namespace that it is in; absent in a report that was made before that was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u64>,
    /// Since when it waits, in seconds since 1970; absent if the kernel does not tell. It can have waited a little
    /// longer: the clock of its processor leaves out interrupts and the time of other virtual machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}

/// A process that sees mounts of a master whose pid namespace does not see the process: the kernel answers its requests
/// with ENOENT, and never asks the master (`autofs_wait` in fs/autofs/waitq.c).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Stranger {
    /// The process, for the writer of the report.
    pub pid: Pid,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// Its name.
    pub command: TextPath,
    /// The mount namespace that it is in.
    pub namespace: u64,
    /// The master: an entry of `processes`.
    pub master: Pid,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum WaiterRole {
    /// For the answer to the request that it made: it was the first to ask.
    First,
    /// For the answer to a request that another one made.
    Joined,
    /// For the end of an expire, its own or another's.
    Expire,
    /// It waits in autofs, and for what was not visible.
    Unknown,
}

impl Report {
    /// Forgets all mounts but these, with all that is only about those that go.
    pub fn keep_mounts(&mut self, stays: impl Fn(&Mount) -> bool) {
        self.mounts.retain(stays);
        let ids: HashSet<u64> = self.mounts.iter().map(|mount| mount.id).collect();
        let devices: HashSet<Device> = self.mounts.iter().map(|mount| mount.device).collect();
        self.superblocks.retain(|superblock| devices.contains(&superblock.device));
        self.content.retain(|content| ids.contains(&content.parent));
        self.requests.retain(|request| devices.contains(&request.device));
        self.waiters.retain(|waiter| waiter.device.is_some_and(|device| devices.contains(&device)));
        let masters: HashSet<Pid> =
            self.superblocks.iter().filter_map(|superblock| superblock.master).collect();
        self.strangers.retain(|stranger| masters.contains(&stranger.master));
    }

    /// The threads that wait on this superblock.
    pub fn waiters_on(&self, device: Device) -> impl Iterator<Item = &Waiter> {
        self.waiters.iter().filter(move |waiter| waiter.device == Some(device))
    }

    /// The process with this id, if the report has it.
    pub fn process(&self, pid: Pid) -> Option<&Process> {
        self.processes.binary_search_by_key(&pid, |process| process.pid).ok().map(|at| &self.processes[at])
    }

    /// The superblock with this device, if the report has it.
    pub fn superblock(&self, device: Device) -> Option<&Superblock> {
        let found = self.superblocks.binary_search_by_key(&device, |superblock| superblock.device);
        found.ok().map(|at| &self.superblocks[at])
    }
}
