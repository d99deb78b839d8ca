//! The stops of a master, and what is done in one.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Context;
use autofs_cr_common::doc::image::End;
use autofs_cr_common::segment::Progress;
use nix::errno::Errno;

use super::{Expected, Live, Opened, STEP};
use crate::opener::Wanted;
use crate::remote::{Session, Stopped};
use crate::watch::give_up;

impl Live<'_> {
    /// Connects what is ready, and what restore makes once the held ones were let go of.
    pub(super) fn connect(
        &mut self,
        held: &BTreeMap<usize, Vec<End>>,
        ready: &[usize],
    ) -> anyhow::Result<()> {
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
