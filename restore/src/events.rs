//! What restore waits for, as one stream of events. Each source has a thread; all end with the process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use autofs_cr_common::segment::Segment;
use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::signals;

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A superblock of the segment has moved forward, or something else there changed.
    Segment,
    /// The claim on a master, by its index in the segment, ended.
    ClaimEnded(usize),
    /// A master, by its index in the segment, ended.
    MasterEnded(usize),
    /// The mounter, or the init of the fresh namespace, ended.
    ChildEnded,
    /// A signal that asks for the end.
    Signal(i32),
}

/// The sources, and where their events come out.
#[derive(Debug)]
pub struct Events {
    sender: Sender<Event>,
    /// Where events come out.
    pub receiver: Receiver<Event>,
    /// The last signal that came; zero before.
    signal: Arc<AtomicUsize>,
}

impl Events {
    /// A stream that already has the signals in it. From here on they do not end this process.
    pub fn new() -> anyhow::Result<Self> {
        let (sender, receiver) = unbounded();
        let events = Self { sender, receiver, signal: Arc::default() };
        let ending = signals::ENDING.map(|signal| signal as i32);
        let mut caught = Signals::new(ending).context("cannot catch signals")?;
        for signal in ending {
            flag::register_usize(signal, Arc::clone(&events.signal), signal as usize)
                .context("cannot catch signals")?;
        }
        signals::unblock().context("cannot unblock signals")?;
        events.source("signals", move |send| caught.forever().all(|signal| send(Event::Signal(signal))))?;
        Ok(events)
    }

    /// An error if a signal has asked for the end, for work that does not look at the events.
    pub fn check_signal(&self) -> anyhow::Result<()> {
        match self.signal.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => bail!("ended by signal {signal}"),
        }
    }

    /// Adds the changes of the segment.
    pub fn watch_segment(&self, segment: Arc<Segment>) -> anyhow::Result<()> {
        self.source("segment", move |send| {
            loop {
                let seen = segment.wake_value();
                // Before it waits, so that a change before the first look is not missed.
                if !send(Event::Segment) || segment.wait(seen, FOREVER).is_err() {
                    return false;
                }
            }
        })
    }

    /// Adds the end of the claim on a master.
    pub fn watch_claim(&self, segment: Arc<Segment>, master: usize) -> anyhow::Result<()> {
        self.source("claim", move |send| {
            segment.wait_until_unclaimed(master).is_ok() && send(Event::ClaimEnded(master))
        })
    }

    /// Adds the end of a master, by its pidfd.
    pub fn watch_master(&self, pidfd: OwnedFd, master: usize) -> anyhow::Result<()> {
        self.source("master", move |send| wait_readable(&pidfd).is_ok() && send(Event::MasterEnded(master)))
    }

    /// Adds the end of a child, by its pidfd.
    pub fn watch_child(&self, pidfd: OwnedFd) -> anyhow::Result<()> {
        self.source("child", move |send| wait_readable(&pidfd).is_ok() && send(Event::ChildEnded))
    }

    fn source(
        &self,
        name: &str,
        run: impl FnOnce(&dyn Fn(Event) -> bool) -> bool + Send + 'static,
    ) -> anyhow::Result<()> {
        let sender = self.sender.clone();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&|event| sender.send(event).is_ok()))
            .with_context(|| format!("cannot start the thread that waits for {name} (with too little memory, RLIMIT_AS, or too many threads, RLIMIT_NPROC)"))?;
        Ok(())
    }
}

/// Longer than any restore takes.
const FOREVER: Duration = Duration::from_secs(86_400);

fn wait_readable(fd: impl AsFd) -> io::Result<()> {
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut polled, None)).map(drop)?)
}
