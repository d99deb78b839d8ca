//! How superblocks can be got at: first what costs nothing and disturbs nobody.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use autofs_cr_common::child::Child;
use autofs_cr_common::model::{Device, Pid, State, TextPath};
use autofs_cr_common::target::Target;
use nix::errno::Errno;

use super::World;
use super::hung::Hung;
use super::verify::name;
use crate::inside;
use crate::live::Process;
use crate::mounts::Mounts;
use crate::opener::{Opener, Wanted, errors, may_be_pending, pair};
use crate::remote::Stopped;
use crate::root::{Kind, kind};

/// How long a process may take to stop, and to open mounts.
const STEP: Duration = Duration::from_secs(3);

/// How many mounts a process opens at once: as many as fit into one message.
const AT_ONCE: usize = 200;

/// How a superblock is got at.
#[derive(Debug)]
pub enum Way {
    /// Not at all: it is catatonic, so nobody waits.
    Catatonic,
    /// Its master can be stopped, and makes the calls itself.
    Master,
    /// Its root is open.
    Root(OwnedFd),
    /// A process of its group can open it; only in a dry run, where that is not done.
    Member(Pid),
    /// A request is pending, and nobody can walk there before who asked first is gone.
    Kill,
    /// There is none.
    None(Errno),
}

impl Way {
    /// What would be done.
    pub fn describe(&self, one: &Hung<'_>) -> String {
        let waiters = one.waiters().count();
        let wait = if waiters == 1 { "1 waits".to_owned() } else { format!("{waiters} wait") };
        let master = one.master().map(|master| format!("{} (process {})", master.command, master.pid));
        let then = match (self, master) {
            (Self::Catatonic, _) => "it is catatonic already".to_owned(),
            (Self::Master, Some(master)) => format!("{master} is connected to it again"),
            (Self::None(errno), _) => format!("it cannot be opened: {errno}"),
            (Self::Kill, _) => format!("{} has to be killed for that (--kill)", first(one)),
            (Self::Member(pid), _) => format!("process {pid} of its group opens it, as its master is gone"),
            (_, Some(master)) => format!("its master {master} is connected again, if it can be stopped then"),
            (_, None) => "its master is gone".to_owned(),
        };
        format!("free {}: {wait}; {then}", one.name())
    }

    /// Why nothing can be changed.
    pub fn refusal(&self, one: &Hung<'_>, may_kill: bool) -> Option<String> {
        match self {
            Self::Kill if !may_kill => Some(format!(
                "{}: nobody can open it while {} waits, who asked first, and its master with its whole group is \
                gone; --kill kills that process",
                one.place(),
                first(one)
            )),
            Self::None(errno) => Some(format!("{}: it cannot be opened: {errno}", one.place())),
            _ => None,
        }
    }
}

fn first(one: &Hung<'_>) -> String {
    let names: Vec<String> = one.first().map(name).collect();
    names.join(" and ")
}

/// Finds a way to each superblock. Nothing is changed by that, but processes may be stopped for an
/// instant; not in a dry run.
pub fn find(world: &World, hung: &[Hung<'_>], dry_run: bool) -> anyhow::Result<Vec<Way>> {
    let mut search = Search { world, hung, dry_run, ways: hung.iter().map(|_| None).collect() };
    search.masters();
    search.descriptors();
    search.walks()?;
    search.members();
    Ok(search.ways())
}

struct Search<'a> {
    world: &'a World,
    hung: &'a [Hung<'a>],
    dry_run: bool,
    ways: Vec<Option<Result<Way, Errno>>>,
}

impl Search<'_> {
    /// Those to which there is no way yet.
    fn rest(&self) -> Vec<usize> {
        let is_open = |at: &usize| matches!(self.ways[*at], None | Some(Err(_)));
        (0..self.hung.len()).filter(is_open).collect()
    }

    fn found(&mut self, at: usize, way: Way) {
        self.ways[at] = Some(Ok(way));
    }

    /// Living masters that can be stopped.
    fn masters(&mut self) {
        let mut known: BTreeMap<Pid, bool> = BTreeMap::new();
        for at in self.rest() {
            let one = &self.hung[at];
            match (one.superblock.state, one.master()) {
                (State::Catatonic, _) => self.found(at, Way::Catatonic),
                (State::Connected, Some(master)) => {
                    let probe = || self.can_be_stopped(master.pid, master.start_time);
                    if *known.entry(master.pid).or_insert_with(probe) {
                        self.found(at, Way::Master);
                    }
                }
                _ => {}
            }
        }
    }

    fn can_be_stopped(&self, pid: Pid, start_time: u64) -> bool {
        if self.dry_run {
            return true;
        }
        let stopped = Process::open(&self.world.proc, pid, start_time)
            .map_err(anyhow::Error::from)
            .and_then(|process| stop(self.world, &process));
        if let Err(error) = &stopped {
            self.world
                .voice
                .warn(format_args!("the master (process {pid}) cannot be stopped now: {error:#}"));
        }
        stopped.is_ok()
    }

    /// Descriptors that some process has.
    fn descriptors(&mut self) {
        for at in self.rest() {
            let one = self.hung[at];
            let root = one.descriptors().find_map(|(process, fd)| {
                let process = Process::open(&self.world.proc, process.pid, process.start_time).ok()?;
                let fd = process.descriptor(fd).ok()??;
                (kind(&fd).ok()? == Kind::Autofs(one.superblock.device)).then_some(fd)
            });
            if let Some(root) = root {
                self.found(at, Way::Root(root));
            }
        }
    }

    /// A walk of a child, unless that is known to block.
    fn walks(&mut self) -> anyhow::Result<()> {
        let (blocked, free): (Vec<usize>, Vec<usize>) =
            self.rest().into_iter().partition(|&at| self.hung[at].is_blocked());
        blocked.into_iter().for_each(|at| self.ways[at] = Some(Err(Errno::ETIMEDOUT)));
        let wanted: Vec<Wanted> = free.iter().map(|&at| (at, self.hung[at].superblock.device)).collect();
        let places = self.hung.iter().map(Hung::place);
        let mut opener = Opener::new(places, &self.world.device, self.world.target.as_ref());
        for (at, root) in free.into_iter().zip(opener.open(&wanted)?) {
            self.ways[at] = Some(root.map(Way::Root));
        }
        Ok(())
    }

    /// Living processes of the mount's group, whose walks wait for nobody.
    fn members(&mut self) {
        let mut groups: BTreeMap<Pid, Vec<usize>> = BTreeMap::new();
        for at in self.rest() {
            if let Some(group) = self.hung[at].superblock.pgrp {
                groups.entry(group).or_default().push(at);
            }
        }
        for (group, mut rest) in groups {
            for process in members(self.world, group) {
                if rest.is_empty() {
                    break;
                }
                if let Err(error) = self.open_by(&process, group, &rest) {
                    let pid = process.pid();
                    self.world
                        .voice
                        .detail(format_args!("process {pid} of its group is of no use: {error:#}"));
                }
                rest.retain(|&at| !matches!(self.ways[at], Some(Ok(_))));
            }
        }
    }

    /// Has a process open what it can reach.
    fn open_by(&mut self, process: &Process, group: Pid, rest: &[usize]) -> anyhow::Result<()> {
        let mounts = Mounts::read(process.dir())?;
        let mut wanted: Vec<(usize, TextPath, Device)> = Vec::new();
        for &at in rest {
            let device = self.hung[at].superblock.device;
            let seen = mounts.place_of(device, self.hung[at].place());
            let seen = seen.filter(|place| mounts.let_pass(group.as_raw(), place));
            wanted.extend(seen.map(|place| (at, place, device)));
        }
        self.keep_reachable(process, &mut wanted)?;
        if self.dry_run {
            wanted.iter().for_each(|(at, ..)| self.found(*at, Way::Member(process.pid())));
            return Ok(());
        }
        for part in wanted.chunks(AT_ONCE) {
            let roots = open_inside(self.world, process, part)?;
            for ((at, ..), root) in part.iter().zip(roots) {
                self.ways[*at] = Some(root.map(Way::Root));
            }
        }
        Ok(())
    }

    /// Only what can be walked to without waiting for anything on the way.
    fn keep_reachable(
        &self,
        process: &Process,
        wanted: &mut Vec<(usize, TextPath, Device)>,
    ) -> anyhow::Result<()> {
        let target = Target::open(process.pid())?;
        process.check_alive()?;
        let mut opener =
            Opener::new(wanted.iter().map(|(_, place, _)| place), &self.world.device, Some(&target));
        let reached = opener.reaches(&(0..wanted.len()).collect::<Vec<_>>())?;
        let mut reached = reached.into_iter();
        wanted.retain(|_| reached.next() == Some(true));
        Ok(())
    }

    fn ways(self) -> Vec<Way> {
        let hung = self.hung.iter();
        hung.zip(self.ways)
            .map(|(one, way)| match way {
                Some(Ok(way)) => way,
                Some(Err(errno)) if may_be_pending(errno) && one.is_blocked() => Way::Kill,
                Some(Err(errno)) => Way::None(errno),
                None => Way::None(Errno::ENOENT),
            })
            .collect()
    }
}

/// The living processes of a group.
fn members(world: &World, group: Pid) -> Vec<Process> {
    let pids = world.proc.pids().unwrap_or_default();
    let others = pids.into_iter().filter(|pid| *pid != Pid::this());
    let member = |pid: Pid| {
        let stat = world.proc.stat(pid).ok()?;
        let is_member = stat.group == group.as_raw() && !stat.is_dead();
        is_member.then(|| Process::open(&world.proc, pid, stat.start_time).ok())?
    };
    others.filter_map(member).collect()
}

/// Stops a process and lets it go at once.
fn stop(world: &World, process: &Process) -> anyhow::Result<()> {
    let stopped = in_child(world, || {
        Stopped::attach(process.pidfd(), world.step(STEP))?;
        Ok(Vec::new())
    });
    stopped.map(drop)
}

/// Has a process open mounts.
fn open_inside(
    world: &World,
    process: &Process,
    wanted: &[(usize, TextPath, Device)],
) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
    in_child(world, || {
        let deadline = world.step(STEP);
        let mut session = Stopped::attach(process.pidfd(), deadline)?.start(deadline)?;
        let places: Vec<_> = wanted.iter().map(|(_, place, device)| (place, *device)).collect();
        let opened = inside::open(&mut session, &world.device, &places, deadline);
        session.finish(world.step(STEP))?;
        opened
    })
}

/// Works on a process in a child: its end lets go of a thread that does not stop.
fn in_child(
    world: &World,
    work: impl FnOnce() -> anyhow::Result<Vec<Result<OwnedFd, Errno>>>,
) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
    let child = Child::spawn(|channel| {
        let opened = work().map_err(|error| format!("{error:#}"));
        let fds: Vec<_> = opened.iter().flatten().flatten().map(AsFd::as_fd).collect();
        let answer: Result<Vec<i32>, &String> = opened.as_deref().map(errors);
        Ok(channel.send(&answer, &fds)?)
    });
    let child = child.context("cannot start a child")?;
    let (answer, fds) = child.receive::<Result<Vec<i32>, String>>(Some(world.step(2 * STEP)))?;
    pair(answer.map_err(anyhow::Error::msg)?, fds)
}
