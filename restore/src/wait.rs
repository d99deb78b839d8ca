//! Waiting until every superblock is connected: one loop over all that can happen.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;
use autofs_cr_common::cli::{Voice, count};
use autofs_cr_common::segment::{Progress, Segment};
use autofs_cr_common::target::is_alive;
use crossbeam_channel::RecvTimeoutError;
use nix::errno::Errno;

use crate::events::{Event, Events};
use crate::live::Masters;
use crate::mounter::{CHUNK, Order};
use crate::plan::Plan;
use crate::worker::Worker;

/// How the waiting ended.
#[derive(Debug)]
pub enum End {
    /// Everything is connected.
    Connected,
    /// It is not, for this reason; what is connected can be left.
    Not(String),
    /// It was ended, for this reason.
    Broken(String),
}

/// Who waits, and what for.
pub struct Waiter<'a> {
    pub plan: &'a Plan,
    pub masters: &'a Masters,
    pub segment: &'a Arc<Segment>,
    /// The item of the plan, by the index in the segment.
    pub items: &'a [usize],
    /// The mounter, where it is still one.
    pub worker: Option<&'a Worker>,
    pub events: &'a Events,
    pub voice: Voice,
    /// A failure does not end the waiting for others.
    pub keep_going: bool,
    /// Groups that are made when their fixups are there, by index in the plan.
    pub pending: Vec<usize>,
    /// Those of them whose fixups were all there, and were told to let go of the old superblocks.
    pub held: Vec<usize>,
    /// Masters whose claim is watched, by index in the segment.
    pub watched: Vec<usize>,
}

impl Waiter<'_> {
    /// Waits until all is connected, something failed, or the deadline passed.
    pub fn wait(&mut self, deadline: Instant) -> anyhow::Result<End> {
        loop {
            if let Some(end) = self.look()? {
                return Ok(end);
            }
            let first = match self.events.receiver.recv_deadline(deadline) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => return Ok(End::Not(self.timed_out()?)),
                Err(RecvTimeoutError::Disconnected) => bail!("the sources of events ended"),
            };
            // All that came meanwhile, as one look answers them all: a fixup moves thousands at a time.
            for event in std::iter::once(first).chain(self.events.receiver.try_iter()) {
                if let Some(end) = self.handle(event) {
                    return Ok(end);
                }
            }
        }
    }

    fn handle(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Segment => None,
            Event::ClaimEnded(master) => {
                self.claim_ended(master);
                None
            }
            Event::MasterEnded(master) => {
                self.master_ended(master);
                None
            }
            Event::ChildEnded => Some(End::Broken(self.child_ended())),
            Event::Signal(signal) => Some(End::Broken(format!("ended by signal {signal}"))),
        }
    }

    /// Looks at all superblocks: lets the mounter go on with those that were let go of, and tells
    /// whether it is over.
    fn look(&mut self) -> anyhow::Result<Option<End>> {
        self.watch_claims()?;
        self.give_up()?;
        self.hold()?;
        self.make_released()?;
        let mut waiting = 0;
        let mut failed = Vec::new();
        for index in 0..self.items.len() {
            match self.segment.progress(index)? {
                Progress::Connected => {}
                Progress::Failed(errno) => failed.push((index, errno)),
                _ => waiting += 1,
            }
        }
        if waiting > 0 && (self.keep_going || failed.is_empty()) {
            return Ok(None);
        }
        Ok(Some(match failed.first() {
            None => End::Connected,
            Some(&(index, errno)) => End::Not(self.failure(index, errno, failed.len() - 1)),
        }))
    }

    fn failure(&self, index: usize, errno: Errno, others: usize) -> String {
        let master = &self.segment.masters()[self.segment.superblocks()[index].master].id;
        let has_ended = self.masters.live.get(master).is_some_and(|live| !is_alive(live.pidfd.as_fd()));
        let why = if has_ended { format!("its master {master} has ended") } else { errno.desc().to_owned() };
        let first = format!("{} was not connected: {why}", self.name(index));
        match others {
            0 => first,
            others => format!("{first} (and {} more)", count(others, "mount")),
        }
    }

    /// A group is made as a whole or not at all: where the fixup of one part has failed, it gives up the
    /// others.
    fn give_up(&mut self) -> anyhow::Result<()> {
        let mut lost = Vec::new();
        for group in self.pending.iter().chain(&self.held).copied() {
            let has_failed = |&index: &usize| matches!(self.segment.progress(index), Ok(Progress::Failed(_)));
            if self.indices(group).iter().any(has_failed) {
                lost.push(group);
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        lost.sort_unstable();
        self.pending.retain(|group| lost.binary_search(group).is_err());
        self.held.retain(|group| lost.binary_search(group).is_err());
        let rest = lost.iter().flat_map(|&group| self.indices(group));
        let open =
            rest.filter(|&index| self.segment.progress(index).is_ok_and(|progress| !progress.is_final()));
        // One that a fixup has given up meanwhile is as good.
        let _ = self.segment.advance_all(open, Progress::Failed(Errno::ECANCELED));
        Ok(())
    }

    /// Tells the fixups to let go of what is replaced, once they are all there: a master that is stopped for
    /// it shall not have to wait for the fixup of another.
    fn hold(&mut self) -> anyhow::Result<()> {
        let all = std::mem::take(&mut self.pending);
        let is_there = |index: &usize| self.watched.contains(&self.segment.superblocks()[*index].master);
        let (there, pending): (Vec<usize>, Vec<usize>) =
            all.into_iter().partition(|&group| self.held_indices(group).iter().all(is_there));
        if !there.is_empty() {
            let held = there.iter().flat_map(|&group| self.held_indices(group));
            // One that its fixup has given up meanwhile is seen at the next look.
            let _ = self.segment.advance_all(held, Progress::Held);
        }
        self.pending = pending;
        self.held.extend(there);
        Ok(())
    }

    /// The superblocks of a group that wait for fixups, by their index in the segment.
    fn indices(&self, group: usize) -> Vec<usize> {
        let items = self.plan.groups[group].iter();
        items.filter_map(|item| self.items.binary_search(item).ok()).collect()
    }

    /// Those of them that are replaced.
    fn held_indices(&self, group: usize) -> Vec<usize> {
        let is_held = |index: &usize| self.plan.items[self.items[*index]].is_held();
        self.indices(group).into_iter().filter(is_held).collect()
    }

    /// Makes the held groups whose superblocks were all let go of by their fixups.
    fn make_released(&mut self) -> anyhow::Result<()> {
        let Some(worker) = self.worker.filter(|_| !self.held.is_empty()) else { return Ok(()) };
        let mut ready = Vec::new();
        let mut held = Vec::new();
        for &group in &self.held {
            let is_ready = self.is_released(group)?;
            if is_ready { ready.push(group) } else { held.push(group) }
        }
        self.held = held;
        for groups in ready.chunks(CHUNK) {
            self.events.check_signal()?;
            worker.order(self.plan, &Order::Make(groups.to_vec()))?;
            advance(self.segment, self.plan, self.items, groups);
        }
        Ok(())
    }

    fn is_released(&self, group: usize) -> anyhow::Result<bool> {
        for index in self.held_indices(group) {
            if self.segment.progress(index)? != Progress::Released {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn watch_claims(&mut self) -> anyhow::Result<()> {
        for master in 0..self.segment.masters().len() {
            if !self.watched.contains(&master) && self.segment.is_claimed(master)? {
                self.watched.push(master);
                self.voice.detail(format_args!("a fixup works on {}", self.segment.masters()[master].id));
                self.events.watch_claim(Arc::clone(self.segment), master)?;
            }
        }
        Ok(())
    }

    fn claim_ended(&mut self, master: usize) {
        self.watched.retain(|&watched| watched != master);
        let open = self
            .segment
            .superblocks_of(master)
            .filter(|(index, _)| !self.segment.progress(*index).is_ok_and(Progress::is_final));
        let open = open.count();
        if open > 0 {
            self.voice.warn(format_args!(
                "the fixup of {} ended, and {} not connected; run autofs-fixup again to go on",
                self.segment.masters()[master].id,
                if open == 1 { "1 mount is".to_owned() } else { format!("{open} mounts are") }
            ));
        }
    }

    /// No fixup can connect it any more. Its own may have told that already.
    fn master_ended(&self, master: usize) {
        let open = self.segment.superblocks_of(master).map(|(index, _)| index);
        let open =
            open.filter(|&index| self.segment.progress(index).is_ok_and(|progress| !progress.is_final()));
        let _ = self.segment.advance_all(open, Progress::Failed(Errno::ESRCH));
    }

    fn child_ended(&self) -> String {
        match self.worker {
            Some(_) => "the mounter ended".to_owned(),
            None => "the init of the fresh namespace ended before all was connected".to_owned(),
        }
    }

    fn timed_out(&self) -> anyhow::Result<String> {
        let mut waiting = Vec::new();
        for (master, described) in self.segment.masters().iter().enumerate() {
            let mut open = 0;
            for (index, _) in self.segment.superblocks_of(master) {
                open += usize::from(self.segment.progress(index)? != Progress::Connected);
            }
            if open > 0 {
                waiting.push(format!("{} of {}", count(open, "mount"), described.id));
            }
        }
        Ok(format!("the timeout passed, and not connected are: {}", waiting.join(", ")))
    }

    fn name(&self, index: usize) -> String {
        self.segment.superblocks()[index].mount_point.to_string()
    }
}

/// Tells the fixups that these groups are made.
pub fn advance(segment: &Segment, plan: &Plan, items: &[usize], groups: &[usize]) {
    let made = groups.iter().flat_map(|&group| &plan.groups[group]);
    let indices = made.filter_map(|item| items.binary_search(item).ok());
    // One that a fixup has given up meanwhile stays so, which the loop sees by itself.
    let open = indices.filter(|&index| segment.progress(index).is_ok_and(|progress| !progress.is_final()));
    let _ = segment.advance_all(open, Progress::Created);
}
