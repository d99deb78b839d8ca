//! From /proc to a report.
//!
//! What a caller does not need is not looked for: `needs.rs`. What pays on several processors is done on several
//! threads: [`crate::threads`].
//!
//! | stage | file | reads |
//! |---|---|---|
//! | 1. the namespaces and their mounts | `tables.rs`, `tree.rs` | `mountinfo`, `ns/*` |
//! | 1. at the same time: which processes are there, and may wait | `census.rs` | `stat` of all threads, where waiters are asked for |
//! | 2. who holds which end of the pipes, and control fds | `holders.rs` | `fd`, `fdinfo`, `status`, `stat` of the mounts' own groups; of all processes, where that does not tell enough |
//! | 3. the state of each superblock | `judge.rs` | `stat` of all, where something is not served |
//! | 4. copies of mounts that fail | `copies.rs` | `mountinfo` of a master in another namespace, where there are copies |
//! | 5. requests that wait unread | `requests.rs` | the pipes themselves, by tee(2) |
//! | 6. who waits, on which mount, for what | `waiters.rs`, `asked.rs`, `memory.rs` | of the threads that wait in autofs `stat`, `wchan`, `stack`, `syscall`, `status`, `mountinfo`, and the path in their memory |
//! | 7. who cannot be served | `strangers.rs` | where a master is in a pid namespace below the reader's: `ns/*` of all |
//!
//! `expiring.rs` tells, apart from a report, where not even a child may walk.
//!
//! Nothing here walks a path onto a mount: a touch starts a mount and can hang for ever.

mod asked;
mod census;
mod copies;
mod expiring;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod holders;
mod judge;
mod memory;
mod needs;
mod requests;
mod sight;
mod strangers;
mod tables;
mod tree;
mod waiters;
mod whereabouts;

use std::io;

use census::Census;
pub use expiring::Expiring;
use holders::Holders;
pub use needs::{Needs, Processes, Waiting};
use requests::Requests;
use tables::Tables;
pub use whereabouts::is_sending_request;

use crate::doc::report::{Stranger, Superblock};
use crate::doc::{Format, Report};
use crate::model::{Device, Pid, State};
use crate::proc::Proc;
use crate::proc::mountinfo::MalformedLine;
use crate::threads;

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The mount namespace of this process.
    Own,
    /// The mount namespace of a process, as from its root directory.
    Of(Pid),
    /// Every mount namespace that a visible process is in.
    All,
}

/// Why no report could be made.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// There is no such process.
    #[error("process {0} does not exist")]
    NoProcess(Pid),
    /// Its mounts are not for this user to see.
    #[error("cannot read the mounts of process {0}: permission denied (that is for root, or CAP_SYS_PTRACE)")]
    NotAllowed(Pid),
    /// The proc file system shows another pid namespace than the one of this process, so that ids in
    /// it and ids in mountinfo do not mean the same.
    #[error(
        "{0} belongs to another pid namespace than this process: mount a proc file system of its own there first"
    )]
    ForeignProc(String),
    /// Something that must be there cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// A mountinfo file makes no sense.
    #[error("cannot understand the mounts of process {pid}")]
    MountInfo {
        /// The process.
        pid: Pid,
        /// The cause.
        source: MalformedLine,
    },
    /// An autofs mount has options that make no sense.
    #[error("cannot understand the autofs mount {mount_point} of process {pid}: {cause}")]
    Autofs {
        /// The process.
        pid: Pid,
        /// The mount.
        mount_point: String,
        /// The cause.
        cause: String,
    },
}

/// How often a state that changes all the time is looked at.
const MOST_LOOKS: usize = 4;

/// Looks at the autofs mounts in `scope`, at who serves them, and at what waits for an answer, as far as it is
/// needed.
///
/// A master that forks, or is given another pipe, while its descriptors are looked for can be missed,
/// so nothing is called orphaned that is not so twice; nor does a copy fail elsewhere that does not so twice.
pub fn scan(proc: &Proc, scope: Scope, needs: Needs) -> Result<Report, ScanError> {
    Ok(look(proc, scope, needs)?.report(needs.waiting))
}

/// The same for the mount namespace of a process, with the `mountinfo` that the report was made from: to read that of
/// many mounts once more takes as long as all the rest.
pub fn scan_process(proc: &Proc, pid: Pid, needs: Needs) -> Result<(Report, Vec<u8>), ScanError> {
    let mut look = look(proc, Scope::Of(pid), needs)?;
    let mountinfo = std::mem::take(&mut look.tables.last_read);
    Ok((look.report(needs.waiting), mountinfo))
}

fn look(proc: &Proc, scope: Scope, needs: Needs) -> Result<Look<'_>, ScanError> {
    let mut look = Look::take(proc, scope, needs)?;
    for _ in 1..MOST_LOOKS {
        let before = look.doubts();
        if before.is_empty() {
            break;
        }
        look = Look::take(proc, scope, needs)?;
        if look.doubts() == before {
            break;
        }
    }
    Ok(look)
}

/// What can look so for an instant.
#[derive(PartialEq, Eq)]
enum Doubt {
    /// A superblock and its pipe.
    Orphan(Device, Option<u64>),
    Copy(copies::Fault),
}

/// What was seen in one look.
struct Look<'a> {
    census: Census<'a>,
    tables: Tables,
    holders: Holders,
    superblocks: Vec<Superblock>,
    faults: Vec<copies::Fault>,
    hidden: Vec<String>,
}

impl<'a> Look<'a> {
    fn take(proc: &'a Proc, scope: Scope, needs: Needs) -> Result<Self, ScanError> {
        let census = Census::new(proc, reader(proc)?, needs.waiting == Waiting::Threads);
        let census = census.map_err(|source| read_error(proc, "", source))?;
        let mut hidden = Vec::new();
        let mut tables = || tables::collect(&census, scope, &mut hidden);
        let mut tables = match needs.waiting {
            Waiting::Threads => threads::both(tables, || census.entries()).0,
            Waiting::Nothing | Waiting::Requests => tables(),
        }?;
        let holders = holders::find(&census, &tables, needs.processes);
        let superblocks = judge::judge(&census, &tables, &holders, &mut hidden);
        let faults = match needs.waiting {
            Waiting::Threads => copies::mark(proc, &mut tables, &superblocks, &holders),
            Waiting::Nothing | Waiting::Requests => Vec::new(),
        };
        Ok(Self { census, tables, holders, superblocks, faults, hidden })
    }

    /// What is only said when it is seen twice.
    fn doubts(&self) -> Vec<Doubt> {
        let orphaned = self.superblocks.iter().filter(|superblock| superblock.state == State::Orphaned);
        let orphaned = orphaned.map(|superblock| Doubt::Orphan(superblock.device, superblock.pipe));
        orphaned.chain(self.faults.iter().copied().map(Doubt::Copy)).collect()
    }

    /// Adds in which containers and units it all is.
    fn add_whereabouts(&mut self) {
        let proc = self.census.proc;
        for namespace in &mut self.tables.namespaces {
            namespace.runs_in = proc.runs_in(namespace.process, namespace.start_time);
        }
        for process in &mut self.holders.processes {
            process.runs_in = proc.runs_in(process.pid, process.start_time);
        }
    }

    /// Adds what waits for an answer.
    fn report(mut self, waiting: Waiting) -> Report {
        self.add_whereabouts();
        let requests = match waiting {
            Waiting::Nothing => Requests::default(),
            _ => requests::waiting(self.census.proc, &self.holders, &mut self.hidden),
        };
        let (found, strangers) = match waiting {
            Waiting::Threads => (self.waiters(&requests), self.strangers()),
            _ => Default::default(),
        };
        Report {
            format: Format::CURRENT,
            hidden: self.hidden,
            namespaces: self.tables.namespaces,
            processes: self.holders.processes,
            superblocks: self.superblocks,
            mounts: self.tables.mounts,
            content: self.tables.content,
            requests: requests.list,
            waiters: found.waiters,
            unseen_threads: found.unseen as u64,
            strangers,
        }
    }

    fn waiters(&mut self, requests: &Requests) -> waiters::Found {
        let scene = waiters::Scene {
            proc: self.census.proc,
            tables: &self.tables,
            superblocks: &self.superblocks,
            holders: &self.holders,
            requests,
        };
        let pids = match requests.have_no_room {
            true => self.census.pids.clone(),
            false => self.census.may_be_waiting(),
        };
        waiters::find(&scene, &pids, self.census.reader, &mut self.hidden)
    }

    fn strangers(&self) -> Vec<Stranger> {
        let Census { proc, pids, reader, .. } = &self.census;
        strangers::find(proc, pids, *reader, &self.tables, &self.superblocks, &self.holders)
    }
}

/// This process in the tree; `None` for a fixture tree.
fn reader(proc: &Proc) -> Result<Option<Pid>, ScanError> {
    let reader = proc.reader();
    match reader {
        Some(pid) if pid != Pid::this() => Err(ScanError::ForeignProc(proc.path().display().to_string())),
        _ => Ok(reader),
    }
}

fn read_error(proc: &Proc, file: &str, source: io::Error) -> ScanError {
    ScanError::Read { path: proc.path().join(file).display().to_string(), source }
}

/// A number of processes that may not be looked into, for people.
fn processes(count: usize) -> String {
    let plural = if count == 1 { "" } else { "es" };
    format!("{count} process{plural}{}", advice())
}

/// Whose they are that may not be looked into, if they can be said to be anyone's.
fn advice() -> &'static str {
    if nix::unistd::geteuid().is_root() { "" } else { " of other users (root may see them)" }
}

#[cfg(test)]
mod tests;
