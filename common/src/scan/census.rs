//! The processes, as they were when a look began.

use std::io;
use std::sync::OnceLock;

use crate::model::Pid;
use crate::proc::{Absence, Proc, Stat, absence};
use crate::threads::{self, Share};

/// The processes. The `stat` of each is read once, when something first asks for it.
#[derive(Debug)]
pub(super) struct Census<'a> {
    pub proc: &'a Proc,
    /// By id.
    pub pids: Vec<Pid>,
    /// This process, which serves nobody, whatever it inherited.
    pub reader: Option<Pid>,
    /// Whether it is asked for those that may wait.
    counts_waiters: bool,
    entries: OnceLock<Vec<Entry>>,
}

/// What `stat` says of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub pid: Pid,
    /// Its process group; `None` if it has ended or that was not visible.
    pub group: Option<i32>,
    /// It is there, and not even this was visible.
    pub is_hidden: bool,
    /// One of its threads is blocked, or that was not visible.
    may_wait: bool,
}

impl<'a> Census<'a> {
    pub fn new(proc: &'a Proc, reader: Option<Pid>, counts_waiters: bool) -> io::Result<Self> {
        Ok(Self { proc, pids: proc.pids()?, reader, counts_waiters, entries: OnceLock::new() })
    }

    /// All but the reader.
    pub fn others(&self) -> impl Iterator<Item = Pid> {
        self.pids.iter().copied().filter(|pid| Some(*pid) != self.reader)
    }

    /// By id.
    pub fn entries(&self) -> &[Entry] {
        self.entries.get_or_init(|| threads::each(&self.pids, Share::Small, |pid| self.entry(*pid)))
    }

    fn entry(&self, pid: Pid) -> Entry {
        match self.proc.stat(pid) {
            Ok(stat) => Entry {
                pid,
                group: (!stat.is_dead()).then_some(stat.group),
                is_hidden: false,
                may_wait: self.counts_waiters && self.may_wait(pid, &stat),
            },
            Err(error) => {
                let is_hidden = absence(&error) != Some(Absence::Gone);
                Entry { pid, group: None, is_hidden, may_wait: is_hidden }
            }
        }
    }

    fn may_wait(&self, pid: Pid, stat: &Stat) -> bool {
        if stat.threads <= 1 {
            return stat.is_blocked();
        }
        let is_hidden = |error: &io::Error| absence(error) != Some(Absence::Gone);
        let blocked = self.proc.process(pid).and_then(|process| {
            let mut threads = process.threads()?.into_iter();
            Ok(threads.any(|tid| match process.thread_stat(tid) {
                Ok(stat) => stat.is_blocked(),
                Err(error) => is_hidden(&error),
            }))
        });
        blocked.unwrap_or_else(|error| is_hidden(&error))
    }

    /// Those with a thread that may wait for something.
    pub fn may_be_waiting(&self) -> Vec<Pid> {
        self.entries().iter().filter(|entry| entry.may_wait).map(|entry| entry.pid).collect()
    }
}
