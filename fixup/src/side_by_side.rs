//! Many masters side by side: a child process for each, as ptrace and fork want processes with one thread.

use std::collections::VecDeque;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context;
use autofs_cr_common::channel::Channel;
use autofs_cr_common::child::Child;
use autofs_cr_common::cli::Voice;
use autofs_cr_common::segment::Segment;
use autofs_cr_common::sys::autofs::ControlDevice;
use rustix::event::{PollFd, PollFlags, poll};

use crate::live::{self, Tally};
use crate::source::Source;
use crate::watch::Watch;
use crate::{TOOL, show};

/// The fewest children at a time, where there are that many masters: they wait more than they work.
const FEWEST: usize = 4;

/// How many problems of one master are told one by one.
const TOLD: usize = 10;

/// What is the same for all masters.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The segment, which each child opens for itself.
    pub source: &'a Source,
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

impl Work<'_> {
    /// Works on these masters, by their indices in the segment.
    pub fn run(&self, segment: &Segment, masters: &[usize]) -> anyhow::Result<Summary> {
        let most = available_parallelism().map_or(FEWEST, |cores| (2 * cores.get()).max(FEWEST));
        let mut queue: VecDeque<usize> = masters.iter().copied().collect();
        let mut running: Vec<(usize, Child)> = Vec::new();
        let mut summary = Summary::default();
        loop {
            while running.len() < most && !queue.is_empty() {
                let Some(master) = queue.pop_front() else { break };
                running.push((master, self.start(master)?));
            }
            if running.is_empty() {
                return Ok(summary);
            }
            let (master, mut child) = running.swap_remove(wait_for_any(&running)?);
            let answer = child.receive::<Result<Tally, String>>(None);
            let tally = answer.map_or_else(
                |error| Err(format!("the process that worked on it ended without an answer: {error}")),
                |(tally, _)| tally,
            );
            child.wait().context("cannot wait for a child")?;
            summary.add(&show::master(&segment.masters()[master]), tally);
        }
    }

    fn start(&self, master: usize) -> anyhow::Result<Child> {
        Child::spawn(|channel| self.work(&channel, master)).context("cannot start a child")
    }

    /// What a child does.
    fn work(&self, channel: &Channel, master: usize) -> anyhow::Result<()> {
        let tally = self.source.open().and_then(|segment| {
            let watch = Watch::new(&segment, self.timeout);
            live::run(&watch, master, self.device, self.voice)
        });
        let answer = tally.map_err(|error| format!("{error:#}")).map(shortened);
        channel.send(&answer, &[])?;
        Ok(())
    }
}

impl Summary {
    fn add(&mut self, name: &str, tally: Result<Tally, String>) {
        let tally = tally.unwrap_or_else(|problem| Tally { connected: 0, problems: vec![problem] });
        self.connected += tally.connected;
        if tally.problems.is_empty() {
            self.masters += 1;
            return;
        }
        self.failed = true;
        for problem in tally.problems {
            eprintln!("{TOOL}: {name}: {problem}");
        }
    }
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

/// The first child that has something to say, or has ended.
fn wait_for_any(running: &[(usize, Child)]) -> anyhow::Result<usize> {
    let mut polled: Vec<PollFd<'_>> =
        running.iter().map(|(_, child)| PollFd::new(&**child, PollFlags::IN)).collect();
    rustix::io::retry_on_intr(|| poll(&mut polled, None)).context("cannot wait for the children")?;
    polled.iter().position(|fd| !fd.revents().is_empty()).context("no child is ready")
}
