//! Many masters side by side: a child process for each, as ptrace and fork want processes with one thread.

use std::collections::{BTreeMap, VecDeque};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context;
use autofs_cr_common::channel::Channel;
use autofs_cr_common::child::Child;
use autofs_cr_common::cli::{Voice, count, say};
use autofs_cr_common::limits::raise_descriptors;
use autofs_cr_common::progress::Progress;
use autofs_cr_common::segment::Segment;
use autofs_cr_common::sys::autofs::ControlDevice;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ahead::{Ahead, Prepared};
use crate::live::{self, Tally};
use crate::sight::{Question, Said, Sight, Together};
use crate::watch::Watch;
use crate::{TOOL, show};

/// The fewest children at work at a time, where there are that many masters: they wait more than they work.
const FEWEST: usize = 4;

/// How many children wait at most for a look at the mounts, which is then taken. Each is a process, and its channel a
/// descriptor, of which they have at most this part of all.
const MOST_ASKING: usize = 256;
const PART_OF_DESCRIPTORS: usize = 4;

/// How long they wait for the next one of those at work, so that one look does for many. As long as a look at
/// 20,000 mounts takes.
const GATHERING: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How many problems of one master are told one by one.
const TOLD: usize = 10;

/// What is the same for all masters.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The segment, which each child opens for itself.
    pub segment: &'a Segment,
    /// The control device.
    pub device: &'a ControlDevice,
    /// The time for each master; as long as the restore waits if there is none.
    pub timeout: Option<Duration>,
    /// How much is said.
    pub voice: Voice,
}

/// What came of all masters.
#[derive(Debug, Default)]
pub struct Summary {
    /// How many superblocks are connected.
    pub connected: usize,
    /// How many masters are connected with all of them.
    pub masters: usize,
    /// Something is not connected.
    pub failed: bool,
}

/// What a child says at its end.
type Done = Result<Tally, String>;

/// The children, by their masters.
#[derive(Default)]
struct Children {
    working: BTreeMap<usize, Child>,
    asking: BTreeMap<usize, (Child, Question)>,
    /// How many steps they have told of.
    steps: usize,
}

impl Work<'_> {
    /// Works on these masters, by their indices in the segment.
    pub fn run(&self, masters: &[usize]) -> anyhow::Result<Summary> {
        let most = available_parallelism().map_or(FEWEST, |cores| (2 * cores.get()).max(FEWEST));
        let most_asking = (raise_descriptors() / PART_OF_DESCRIPTORS).clamp(1, MOST_ASKING);
        let together = Together::look(self.segment, masters);
        let mut ahead = Ahead::new(&together, self.segment, self.device);
        let steps: usize = masters.iter().map(|&master| self.segment.superblocks_of(master).count()).sum();
        let progress = self.voice.progress("connected", steps);
        let mut queue: VecDeque<usize> = masters.iter().copied().collect();
        let mut children = Children::default();
        let mut summary = Summary::default();
        loop {
            while children.working.len() < most && children.asking.len() < most_asking {
                let Some(master) = queue.pop_front() else { break };
                let prepared = ahead.prepare(master);
                children.working.insert(master, self.start(master, prepared, &together, &progress)?);
            }
            if children.working.is_empty() && children.asking.is_empty() {
                return Ok(summary);
            }
            let all_ask = children.working.is_empty() || children.asking.len() >= most_asking;
            let ready = if all_ask { Vec::new() } else { children.wait()? };
            if ready.is_empty() {
                children.answer(&together, self.segment)?;
            }
            for master in ready {
                if let Some(done) = children.hear(master)? {
                    let name = show::master(&self.segment.masters()[master]);
                    progress.suspended(|| summary.add(&name, done, self.voice));
                }
                progress.at(children.steps);
            }
        }
    }

    fn start(
        &self,
        master: usize,
        prepared: Prepared,
        together: &Together,
        progress: &Progress,
    ) -> anyhow::Result<Child> {
        let hears_steps = progress.is_shown();
        Child::spawn(|channel| {
            let sight = together.of(master, prepared, &channel, hears_steps);
            self.work(&channel, master, sight)
        })
        .context("cannot start a child")
    }

    /// What a child does.
    fn work(&self, channel: &Channel, master: usize, sight: Sight<'_>) -> anyhow::Result<()> {
        let segment = self.segment.again().map_err(anyhow::Error::from);
        let done: Done = segment
            .and_then(|segment| {
                let watch = Watch::new(&segment, self.timeout);
                live::run(&watch, master, self.device, sight, self.voice)
            })
            .map_err(|error| format!("{error:#}"))
            .map(shortened);
        channel.send(&Said::Done(done), &[])?;
        Ok(())
    }
}

impl Children {
    /// Those that have something to say, or have ended; none if some ask and no others came for a while.
    fn wait(&self) -> anyhow::Result<Vec<usize>> {
        let mut polled: Vec<PollFd<'_>> =
            self.working.values().map(|child| PollFd::new(&**child, PollFlags::IN)).collect();
        let timeout = (!self.asking.is_empty()).then_some(&GATHERING);
        rustix::io::retry_on_intr(|| poll(&mut polled, timeout)).context("cannot wait for the children")?;
        let ready = self.working.keys().zip(&polled).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(&master, _)| master).collect())
    }

    /// Hears one that is ready; what came of its master if it is done.
    fn hear(&mut self, master: usize) -> anyhow::Result<Option<Done>> {
        let Some(mut child) = self.working.remove(&master) else { return Ok(None) };
        let done = match child.receive::<Said<Done>>(None) {
            Ok((Said::Question(question), _)) => {
                self.asking.insert(master, (child, question));
                return Ok(None);
            }
            Ok((Said::Steps(count), _)) => {
                self.steps += count;
                self.working.insert(master, child);
                return Ok(None);
            }
            Ok((Said::Done(done), _)) => done,
            Err(error) => Err(format!("the process that worked on it ended without an answer: {error}")),
        };
        child.wait().context("cannot wait for a child")?;
        Ok(Some(done))
    }

    /// Answers all that ask.
    fn answer(&mut self, together: &Together, segment: &Segment) -> anyhow::Result<()> {
        let asking = std::mem::take(&mut self.asking);
        let (children, questions): (Vec<_>, Vec<_>) =
            asking.into_iter().map(|(master, (child, question))| (child, (master, question))).unzip();
        let answers = together.answer(segment, &questions);
        for ((child, (master, _)), answer) in children.into_iter().zip(questions).zip(answers) {
            // One that has ended is noticed when it is heard.
            let _ = child.send(&answer, &[]);
            self.working.insert(master, child);
        }
        Ok(())
    }
}

impl Summary {
    fn add(&mut self, name: &str, done: Done, voice: Voice) {
        let tally = done.unwrap_or_else(|problem| Tally { problems: vec![problem], ..Tally::default() });
        if let Some(longest) = tally.stops.iter().max() {
            let (total, stops) = (tally.stops.iter().sum::<Duration>(), count(tally.stops.len(), "stop"));
            voice.detail(format_args!(
                "{name}: stopped for {} in {stops}, the longest {}",
                milliseconds(total),
                milliseconds(*longest)
            ));
        }
        self.connected += tally.connected;
        if tally.problems.is_empty() {
            self.masters += 1;
            return;
        }
        self.failed = true;
        for problem in tally.problems {
            say(TOOL, format_args!("{name}: {problem}"));
        }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

/// A tally that fits into a message and on a screen.
fn shortened(mut tally: Tally) -> Tally {
    let more = tally.problems.len().saturating_sub(TOLD);
    if more > 0 {
        tally.problems.truncate(TOLD);
        tally.problems.push(format!("and {more} more"));
    }
    tally
}
