//! Opening mounts in a child process: a walk onto an autofs mount may block for ever, and a child can
//! be killed. Not one that waits for the end of an expire: where there is one on the way, nobody walks.

mod server;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use autofs_cr_common::channel::ChannelError;
use autofs_cr_common::child::Child;
use autofs_cr_common::scan::Expiring;
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_common::target::Target;
use nix::errno::Errno;

use crate::expires::{self, Expires};
use server::{Opened, Order, Server};

pub use server::{Places, Wanted, errors, pair};

/// How many descriptors come in one message.
pub const AT_ONCE: usize = 250;

/// How long a message may take. Opening a mount takes some microseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many children open mounts side by side, where there are more than come in one message.
const CHILDREN: usize = 2;

/// What is said of a child that does not answer as it should.
const FAILED: &str = "the child that opens mounts failed";

/// Opens mounts at places that are known before.
#[derive(Debug)]
pub struct Opener<'a> {
    server: Server<'a>,
    children: [Option<Child>; CHILDREN],
    /// Where not even a child may walk, as of the first walk or since one blocked.
    expiring: Option<Expiring>,
    /// A look at all expires that was taken before.
    known: Option<Expires>,
    may_fork: bool,
    patience: Duration,
    end: Option<Instant>,
}

impl<'a> Opener<'a> {
    /// One without a child yet.
    pub fn new(places: Places<'a>, device: &'a ControlDevice, target: Option<&'a Target>) -> Self {
        Self {
            server: Server { places, device, target },
            children: [const { None }; CHILDREN],
            expiring: None,
            known: None,
            may_fork: true,
            patience: PATIENCE,
            end: None,
        }
    }

    /// The same with what a look at all expires saw.
    pub fn knowing(mut self, known: Option<Expires>) -> Self {
        self.known = known;
        self
    }

    /// For the next walks: what such a look has seen now.
    pub fn renew(&mut self, known: Option<Expires>) {
        (self.expiring, self.known) = (None, known);
    }

    /// The same for who tries it again and again, and must be fast: with another time for each message.
    pub fn hasty(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The same with an end: what is not opened by then is taken to block.
    pub fn until(mut self, end: Instant) -> Self {
        self.end = Some(end);
        self
    }

    /// Has a child ready, so that the next mount is opened without delay.
    pub fn prepare(&mut self) -> anyhow::Result<()> {
        self.child(0).map(drop)
    }

    /// Ends its children, until they are needed again.
    pub fn rest(&mut self) {
        self.children = [const { None }; CHILDREN];
    }

    /// Whether a child may be forked when one is needed. Not while a session is open: it would keep the
    /// session's descriptors.
    pub fn allow_fork(&mut self, may_fork: bool) {
        self.may_fork = may_fork;
    }

    /// Opens mounts, each with its own result; ETIMEDOUT where that blocks.
    pub fn open(&mut self, wanted: &[Wanted]) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
        self.sparing(wanted, Self::open_free)
    }

    fn open_free(&mut self, wanted: &[Wanted]) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
        let mut all = Vec::with_capacity(wanted.len());
        for part in wanted.chunks(AT_ONCE) {
            match self.roots(part)? {
                Some(opened) => all.extend(opened),
                None if part.len() == 1 => all.push(Err(Errno::ETIMEDOUT)),
                // One of them blocks. Which one shows when they are opened one by one.
                None => {
                    for one in part {
                        all.extend(self.roots(&[*one])?.unwrap_or_else(|| vec![Err(Errno::ETIMEDOUT)]));
                    }
                }
            }
        }
        Ok(all)
    }

    /// The same, where each that blocks costs time and there is another way: ETIMEDOUT also for those that
    /// were asked for together with it.
    pub fn open_together(&mut self, wanted: &[Wanted]) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
        self.sparing(wanted, Self::open_free_together)
    }

    fn open_free_together(&mut self, wanted: &[Wanted]) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
        let mut all = Vec::with_capacity(wanted.len());
        let parts = wanted.chunks(AT_ONCE);
        let orders: Vec<Order> = parts.clone().map(|part| Order::Roots(part.to_vec())).collect();
        for (part, answer) in parts.zip(self.ask_all(&orders)?) {
            match answer {
                Some((errors, fds)) => all.extend(pair(errors, fds)?),
                None => all.extend(part.iter().map(|_| Err(Errno::ETIMEDOUT))),
            }
        }
        Ok(all)
    }

    /// Has `open` open those to which no expire is on the way. The others block.
    fn sparing(
        &mut self,
        wanted: &[Wanted],
        open: impl FnOnce(&mut Self, &[Wanted]) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>>,
    ) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
        let waits = self.waits(wanted.iter().map(|(at, _)| *at), |place| Some(place))?;
        let free: Vec<Wanted> =
            wanted.iter().zip(&waits).filter(|(_, waits)| !**waits).map(|(one, _)| *one).collect();
        let mut opened = open(self, &free)?.into_iter();
        let all = waits.into_iter().map(|waits| match waits {
            true => Err(Errno::ETIMEDOUT),
            false => opened.next().unwrap_or(Err(Errno::ETIMEDOUT)),
        });
        Ok(all.collect())
    }

    /// Which walks would wait for the end of an expire: those to what `end` makes of these places.
    fn waits(
        &mut self,
        places: impl ExactSizeIterator<Item = usize>,
        end: fn(&Path) -> Option<&Path>,
    ) -> anyhow::Result<Vec<bool>> {
        if places.len() == 0 {
            return Ok(Vec::new());
        }
        let expiring = match self.expiring.take() {
            Some(known) => known,
            None => expires::of_target(self.server.target, self.known.take())
                .context("cannot look for expires that are not answered")?,
        };
        let expiring = &*self.expiring.insert(expiring);
        let waits = |at: usize| {
            let path = self.server.places.get(at).and_then(|place| end(place));
            path.is_some_and(|path| expiring.on_the_way(path).is_some())
        };
        Ok(places.map(waits).collect())
    }

    /// Whether the directories above these places can be walked to without blocking.
    pub fn reaches(&mut self, places: &[usize]) -> anyhow::Result<Vec<bool>> {
        let waits = self.waits(places.iter().copied(), Path::parent)?;
        let free: Vec<usize> =
            places.iter().zip(&waits).filter(|(_, waits)| !**waits).map(|(at, _)| *at).collect();
        let mut reached = self.reaches_free(&free)?.into_iter();
        Ok(waits.into_iter().map(|waits| !waits && reached.next() == Some(true)).collect())
    }

    fn reaches_free(&mut self, places: &[usize]) -> anyhow::Result<Vec<bool>> {
        if places.is_empty() || self.ask(&Order::Parents(places.to_vec()))?.is_some() {
            return Ok(vec![true; places.len()]);
        }
        if places.len() == 1 {
            return Ok(vec![false]);
        }
        places.iter().map(|&one| Ok(self.ask(&Order::Parents(vec![one]))?.is_some())).collect()
    }

    fn roots(&mut self, wanted: &[Wanted]) -> anyhow::Result<Option<Vec<Result<OwnedFd, Errno>>>> {
        let answer = self.ask(&Order::Roots(wanted.to_vec()))?;
        answer.map(|(errors, fds)| pair(errors, fds)).transpose()
    }

    /// Has a child do something; `None` if that blocked.
    fn ask(&mut self, order: &Order) -> anyhow::Result<Option<Opened>> {
        Ok(self.ask_all(std::slice::from_ref(order))?.pop().flatten())
    }

    /// Has children do several things, each of them one at a time; `None` for those that blocked.
    fn ask_all(&mut self, orders: &[Order]) -> anyhow::Result<Vec<Option<Opened>>> {
        let usable = |child: &usize| self.may_fork || self.children[*child].is_some();
        let usable: Vec<usize> = (0..CHILDREN).filter(usable).collect();
        let mut told = VecDeque::with_capacity(usable.len());
        let mut next = orders.iter().zip(usable.iter().cycle());
        let mut answers = Vec::with_capacity(orders.len());
        for _ in orders {
            for (order, &child) in next.by_ref().take(usable.len() - told.len()) {
                told.push_back(self.tell(child, order)?.then_some(child));
            }
            answers.push(match told.pop_front().flatten() {
                Some(child) => self.hear(child)?,
                None => None,
            });
        }
        Ok(answers)
    }

    /// Gives a child an order; false if it has ended and no other may be forked, or the time is over.
    fn tell(&mut self, child: usize, order: &Order) -> anyhow::Result<bool> {
        let is_there = self.may_fork || self.children[child].is_some();
        if !is_there || self.end.is_some_and(|end| end <= Instant::now()) {
            return Ok(false);
        }
        self.child(child)?.send(order, &[]).context(FAILED)?;
        Ok(true)
    }

    /// Waits for the answer of a child; `None` if it blocks.
    fn hear(&mut self, child: usize) -> anyhow::Result<Option<Opened>> {
        let patience = Instant::now() + self.patience;
        let deadline = self.end.map_or(patience, |end| end.min(patience));
        match self.child(child)?.receive(Some(deadline)) {
            Ok(answer) => Ok(Some(answer)),
            Err(ChannelError::TimedOut) => {
                self.children[child] = None;
                self.expiring = None;
                Ok(None)
            }
            Err(error) => Err(error).context(FAILED),
        }
    }

    fn child(&mut self, number: usize) -> anyhow::Result<&Child> {
        let child = match self.children[number].take() {
            Some(child) => child,
            None => Child::spawn(|channel| self.server.serve(&channel)).context("cannot start a child")?,
        };
        Ok(self.children[number].insert(child))
    }
}

/// Whether a request that is pending on a mount may be what keeps it from being opened. The wait of a
/// process that the master's pid namespace cannot see fails at once.
pub fn may_be_pending(errno: Errno) -> bool {
    matches!(errno, Errno::ETIMEDOUT | Errno::ENOENT)
}
