//! Who holds an end of a control pipe, or a control fd.

use std::collections::HashMap;
use std::io;

use super::tables::Tables;
use crate::doc::report::{Access, ControlFd, PipeEnd, Process, RunsIn};
use crate::masters::MasterKind;
use crate::model::{Device, Pid};
use crate::proc::{Absence, Descriptors, Proc, ProcessDir, Target, absence};

/// The processes that have to do with an autofs mount.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// By pid.
    pub processes: Vec<Process>,
    /// Which of `processes` hold the read end of a pipe, by pid.
    pub readers: HashMap<u64, Vec<usize>>,
    /// The processes whose descriptors could not be seen, by pid.
    pub unseen: Vec<Unseen>,
}

/// A process whose descriptors could not be seen.
#[derive(Debug)]
pub(super) struct Unseen {
    pub pid: Pid,
    /// How many pid namespaces it is in, from that of the reader on; the most if that was not seen.
    pub depth: usize,
}

impl Unseen {
    fn new(proc: &Proc, pid: Pid) -> Self {
        let status = proc.process(pid).and_then(|dir| dir.status());
        Self { pid, depth: status.map_or(usize::MAX, |status| status.ids.len()) }
    }
}

impl Holders {
    /// How many processes that could not be seen may have to do with a mount at this depth of pid
    /// namespaces. One that is only in a namespace above cannot be part of what serves it: the kernel
    /// takes no master from another pid namespace than before.
    pub fn unseen_from(&self, depth: usize) -> usize {
        self.unseen.iter().filter(|unseen| unseen.depth >= depth).count()
    }

    /// The process with this id, if it holds something.
    pub fn process(&self, pid: Pid) -> Option<&Process> {
        let at = self.processes.binary_search_by_key(&pid, |process| process.pid).ok()?;
        self.processes.get(at)
    }

    /// The processes that hold the read end of a pipe.
    pub fn readers_of(&self, pipe: u64) -> impl Iterator<Item = &Process> {
        self.readers.get(&pipe).into_iter().flatten().map(|&at| &self.processes[at])
    }
}

/// Looks at the descriptors of every process but the reader itself, which serves nobody, whatever it
/// inherited.
pub(super) fn find(proc: &Proc, pids: &[Pid], reader: Option<Pid>, tables: &Tables) -> Holders {
    let mut holders = Holders::default();
    if tables.superblocks.is_empty() {
        return holders;
    }
    for &pid in pids.iter().filter(|pid| Some(**pid) != reader) {
        match proc.process(pid).and_then(|dir| look(&dir, pid, tables)) {
            Ok(None) => {}
            Ok(Some(process)) => holders.add(process),
            Err(error) if absence(&error) == Some(Absence::Gone) => {}
            // Whatever else keeps it from being read: it was not seen.
            Err(_) => holders.unseen.push(Unseen::new(proc, pid)),
        }
    }
    holders
}

impl Holders {
    fn add(&mut self, process: Process) {
        let at = self.processes.len();
        for end in process.pipe_ends.iter().filter(|end| end.access != Access::Write) {
            let readers = self.readers.entry(end.pipe).or_default();
            if readers.last() != Some(&at) {
                readers.push(at);
            }
        }
        self.processes.push(process);
    }
}

/// The descriptors of one process that may be of interest, by their links alone.
#[derive(Default)]
struct Candidates {
    pipes: Vec<(i32, u64)>,
    places: Vec<(i32, bool)>,
}

fn look(dir: &ProcessDir, pid: Pid, tables: &Tables) -> io::Result<Option<Process>> {
    let descriptors = dir.descriptors()?;
    let mut found = Candidates::default();
    descriptors.for_each(|fd, target| match target {
        Target::Pipe(inode) if tables.pipes.contains(&inode) => found.pipes.push((fd, inode)),
        Target::Path(path) if tables.can_be_control_fd(path) => found.places.push((fd, path == b"/")),
        _ => {}
    })?;
    if found.pipes.is_empty() && found.places.is_empty() {
        return Ok(None);
    }
    found.pipes.sort_unstable();
    found.places.sort_unstable();
    let pipe_ends: Vec<PipeEnd> =
        found.pipes.iter().filter_map(|&(fd, pipe)| pipe_end(&descriptors, fd, pipe)).collect();
    let is_holder = !pipe_ends.is_empty();
    let places = found.places.iter().filter(|(_, detached)| !detached || is_holder);
    let control_fds: Vec<ControlFd> =
        places.filter_map(|&(fd, _)| control_fd(&descriptors, fd, tables)).collect();
    if pipe_ends.is_empty() && control_fds.is_empty() {
        return Ok(None);
    }
    describe(dir, pid, pipe_ends, control_fds).map(Some)
}

fn pipe_end(descriptors: &Descriptors<'_>, fd: i32, pipe: u64) -> Option<PipeEnd> {
    let info = descriptors.info(fd).ok()?;
    Some(PipeEnd { pipe, fd, access: info.access()?, flags: info.fd_flags() })
}

fn control_fd(descriptors: &Descriptors<'_>, fd: i32, tables: &Tables) -> Option<ControlFd> {
    let info = descriptors.info(fd).ok()?;
    info.access()?;
    let device = device_of(descriptors, fd, info.mount_id, tables)?;
    Some(ControlFd { device, fd, flags: info.fd_flags() })
}

/// The superblock that a descriptor is on, by its mount id; where the mount is in no namespace that
/// was looked at, by asking for the device of the open file.
fn device_of(descriptors: &Descriptors<'_>, fd: i32, mount_id: u64, tables: &Tables) -> Option<Device> {
    let device = match tables.by_id.get(&mount_id) {
        Some(&at) => tables.mounts[at].device,
        None => descriptors.device(fd).ok()?,
    };
    tables.superblocks.contains_key(&device).then_some(device)
}

fn describe(
    dir: &ProcessDir,
    pid: Pid,
    pipe_ends: Vec<PipeEnd>,
    control_fds: Vec<ControlFd>,
) -> io::Result<Process> {
    let stat = dir.stat()?;
    let status = dir.status()?;
    Ok(Process {
        pid,
        ids: status.ids,
        group_ids: status.group_ids,
        session_ids: status.session_ids,
        pid_namespace: dir.pid_namespace()?,
        start_time: stat.start_time,
        kind: MasterKind::of_command(&stat.command),
        command: stat.command,
        runs_in: RunsIn::default(),
        pipe_ends,
        control_fds,
    })
}
