//! Connecting a live master.
//!
//! The master is stopped once, and only when there is something to connect: everything that can be
//! opened is opened before. Where the master's control fds keep a superblock alive that restore has to
//! replace, it stays stopped until the new one is there, as it must not run without them.

mod connect;
mod control;
mod open;
mod process;
mod stop;
mod verify;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

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
use crate::opener::{Opener, Places};
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
}
