//! Freeing mounts that hang: who waits on them gets an error, and they are ready for a master. Where the master
//! lives it is connected again in the same step.
//!
//! | stage | file | what it does |
//! |---|---|---|
//! | 1. look | `free/hung.rs` | the report; which superblocks |
//! | 2. reach | `free/reach.rs`, `free/way.rs`, `free/process.rs` | a way to each of them; so far nothing is changed |
//! | 3. kill | `free/kill.rs` | only where there is no other way, and with `--kill` |
//! | 4. free | `free/reconnect.rs` | they turn catatonic, and those with a living master are connected again |
//! | 5. verify | `free/verify.rs` | mountinfo tells what came of it, and nobody waits any more |

mod hung;
mod kill;
mod process;
mod reach;
mod reconnect;
mod verify;
mod way;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use autofs_cr_common::advice;
use autofs_cr_common::cli::{Voice, count, say};
use autofs_cr_common::doc::Report;
use autofs_cr_common::exit::Exit;
use autofs_cr_common::limits::raise_descriptors;
use autofs_cr_common::model::{Device, KernelPipe, State};
use autofs_cr_common::pipe::WriteEnd;
use autofs_cr_common::proc::Proc;
use autofs_cr_common::scan::{Needs, Scope, scan};
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_common::target::Target;

use crate::cli::Arguments;
use crate::mounts::Mounts;
use crate::{TOOL, device};
use hung::Hung;
use verify::{End, Watched};
use way::Way;

/// How long it may take, if nothing else was asked for.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long what has been begun may take at least, also where the deadline passes meanwhile: a master that was cut
/// off has to be connected again.
const TO_THE_END: Duration = Duration::from_secs(5);

/// How many commands a message names.
const MOST_COMMANDS: usize = 4;

/// What all stages work with.
struct World {
    proc: Proc,
    scope: Scope,
    /// Whose mounts, where they are not those of this process.
    target: Option<Target>,
    device: ControlDevice,
    deadline: Instant,
    voice: Voice,
}

/// Frees mounts.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let world = World::open(arguments)?;
    let report = world.report()?;
    let hung = hung::select(&report, &arguments.mount_points, arguments.pid.is_some())?;
    if hung.is_empty() {
        world.voice.note("nothing to free: the master of no mount here is gone");
        return Ok(Exit::Done);
    }
    let ways = reach::find(&world, &hung, arguments.dry_run)?;
    if arguments.dry_run {
        hung.iter().zip(&ways).for_each(|(one, way)| println!("{}", way.describe(one)));
        return Ok(Exit::Done);
    }
    if Instant::now() >= world.deadline {
        bail!("to look at the mounts took longer than the timeout (nothing was changed)");
    }
    refuse(&hung, &ways, arguments.kill)?;
    let mut watched = Watched::all(&world, &hung);
    let mut freeing = Freeing { world: &world, hung: &hung, killed: 0 };
    let connected = freeing.free(ways);
    let ends = verify::ends(&world, &hung, &connected)?;
    // Nothing has changed for the others.
    let freed = hung.iter().zip(&ends).filter(|(_, end)| **end != End::Unchanged);
    watched.keep(&freed.map(|(one, _)| one.superblock.device).collect());
    let left = watched.wait(world.end());
    let waiters = (watched.count() - left.len()).saturating_sub(freeing.killed);
    Ok(tell(&world, &hung, &ends, &left, Counts { waiters, killed: freeing.killed }))
}

impl World {
    fn open(arguments: &Arguments) -> anyhow::Result<Self> {
        raise_descriptors();
        Ok(Self {
            proc: Proc::open().context("cannot open /proc")?,
            scope: arguments.pid.map_or(Scope::Own, Scope::Of),
            target: arguments.pid.map(Target::open).transpose()?,
            device: device::open()?,
            deadline: Instant::now() + arguments.timeout.unwrap_or(DEFAULT_TIMEOUT),
            voice: Voice::new(TOOL, arguments.verbosity),
        })
    }

    fn report(&self) -> anyhow::Result<Report> {
        Ok(scan(&self.proc, self.scope, Needs::REPORT)?)
    }

    /// The mounts of the namespace that it is about.
    fn mounts(&self) -> anyhow::Result<Mounts> {
        let process = match &self.target {
            Some(target) => self.proc.process(target.pid()),
            None => self.proc.this(),
        };
        Mounts::read(&process.context("cannot look at the mounts")?)
    }

    /// The deadline of a step that takes at most this long.
    fn step(&self, most: Duration) -> Instant {
        self.deadline.min(Instant::now() + most)
    }

    /// The deadline of what has to be brought to its end, as something was changed.
    fn end(&self) -> Instant {
        self.deadline.max(Instant::now() + TO_THE_END)
    }
}

/// Nothing is changed unless all can be freed.
fn refuse(hung: &[Hung<'_>], ways: &[Way], may_kill: bool) -> anyhow::Result<()> {
    let reasons = hung.iter().zip(ways).filter_map(|(one, way)| way.refusal(one, may_kill));
    let reasons: Vec<String> = reasons.collect();
    match reasons.as_slice() {
        [] => Ok(()),
        [one] => bail!("{one} (nothing was changed)"),
        all => {
            all.iter().for_each(|reason| say(TOOL, format_args!("{reason}")));
            bail!("nothing was changed, as {} cannot be freed so", count(all.len(), "mount"))
        }
    }
}

/// The changes.
struct Freeing<'a> {
    world: &'a World,
    hung: &'a [Hung<'a>],
    /// How many processes were killed.
    killed: usize,
}

impl<'a> Freeing<'a> {
    /// Frees all; those that are connected again. One that cannot be freed does not keep the others.
    fn free(&mut self, ways: Vec<Way>) -> BTreeSet<Device> {
        // A master without a write end of its own must not see a hang-up while its mount has no pipe.
        let write_ends = self.write_ends();
        let connected = reconnect::reconnect(self.world, &self.cut_all_off(ways));
        drop(write_ends);
        connected.unwrap_or_else(|error| {
            say(TOOL, format_args!("cannot connect masters again: {error:#}"));
            BTreeSet::new()
        })
    }

    /// Makes all superblocks catatonic, but for those whose master does it; those whose master lives. They come last, as
    /// they are to be connected again soon. Killing comes after all for which nobody is killed: who hangs there too may
    /// be a new master, which goes on then and connects the others.
    fn cut_all_off(&mut self, ways: Vec<Way>) -> Vec<&'a Hung<'a>> {
        let (mut gone, mut kills, mut living) = (Vec::new(), Vec::new(), Vec::new());
        for (one, way) in self.hung.iter().zip(ways) {
            match way {
                Way::Kill => kills.push(one),
                Way::Root(root) if one.superblock.state != State::Connected => gone.push((one, Some(root))),
                Way::Root(root) => living.push((one, Some(root))),
                Way::Master | Way::Catatonic | Way::Member(_) | Way::Held(_) | Way::None(_) => {
                    living.push((one, None));
                }
            }
        }
        let mut lives = self.cut_off(gone);
        for one in kills {
            match kill::open(self.world, one, &mut self.killed) {
                Ok(root) => lives.extend(self.cut_off(vec![(one, Some(root))])),
                Err(error) => say(TOOL, format_args!("{}: {error:#}", one.place())),
            }
        }
        lives.extend(self.cut_off(living));
        lives
    }

    /// Makes superblocks catatonic, of which the roots are given, but for those whose master does it; those whose master
    /// lives. What somebody connected since it was looked at is left alone.
    fn cut_off(&self, some: Vec<(&'a Hung<'a>, Option<OwnedFd>)>) -> Vec<&'a Hung<'a>> {
        if some.is_empty() {
            return Vec::new();
        }
        let mounts = match self.world.mounts() {
            Ok(mounts) => mounts,
            Err(error) => {
                say(TOOL, format_args!("cannot see what is still to be freed: {error:#}"));
                return Vec::new();
            }
        };
        let mut lives = Vec::new();
        for (one, root) in some {
            let pipe = mounts.options(one.superblock.device).map(|found| found.pipe);
            if pipe != one.superblock.pipe.map(KernelPipe::Inode) {
                continue;
            }
            let cut_off = root.map_or(Ok(()), |root| self.world.device.make_catatonic(root.as_fd()));
            match cut_off {
                Ok(()) if one.superblock.state == State::Connected => lives.push(one),
                Ok(()) => {}
                Err(error) => say(TOOL, format_args!("{}: cannot make it catatonic: {error}", one.place())),
            }
        }
        lives
    }

    /// A write end of each pipe that is read.
    fn write_ends(&self) -> Vec<WriteEnd> {
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        let new = self.hung.iter().filter(|one| one.superblock.pipe.is_some_and(|pipe| seen.insert(pipe)));
        new.filter_map(|one| one.write_end(&self.world.proc)).collect()
    }
}

/// What is counted for people.
#[derive(Clone, Copy)]
struct Counts {
    waiters: usize,
    killed: usize,
}

/// Says what came of it.
fn tell(world: &World, hung: &[Hung<'_>], ends: &[End], left: &[String], counts: Counts) -> Exit {
    let mut exit = Exit::Done;
    for (one, end) in hung.iter().zip(ends).filter(|(_, end)| **end == End::Cut) {
        world.voice.warn(format_args!("{}: it is {end}", one.place()));
        exit = Exit::Attention;
    }
    for (one, end) in hung.iter().zip(ends).filter(|(_, end)| **end == End::Unchanged) {
        say(TOOL, format_args!("{}: it is {end}", one.place()));
        exit = Exit::Failed;
    }
    for waiter in left {
        say(TOOL, format_args!("{waiter} still waits"));
        exit = Exit::Failed;
    }
    let freed = ends.iter().filter(|end| **end != End::Unchanged).count();
    let mut text = format!("freed {} and {}", count(freed, "mount"), count(counts.waiters, "waiter"));
    if counts.killed > 0 {
        text = format!("{text}; killed {}", processes(counts.killed));
    }
    if freed > 0 {
        world.voice.note(text);
    }
    if ends.contains(&End::Ready) {
        world.voice.note(advice(world, hung, ends));
    }
    exit
}

/// What to do next for the mounts whose master is gone.
fn advice(world: &World, hung: &[Hung<'_>], ends: &[End]) -> String {
    let ready: Vec<&Hung<'_>> =
        hung.iter().zip(ends).filter(|(_, end)| **end == End::Ready).map(|(one, _)| one).collect();
    let target = world.target.as_ref().map(Target::pid);
    let commands: BTreeSet<String> = ready.iter().filter_map(|one| one.restart()).collect();
    let mut shown: Vec<String> = commands.iter().map(|command| advice::at(target, command)).collect();
    if shown.len() > MOST_COMMANDS {
        shown.truncate(MOST_COMMANDS);
        shown.push(format!("and {} more of that kind", commands.len() - MOST_COMMANDS));
    }
    let ready = match ready.as_slice() {
        [one] => format!("{} is", one.place()),
        all => format!("{} are", count(all.len(), "mount")),
    };
    let how = if shown.is_empty() { String::new() } else { format!(": {}", shown.join("; ")) };
    format!("{ready} ready for a master: start it again{how}")
}

fn processes(number: usize) -> String {
    format!("{number} process{}", if number == 1 { "" } else { "es" })
}
