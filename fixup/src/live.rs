//! Connecting a live master.
//!
//! The master is stopped once, and only when there is something to connect: everything that can be
//! opened is opened before. Where the master's control fds keep a superblock alive that restore has to
//! replace, it stays stopped until the new one is there, as it must not run without them.

mod connect;
mod control;
mod open;
mod process;
mod verify;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use autofs_cr_common::cli::{Voice, count};
use autofs_cr_common::doc::image::End;
use autofs_cr_common::limits::raise_descriptors;
use autofs_cr_common::model::Device;
use autofs_cr_common::pipe::WriteEnd;
use autofs_cr_common::segment::{Progress, Segment};
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_common::target::Target;
use nix::errno::Errno;

use crate::errno;
use crate::mounts::WhenNeeded;
use crate::opener::{Opener, Places, Wanted};
use crate::remote::{Session, Stopped};
use crate::sight::Sight;
use crate::watch::{Watch, give_up, select};
pub use process::{Process, find, has_ended};

/// How long the threads of a master may take to stop, and a batch to run.
const STEP: Duration = Duration::from_secs(5);

/// How many descriptors this process needs for other things than mounts.
const OTHER_DESCRIPTORS: usize = 64;

/// What came of a master.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// How many of its superblocks are connected.
    pub connected: usize,
    /// What went wrong with others, a sentence each.
    pub problems: Vec<String>,
    /// How long the master was stopped, once for each entry.
    pub stops: Vec<Duration>,
}

/// A superblock that is open and can be connected.
#[derive(Debug)]
struct Opened {
    index: usize,
    device: Device,
    root: OwnedFd,
    /// The numbers in the master that have to show it.
    controls: Vec<End>,
}

/// What should be connected.
#[derive(Debug)]
struct Expected {
    index: usize,
    device: Device,
    controls: Vec<End>,
}

impl From<&Opened> for Expected {
    fn from(opened: &Opened) -> Self {
        Self { index: opened.index, device: opened.device, controls: opened.controls.clone() }
    }
}

/// Connects the superblocks of a master, whose index in the segment is given. Those that cannot be
/// connected are marked as failed, so that restore learns at once.
pub fn run(
    watch: &Watch<'_>,
    master: usize,
    device: &ControlDevice,
    sight: Sight<'_>,
    voice: Voice,
) -> anyhow::Result<Tally> {
    let segment = watch.segment;
    let mut tally = Tally::default();
    let claim = watch.claim(master, |other| voice.note(format_args!("{other}: waiting for its end")))?;
    let Some(claim) = claim else {
        tell_given_up(segment, master, &mut tally)?;
        return Ok(tally);
    };
    if let Some(dead) = claim.left_by() {
        voice.note(format_args!("{} goes on where process {dead} ended", segment.masters()[master].id));
    }
    if let Err(error) = work(watch, master, device, sight, voice, &mut tally) {
        fail_rest(segment, master, errno::of(&error))?;
        tally.problems.push(format!("{error:#}"));
    }
    tally.connected = select(segment, master, |progress| progress == Progress::Connected)?.len();
    Ok(tally)
}

/// What another fixup, or the end of the master, has left: nothing to do.
fn tell_given_up(segment: &Segment, master: usize, tally: &mut Tally) -> anyhow::Result<()> {
    for (index, superblock) in segment.superblocks_of(master) {
        match segment.progress(index)? {
            Progress::Failed(errno) => {
                let place = &superblock.mount_point;
                tally.problems.push(match errno {
                    Errno::ESRCH => format!("{place}: its master has ended"),
                    errno => format!("{place}: given up before: {}", errno.desc()),
                });
            }
            _ => tally.connected += 1,
        }
    }
    Ok(())
}

fn work(
    watch: &Watch<'_>,
    master: usize,
    device: &ControlDevice,
    mut sight: Sight<'_>,
    voice: Voice,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let process = find(&watch.segment.masters()[master])?;
    process.unless_ended(process.check_rights())?;
    let opened = open_target(&process, watch.segment, master);
    let (target, pipes) = process.unless_ended(opened)?;
    let expires = sight.prepared.expires.take();
    let mut live = Live {
        watch: *watch,
        master,
        device,
        sight,
        voice,
        pipes,
        opener: Opener::new(Places::Segment(watch.segment), device, Some(&target)).knowing(expires),
        most: descriptor_limit(),
        process,
        tally,
    };
    let worked = live.work();
    live.process.unless_ended(worked)
}

/// The namespaces of a master, and write ends of its pipes.
fn open_target(
    process: &Process,
    segment: &Segment,
    master: usize,
) -> anyhow::Result<(Target, Vec<Option<WriteEnd>>)> {
    let target = Target::open(process.pid())?;
    process.check_alive()?;
    Ok((target, process.write_ends(segment, master)?))
}

/// Marks what is not final yet as failed.
fn fail_rest(segment: &Segment, master: usize, errno: Errno) -> anyhow::Result<()> {
    let rest = select(segment, master, |progress| !progress.is_final())?;
    give_up(segment, rest, errno)
}

/// How many mounts can be open at a time, after this process's limit was raised as far as it goes. What is open already
/// was inherited, as the channels of other children.
fn descriptor_limit() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    raise_descriptors().saturating_sub(OTHER_DESCRIPTORS + open).max(1)
}

/// A live master that is being connected.
struct Live<'a> {
    watch: Watch<'a>,
    master: usize,
    device: &'a ControlDevice,
    sight: Sight<'a>,
    voice: Voice,
    process: Process,
    /// A write end of each pipe, by its index; none for pipes that no superblock here uses.
    pipes: Vec<Option<WriteEnd>>,
    opener: Opener<'a>,
    /// How many mounts can be open at a time.
    most: usize,
    tally: &'a mut Tally,
}

impl Live<'_> {
    fn segment(&self) -> &Segment {
        self.watch.segment
    }

    fn work(&mut self) -> anyhow::Result<()> {
        loop {
            let seen = self.segment().wake_value();
            // Before the look at restore, which may have ended since the last one was connected.
            if self.select(|progress| !progress.is_final())?.is_empty() {
                return Ok(());
            }
            self.watch.check()?;
            self.process.check_alive()?;
            let held = self.let_go()?;
            let ready = self.ready()?;
            let waiting =
                self.select(|progress| matches!(progress, Progress::Pending | Progress::Released))?;
            if !held.is_empty() || (waiting.is_empty() && !ready.is_empty()) {
                self.connect(&held, &ready)?;
            } else if !waiting.is_empty() {
                self.voice.detail(format_args!(
                    "{}: waiting for restore to make {}",
                    self.name(),
                    count(waiting.len(), "mount")
                ));
                self.watch.wait(seen)?;
            }
        }
    }

    fn name(&self) -> String {
        format!("{} (process {})", self.segment().masters()[self.master].id, self.process.pid())
    }

    fn select(&self, wanted: impl Fn(Progress) -> bool) -> anyhow::Result<Vec<usize>> {
        select(self.segment(), self.master, wanted)
    }

    /// What can be connected; also what another fixup left half done.
    fn ready(&self) -> anyhow::Result<Vec<usize>> {
        self.select(|progress| matches!(progress, Progress::Created | Progress::Claimed))
    }

    /// Lets go of held superblocks that the master has no control fd on. Gives the others, with the control
    /// fds that are to be let go of.
    fn let_go(&mut self) -> anyhow::Result<BTreeMap<usize, Vec<End>>> {
        let held = self.select(|progress| progress == Progress::Held)?;
        let mut open = BTreeMap::new();
        if held.is_empty() {
            return Ok(open);
        }
        let mounts = WhenNeeded::default();
        let mut released = Vec::new();
        for index in held {
            match control::open_ones(&self.process, &self.segment().superblocks()[index], &mounts, None) {
                Ok(controls) if controls.is_empty() => released.push(index),
                Ok(controls) => drop(open.insert(index, controls)),
                Err(error) => self.fail(index, &error)?,
            }
        }
        self.segment().advance_all(released, Progress::Released)?;
        Ok(open)
    }

    /// Gives one superblock up.
    fn fail(&mut self, index: usize, error: &anyhow::Error) -> anyhow::Result<()> {
        let errno = errno::of(error);
        give_up(self.segment(), [index], errno)?;
        let place = &self.segment().superblocks()[index].mount_point;
        let problem = format!("{place}: {error:#}");
        self.tally.problems.push(problem);
        Ok(())
    }

    /// Connects what is ready, and what restore makes once the held ones were let go of.
    fn connect(&mut self, held: &BTreeMap<usize, Vec<End>>, ready: &[usize]) -> anyhow::Result<()> {
        let mut sent = Vec::with_capacity(ready.len());
        let result = self.in_stops(held, ready, &mut sent);
        // What comes now can take a while.
        self.opener.rest();
        match result {
            Ok(()) => self.verify(sent),
            Err(error) => {
                // The rest is given up with this error.
                self.keep_connected(sent)?;
                Err(error)
            }
        }
    }

    /// One stop of the master; more only where not all mounts can be open at a time.
    fn in_stops(
        &mut self,
        held: &BTreeMap<usize, Vec<End>>,
        ready: &[usize],
        sent: &mut Vec<Expected>,
    ) -> anyhow::Result<()> {
        let mut parts = ready.chunks(self.most);
        self.stop_for(held, parts.next().unwrap_or_default(), sent)?;
        for part in parts {
            self.watch.check()?;
            self.stop_for(&BTreeMap::new(), part, sent)?;
        }
        Ok(())
    }

    fn stop_for(
        &mut self,
        held: &BTreeMap<usize, Vec<End>>,
        ready: &[usize],
        sent: &mut Vec<Expected>,
    ) -> anyhow::Result<()> {
        let (mut opened, blocked) = self.open(ready)?;
        if held.is_empty() && opened.is_empty() && blocked.is_empty() {
            return Ok(());
        }
        if !held.is_empty() {
            self.opener.prepare()?;
        }
        self.opener.allow_fork(false);
        let pidfd = self.process.pidfd().try_clone_to_owned().context("cannot copy a descriptor")?;
        let result = self.in_one_stop(pidfd.as_fd(), held, &mut opened, &blocked, sent);
        self.opener.allow_fork(true);
        // Left where it failed before.
        sent.extend(opened.iter().map(Expected::from));
        result
    }

    fn in_one_stop(
        &mut self,
        pidfd: std::os::fd::BorrowedFd<'_>,
        held: &BTreeMap<usize, Vec<End>>,
        opened: &mut Vec<Opened>,
        blocked: &[Wanted],
        sent: &mut Vec<Expected>,
    ) -> anyhow::Result<()> {
        let deadline = self.watch.step(STEP);
        let started = Instant::now();
        let stopped = Stopped::attach(pidfd, deadline).context("cannot stop it")?;
        let mut session = stopped.start(deadline).context("cannot run system calls in it")?;
        let result = self.check_calls(&session, held);
        let result = result.and_then(|()| self.open_inside(&mut session, blocked, opened));
        let result = result.and_then(|()| self.replace_held(&mut session, held, opened));
        let result = result.and_then(|()| self.send(&mut session, std::mem::take(opened), sent));
        let put_back = if held.is_empty() { Ok(()) } else { self.put_back(&mut session, held) };
        let finished = session.finish(self.watch.step(STEP)).context("cannot leave it");
        self.tally.stops.push(started.elapsed());
        result.and(put_back).and(finished)
    }

    /// Lets go of control fds, waits until restore has made the new superblocks, and opens them.
    fn replace_held(
        &mut self,
        session: &mut Session<'_>,
        held: &BTreeMap<usize, Vec<End>>,
        opened: &mut Vec<Opened>,
    ) -> anyhow::Result<()> {
        if held.is_empty() {
            return Ok(());
        }
        self.put_placeholders(session, held)?;
        self.segment().advance_all(held.keys().copied(), Progress::Released)?;
        self.await_new(held)?;
        let known: HashSet<usize> = opened.iter().map(|one| one.index).collect();
        let made: Vec<usize> = self.ready()?.into_iter().filter(|index| !known.contains(index)).collect();
        let (made, blocked) = self.open(&made)?;
        opened.extend(made);
        self.open_inside(session, &blocked, opened)
    }

    /// Waits until restore has made the superblocks in the place of those that were let go of. The master is
    /// stopped, so it is not waited for long: each that is made counts as a sign that restore goes on.
    fn await_new(&self, held: &BTreeMap<usize, Vec<End>>) -> anyhow::Result<()> {
        let (mut last, mut deadline) = (held.len(), self.watch.step(STEP));
        loop {
            let seen = self.segment().wake_value();
            self.watch.check()?;
            self.process.check_alive()?;
            let mut waiting = self.select(|progress| progress == Progress::Released)?;
            waiting.retain(|index| held.contains_key(index));
            if waiting.is_empty() {
                return Ok(());
            }
            if waiting.len() < last {
                (last, deadline) = (waiting.len(), self.watch.step(STEP));
            } else if Instant::now() >= deadline {
                // Told before the control fds are given back: they show what restore puts back.
                give_up(self.segment(), waiting, Errno::ETIMEDOUT)?;
                return Err(Errno::ETIMEDOUT)
                    .context("restore did not make the new mounts while the master was stopped for them");
            }
            self.watch.wait(seen)?;
        }
    }
}
