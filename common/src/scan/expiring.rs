//! Mounts with an expire that nobody has answered yet.
//!
//! A walk to one of them, or through one, waits until the expire ends, and from then on not even SIGKILL ends the
//! walk (`autofs_expire_wait` in fs/autofs/expire.c). So whoever would walk has to look here before, also if a child
//! with a deadline does it: the child could not be ended.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::asked;
use super::census::Census;
use super::memory::Memory;
use super::sight::Sight;
use super::waiters::place;
use super::whereabouts::{self, Sleep};
use crate::doc::report::WaiterRole;
use crate::model::{Device, MountType, Pid, SuperOptions, TextPath};
use crate::proc::mountinfo::{Line, lines, unescape};
use crate::proc::{Proc, ProcessDir};

/// The mounts of one mount namespace with an expire that is not answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiring {
    devices: BTreeSet<Device>,
    places: Vec<Place>,
}

/// A mount of such a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    path: TextPath,
    /// Its root can be walked to, and only what is in it cannot.
    is_indirect: bool,
}

impl Expiring {
    /// Looks for them, as far as this process may see who waits. The mounts are those that `process` sees.
    pub fn find(proc: &Proc, process: &ProcessDir) -> io::Result<Self> {
        Self::of(Self::superblocks(proc)?, process)
    }

    /// The mounts of these superblocks, as [`Expiring::superblocks`] gives them, that `process` sees.
    pub fn of(devices: BTreeSet<Device>, process: &ProcessDir) -> io::Result<Self> {
        let places = if devices.is_empty() { Vec::new() } else { places(&process.mountinfo()?, &devices) };
        Ok(Self { devices, places })
    }

    /// The superblocks that a thread of the machine waits on for the end of an expire. It is a look at all processes.
    pub fn superblocks(proc: &Proc) -> io::Result<BTreeSet<Device>> {
        let census = Census::new(proc, proc.reader(), true)?;
        let mut found = BTreeSet::new();
        let mut memory = Memory::default();
        for pid in census.may_be_waiting() {
            // What has ended meanwhile waits no more, and of what may not be seen nothing can be said.
            let Ok(process) = proc.process(pid) else { continue };
            for tid in process.threads().unwrap_or_default() {
                found.extend(device(&process, tid, &mut memory).ok().flatten());
            }
        }
        Ok(found)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The mount at which a walk to `path` would wait.
    pub fn on_the_way(&self, path: &Path) -> Option<&TextPath> {
        let waits =
            |place: &&Place| path.starts_with(&place.path) && !(place.is_indirect && path == &*place.path);
        self.places.iter().find(waits).map(|place| &place.path)
    }

    /// Whether something of this superblock is being expired.
    pub fn is_of(&self, device: Device) -> bool {
        self.devices.contains(&device)
    }
}

/// The superblock that a thread waits on, if that is for the end of an expire.
fn device(process: &ProcessDir, tid: Pid, memory: &mut Memory) -> io::Result<Option<Device>> {
    let thread = process.thread(tid)?;
    if whereabouts::sleep(&thread)? != Sleep::Autofs || whereabouts::part(&thread).role != WaiterRole::Expire
    {
        return Ok(None);
    }
    let Some(call) = thread.syscall()? else { return Ok(None) };
    let paths = asked::paths(&thread, tid, &call, memory);
    Ok(place(&Sight::read(&thread.mountinfo()?), &paths, None).1)
}

fn places(mountinfo: &[u8], devices: &BTreeSet<Device>) -> Vec<Place> {
    let autofs = lines(mountinfo).flatten().filter(Line::is_autofs);
    let theirs = autofs.filter(|line| line.device().is_some_and(|device| devices.contains(&device)));
    let place = |line: Line<'_>| {
        let options = SuperOptions::parse(&String::from_utf8_lossy(line.super_options));
        Place {
            path: TextPath::from_bytes(unescape(line.mount_point).into_owned()),
            is_indirect: options.is_ok_and(|found| found.options.mount_type == MountType::Indirect),
        }
    };
    theirs.map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_waits_at_a_direct_mount_and_inside_an_indirect_one() {
        let table = b"\
10 1 0:9 / / rw - overlay o rw\n\
20 10 0:50 / /data rw - autofs a rw,fd=5,pipe_ino=7,pgrp=1,timeout=300,minproto=5,maxproto=5,direct\n\
30 10 0:51 / /home rw - autofs a rw,fd=5,pipe_ino=7,pgrp=1,timeout=300,minproto=5,maxproto=5,indirect\n\
40 10 0:52 / /other rw - autofs a rw,fd=5,pipe_ino=7,pgrp=1,timeout=300,minproto=5,maxproto=5,direct\n";
        let devices = [50, 51].map(Device::anonymous).into();
        let expiring = Expiring { places: places(table, &devices), devices };
        for (path, waits) in [
            ("/data", true),
            ("/data/below", true),
            ("/database", false),
            ("/home", false),
            ("/home/alice", true),
            ("/other", false),
            ("/", false),
        ] {
            assert_eq!(expiring.on_the_way(Path::new(path)).is_some(), waits, "{path}");
        }
    }
}
