//! Who serves: the processes that do, and those that did and are gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::image::{End, Master, Pipe};
use autofs_cr_common::doc::report::{Access, PipeEnd, Process, Superblock};
use autofs_cr_common::masters::MasterKind;
use autofs_cr_common::model::{Device, FdFlags, Pid, State, TextPath};

use super::BuildError;
use crate::groups::Groups;

/// What masters are told apart by. The order is that of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// A living process, by its id in its own pid namespace and that for the writer of the report.
    Alive(u32, Pid),
    /// A process group that nobody is left of.
    Group(Pid),
    /// Nothing is known but the pipe.
    Pipe(u64),
}

/// The masters of a report.
pub struct Masters {
    /// The pipes of each, and the number of the write end for a dead one.
    found: BTreeMap<Key, BTreeMap<u64, Option<i32>>>,
    ids: BTreeMap<Key, String>,
    of: BTreeMap<Device, Key>,
}

impl Masters {
    /// Finds them.
    pub fn of(report: &Report, groups: &Groups) -> Result<Self, BuildError> {
        let mut masters = Self { found: BTreeMap::new(), ids: BTreeMap::new(), of: BTreeMap::new() };
        for superblock in &report.superblocks {
            if superblock.state == State::Catatonic {
                continue;
            }
            let no_pipe = || BuildError::NoPipe(superblock.device, superblock.state);
            let pipe = superblock.pipe.ok_or_else(no_pipe)?;
            let key = key(report, superblock, pipe, groups)?;
            masters.found.entry(key).or_default().insert(pipe, superblock.fd);
            masters.of.insert(superblock.device, key);
        }
        masters.name(report);
        Ok(masters)
    }

    fn name(&mut self, report: &Report) {
        let mut taken = BTreeSet::new();
        // What each name goes on with: to begin anew each time would be quadratic.
        let mut next: HashMap<String, u64> = HashMap::new();
        for &key in self.found.keys() {
            let wanted = name(report, key);
            let number = next.entry(wanted.clone()).or_insert(1);
            let id = loop {
                let id = if *number == 1 { wanted.clone() } else { format!("{wanted}.{number}") };
                *number += 1;
                if taken.insert(id.clone()) {
                    break id;
                }
            };
            self.ids.insert(key, id);
        }
    }

    /// The id of the master of a superblock.
    pub fn id_of(&self, device: Device) -> Option<&str> {
        self.ids.get(self.of.get(&device)?).map(String::as_str)
    }

    /// The list in the image.
    pub fn into_list(self, report: &Report) -> Vec<Master> {
        let Self { found, mut ids, .. } = self;
        let master = |(key, pipes): (Key, BTreeMap<u64, Option<i32>>)| {
            let process = process(report, key);
            let pipe = |(inode, fd)| pipe(report, process, inode, fd);
            Master {
                id: ids.remove(&key).unwrap_or_default(),
                kind: process.map_or(MasterKind::Unknown, |process| process.kind),
                command: process.map_or_else(TextPath::default, |process| process.command.clone()),
                pid: process.and_then(Process::own_id),
                pgrp: match key {
                    Key::Group(group) => Some(group),
                    Key::Alive(..) | Key::Pipe(_) => process.and_then(Process::own_group),
                },
                session: process.and_then(Process::own_session),
                pipes: pipes.into_iter().map(pipe).collect(),
            }
        };
        found.into_iter().map(master).collect()
    }
}

fn key(report: &Report, superblock: &Superblock, pipe: u64, groups: &Groups) -> Result<Key, BuildError> {
    if superblock.state == State::Orphaned {
        return Ok(groups.get(&superblock.device).map_or(Key::Pipe(pipe), |&group| Key::Group(group)));
    }
    let process = superblock.master.and_then(|pid| report.process(pid));
    let own = process.and_then(|process| Some((process.own_id()?, process.pid)));
    let (id, pid) = own.ok_or(BuildError::NoMaster(superblock.device, superblock.state))?;
    Ok(Key::Alive(id.into(), pid))
}

fn process(report: &Report, key: Key) -> Option<&Process> {
    match key {
        Key::Alive(_, pid) => report.process(pid),
        Key::Group(_) | Key::Pipe(_) => None,
    }
}

fn name(report: &Report, key: Key) -> String {
    match key {
        Key::Alive(id, pid) => match report.process(pid) {
            Some(process) => format!("{}-{id}", process.command),
            None => id.to_string(),
        },
        Key::Group(group) => format!("pgrp-{group}"),
        Key::Pipe(inode) => format!("pipe-{inode}"),
    }
}

fn pipe(report: &Report, process: Option<&Process>, inode: u64, fd: Option<i32>) -> Pipe {
    let ends = || process.into_iter().flat_map(|process| &process.pipe_ends).filter(|end| end.pipe == inode);
    let lowest = |access| ends().filter(|end| end.access == access).map(end).min_by_key(|end| end.fd);
    let write_end = match process {
        Some(_) => lowest(Access::Write),
        // The number that the mount options remember.
        None => fd.map(|fd| End { fd, flags: FdFlags::default() }),
    };
    let requests = report.requests.iter().filter(|request| request.pipe == inode);
    Pipe {
        inode,
        read_end: lowest(Access::Read).or_else(|| lowest(Access::Both)),
        write_end,
        requests: requests.cloned().collect(),
    }
}

fn end(end: &PipeEnd) -> End {
    End { fd: end.fd, flags: end.flags }
}
