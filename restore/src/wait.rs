//! Waiting until every superblock is connected: one loop over all that can happen.

use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;
use autofs_cr_common::cli::{Voice, count};
use autofs_cr_common::segment::{Progress, Segment};
use crossbeam_channel::RecvTimeoutError;

use crate::events::{Event, Events};
use crate::mounter::Order;
use crate::plan::Plan;
use crate::worker::Worker;

/// How the waiting ended.
#[derive(Debug)]
pub enum End {
    /// Everything is connected.
    Connected,
    /// It is not, for this reason.
    Not(String),
}

/// Who waits, and what for.
pub struct Waiter<'a> {
    pub plan: &'a Plan,
    pub segment: &'a Arc<Segment>,
    /// The item of the plan, by the index in the segment.
    pub items: &'a [usize],
    /// The mounter, where it is still one.
    pub worker: Option<&'a Worker>,
    pub events: &'a Events,
    pub voice: Voice,
    /// Groups that are made as soon as their fixups are there, by index in the plan.
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
            Event::ChildEnded => Some(End::Not(self.child_ended())),
            Event::Signal(signal) => Some(End::Not(format!("ended by signal {signal}"))),
        }
    }

    /// Looks at all superblocks: lets the mounter go on with those that were let go of, and tells
    /// whether it is over.
    fn look(&mut self) -> anyhow::Result<Option<End>> {
        self.watch_claims()?;
        self.make_released()?;
        let mut waiting = 0;
        for index in 0..self.items.len() {
            match self.segment.progress(index)? {
                Progress::Connected => {}
                Progress::Failed(errno) => {
                    return Ok(Some(End::Not(format!(
                        "{} was not connected: {}",
                        self.name(index),
                        errno.desc()
                    ))));
                }
                _ => waiting += 1,
            }
        }
        Ok((waiting == 0).then_some(End::Connected))
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
        if ready.is_empty() {
            return Ok(());
        }
        let (segment, items, plan) = (self.segment, self.items, self.plan);
        worker.order(plan, &Order::Make(ready), |made| advance(segment, plan, items, made))?;
        Ok(())
    }

    fn is_released(&self, group: usize) -> anyhow::Result<bool> {
        for &item in &self.plan.groups[group] {
            if !self.plan.items[item].is_held() {
                continue;
            }
            let index = self.items.binary_search(&item);
            if let Ok(index) = index {
                if self.segment.progress(index)? != Progress::Released {
                    return Ok(false);
                }
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
