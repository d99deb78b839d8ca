//! Who holds an end of a control pipe, or a control fd.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;

use super::Processes;
use super::census::Census;
use super::tables::{Places, Tables};
use crate::doc::report::{ControlFd, PipeEnd, Process, RunsIn};
use crate::masters::MasterKind;
use crate::model::Pid;
use crate::proc::{Absence, Descriptors, Proc, ProcessDir, Target, absence};
use crate::threads::{self, Share};

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

/// Looks for the holders as far as `extent` asks for.
pub(super) fn find(census: &Census<'_>, tables: &Tables, extent: Processes) -> Holders {
    if tables.superblocks.is_empty() {
        return Holders::default();
    }
    let places = (extent >= Processes::MastersInFull).then(|| Places::new(tables));
    let search = Search { census, tables, places };
    let mut seen = Seen::new();
    if extent < Processes::All {
        if let Some(holders) = search.masters(&mut seen) {
            return holders;
        }
    }
    search.look(census.others(), &mut seen);
    Holders::of(seen)
}

/// What came of a look at a process.
enum Looked {
    /// It holds nothing that matters, or is gone.
    Nothing,
    Holder(Process),
    Unseen(Unseen),
}

/// The processes that were looked at, each once.
type Seen = BTreeMap<Pid, Looked>;

struct Search<'a> {
    census: &'a Census<'a>,
    tables: &'a Tables,
    /// Where control fds lead to, if they are asked for.
    places: Option<Places>,
}

impl Search<'_> {
    /// The members of the mounts' own process groups, if they tell of every superblock who serves it. The leader of
    /// a group has its number, and is most often all that has to be looked at.
    fn masters(&self, seen: &mut Seen) -> Option<Holders> {
        let wanted = self.tables.served_by()?;
        let groups: BTreeSet<Pid> = wanted.iter().map(|(_, group)| *group).collect();
        self.look(groups.iter().copied().filter(|leader| self.census.reader != Some(*leader)), seen);
        if !all_served(&wanted, seen) {
            let in_groups = |group: i32| Pid::new(group).is_some_and(|group| groups.contains(&group));
            let members = self.census.entries().iter().filter(|entry| entry.group.is_some_and(in_groups));
            let members = members.map(|entry| entry.pid);
            self.look(members.filter(|member| self.census.reader != Some(*member)), seen);
        }
        all_served(&wanted, seen).then(|| Holders::of(std::mem::take(seen)))
    }

    /// Looks at those of the processes that were not looked at yet.
    fn look(&self, pids: impl Iterator<Item = Pid>, seen: &mut Seen) {
        let new: Vec<Pid> = pids.filter(|pid| !seen.contains_key(pid)).collect();
        let looked = threads::each(&new, Share::Small, |pid| self.look_at(*pid));
        seen.extend(new.into_iter().zip(looked));
    }

    fn look_at(&self, pid: Pid) -> Looked {
        let proc = self.census.proc;
        match proc.process(pid).and_then(|dir| look(&dir, pid, self)) {
            Ok(None) => Looked::Nothing,
            Ok(Some(process)) => Looked::Holder(process),
            Err(error) if absence(&error) == Some(Absence::Gone) => Looked::Nothing,
            // Whatever else keeps it from being read: it was not seen.
            Err(_) => Looked::Unseen(Unseen::new(proc, pid)),
        }
    }
}

/// Whether a member of the group reads each of the pipes.
fn all_served(wanted: &BTreeSet<(u64, Pid)>, seen: &Seen) -> bool {
    let mut served = HashSet::new();
    for looked in seen.values() {
        let Looked::Holder(process) = looked else { continue };
        let Some(group) = process.group_ids.first().and_then(|&group| Pid::try_from(group).ok()) else {
            continue;
        };
        served.extend(process.pipe_ends.iter().filter(|end| end.reads()).map(|end| (end.pipe, group)));
    }
    wanted.iter().all(|wanted| served.contains(wanted))
}

impl Holders {
    fn of(seen: Seen) -> Self {
        let mut holders = Self::default();
        for looked in seen.into_values() {
            match looked {
                Looked::Nothing => {}
                Looked::Holder(process) => holders.add(process),
                Looked::Unseen(unseen) => holders.unseen.push(unseen),
            }
        }
        holders
    }

    fn add(&mut self, process: Process) {
        let at = self.processes.len();
        for end in process.pipe_ends.iter().filter(|end| end.reads()) {
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

fn look(dir: &ProcessDir, pid: Pid, search: &Search<'_>) -> io::Result<Option<Process>> {
    let Search { tables, places, .. } = search;
    let descriptors = dir.descriptors()?;
    let mut found = Candidates::default();
    let can_be_root = |path: &[u8]| places.as_ref().is_some_and(|places| places.can_be_root(path));
    descriptors.for_each(|fd, target| match target {
        Target::Pipe(inode) if tables.pipes.contains(&inode) => found.pipes.push((fd, inode)),
        Target::Path(path) if can_be_root(path) => found.places.push((fd, path == b"/")),
        _ => {}
    })?;
    if found.pipes.is_empty() && found.places.is_empty() {
        return Ok(None);
    }
    found.pipes.sort_unstable();
    found.places.sort_unstable();
    let mut pipe_ends = Vec::new();
    for (fd, pipe) in found.pipes {
        pipe_ends.extend(pipe_end(&descriptors, fd, pipe)?);
    }
    let is_holder = !pipe_ends.is_empty();
    let mut control_fds = Vec::new();
    if let Some(places) = places {
        for (fd, _) in found.places.into_iter().filter(|(_, detached)| !detached || is_holder) {
            control_fds.extend(control_fd(&descriptors, fd, tables, places)?);
        }
    }
    if pipe_ends.is_empty() && control_fds.is_empty() {
        return Ok(None);
    }
    describe(dir, pid, pipe_ends, control_fds).map(Some)
}

/// `None` for what is closed again, or only a place.
fn pipe_end(descriptors: &Descriptors<'_>, fd: i32, pipe: u64) -> io::Result<Option<PipeEnd>> {
    let Some(info) = unless_gone(descriptors.info(fd))? else { return Ok(None) };
    Ok(info.access().map(|access| PipeEnd { pipe, fd, access, flags: info.fd_flags() }))
}

fn control_fd(
    descriptors: &Descriptors<'_>,
    fd: i32,
    tables: &Tables,
    places: &Places,
) -> io::Result<Option<ControlFd>> {
    let Some(info) = unless_gone(descriptors.info(fd))? else { return Ok(None) };
    if info.access().is_none() {
        return Ok(None);
    }
    // Where the mount is in no namespace that was looked at, the open file itself is asked.
    let device = places.device(info.mount_id).or_else(|| descriptors.device(fd).ok());
    let device = device.filter(|device| tables.superblocks.contains_key(device));
    Ok(device.map(|device| ControlFd { device, fd, flags: info.fd_flags() }))
}

fn unless_gone<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(error) if absence(&error) == Some(Absence::Gone) => Ok(None),
        read => read.map(Some),
    }
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
        halt: dir.halt(stat.state),
        pipe_ends,
        control_fds,
    })
}
