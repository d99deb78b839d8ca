//! The mount tables of the namespaces that are shown, each through an open mountinfo that the kernel tells changes of.
//!
//! An open mountinfo keeps its namespace, and with it all that is mounted there, alive. So it is closed when the process
//! ends through which it was opened, or is in another namespace: what is to go, goes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use autofs_cr_common::doc::Report;
use autofs_cr_common::model::Pid;
use autofs_cr_common::proc::Proc;
use autofs_cr_common::target::{is_alive, open_pidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How often it is looked whether the processes are still in their namespaces: nothing tells of that.
const GLANCE: Duration = Duration::from_secs(2);

/// The open mount tables.
#[derive(Default)]
pub struct MountTables {
    open: Vec<Table>,
}

struct Table {
    namespace: u64,
    process: Pid,
    mountinfo: File,
    pidfd: OwnedFd,
}

impl MountTables {
    /// Follows the namespace of a process from now on, if it can be opened. Otherwise it is looked at when the time is over.
    pub fn add(&mut self, proc: &Proc, process: Pid) {
        self.open.extend(Table::open(proc, process).ok());
    }

    /// Follows the namespaces of a report, and no others.
    pub fn follow(&mut self, proc: &Proc, report: &Report) {
        self.open.retain(|table| report.namespaces.iter().any(|namespace| namespace.id == table.namespace));
        for namespace in &report.namespaces {
            if self.open.iter().all(|table| table.namespace != namespace.id) {
                self.add(proc, namespace.process);
            }
        }
    }

    /// Waits for a change since the last wait, at most for so long: proc_pid_mounts(5) says how. Closes what would keep a
    /// namespace alive.
    pub fn wait(&mut self, proc: &Proc, longest: Duration) -> io::Result<()> {
        let end = Instant::now() + longest;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let has_changed = self.poll(left.min(GLANCE))?;
            let before = self.open.len();
            self.open.retain(|table| table.is_there(proc));
            if has_changed || self.open.len() < before || left <= GLANCE {
                return Ok(());
            }
        }
    }

    fn poll(&self, longest: Duration) -> io::Result<bool> {
        let mut polled: Vec<PollFd<'_>> = self.open.iter().flat_map(Table::watched).collect();
        let timeout = Timespec::try_from(longest).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&timeout)) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Table {
    fn open(proc: &Proc, process: Pid) -> io::Result<Self> {
        let pidfd = open_pidfd(process)?;
        let mountinfo = File::open(proc.path().join(process.to_string()).join("mountinfo"))?;
        let namespace = proc.process(process)?.mount_namespace()?;
        // All was opened by its id: only if it still lives, all is sure to be of one process.
        if !is_alive(pidfd.as_fd()) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(Self { namespace, process, mountinfo, pidfd })
    }

    fn watched(&self) -> [PollFd<'_>; 2] {
        [PollFd::new(&self.mountinfo, PollFlags::PRI), PollFd::new(&self.pidfd, PollFlags::IN)]
    }

    /// Whether its process lives, and is in the namespace.
    fn is_there(&self, proc: &Proc) -> bool {
        let namespace = proc.process(self.process).and_then(|process| process.mount_namespace());
        // Last: until then its id was not used again.
        namespace.is_ok_and(|id| id == self.namespace) && is_alive(self.pidfd.as_fd())
    }
}
