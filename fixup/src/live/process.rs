//! The process of a master, safe from the reuse of its id.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, bail};
use autofs_cr_common::model::Pid;
use autofs_cr_common::pipe::WriteEnd;
use autofs_cr_common::proc::{Proc, ProcessDir};
use autofs_cr_common::segment::{Master, Segment};
use autofs_cr_common::target::{is_alive, open_pidfd};
use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

/// How long a process may take to end when it has begun to.
const DYING: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// In linux/capability.h.
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The process of a master.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    dir: ProcessDir,
}

/// Finds the process of a master: by its id in the coordinator's pid namespace, or in its own one where
/// that is the one of this process.
pub fn find(master: &Master) -> anyhow::Result<Process> {
    let id = &master.id;
    let Some(expected) = master.process else {
        bail!("master {id} is not there yet: start it with autofs-fixup --master {id} --exec -- CMD");
    };
    let proc = Proc::open().context("cannot open /proc")?;
    let candidates = [Some(expected.pid), master.pid];
    let mut found = candidates
        .into_iter()
        .flatten()
        .filter_map(|pid| Process::open(&proc, pid, expected.start_time).ok());
    match found.next() {
        Some(process) if process.pid == Pid::this() => {
            bail!("master {id} is this process itself")
        }
        Some(process) => Ok(process),
        None => Err(Errno::ESRCH).with_context(|| {
            format!("process {} of the restore has ended, or is not to be seen here", expected.pid)
        }),
    }
}

/// Whether a process is dead, and may not have been waited for yet.
pub fn has_ended(pid: Pid) -> bool {
    let stat = Proc::open().and_then(|proc| proc.stat(pid));
    stat.map_or(true, |stat| stat.is_dead()) || !open_pidfd(pid).is_ok_and(|pidfd| is_alive(pidfd.as_fd()))
}

impl Process {
    /// The process with this id, if it started at this time and has not ended.
    pub fn open(proc: &Proc, pid: Pid, start_time: u64) -> io::Result<Self> {
        // Opened first: what is read below is of the same process if the pidfd is alive at the end.
        let pidfd = open_pidfd(pid)?;
        let dir = proc.process(pid)?;
        let stat = dir.stat()?;
        if stat.start_time != start_time || stat.is_dead() || !is_alive(pidfd.as_fd()) {
            return Err(Errno::ESRCH.into());
        }
        Ok(Self { pid, pidfd, dir })
    }

    /// Its id in this pid namespace.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its directory in /proc.
    pub fn dir(&self) -> &ProcessDir {
        &self.dir
    }

    /// An error if it has ended.
    pub fn check_alive(&self) -> anyhow::Result<()> {
        if is_alive(self.pidfd.as_fd()) {
            return Ok(());
        }
        self.has_ended()
    }

    fn has_ended<T>(&self) -> anyhow::Result<T> {
        Err(Errno::ESRCH).with_context(|| format!("process {} has ended", self.pid))
    }

    /// A result whose error is that it has ended, if it has: nothing can be seen of it then. It may be about to, when
    /// its files and namespaces are gone already.
    pub fn unless_ended<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.or_else(|error| {
            let ended = &mut [PollFd::new(&self.pidfd, PollFlags::IN)];
            let polled = retry_on_intr(|| poll(ended, Some(&DYING)));
            if polled.is_ok_and(|ready| ready > 0) { self.has_ended() } else { Err(error) }
        })
    }

    /// An error if the kernel would not let it use the control device.
    pub fn check_rights(&self) -> anyhow::Result<()> {
        let ours = Proc::open().and_then(|proc| proc.this()?.user_namespace());
        let ours = ours.context("cannot look at the user namespace of this process")?;
        let failed = || format!("cannot look at the rights of process {}", self.pid);
        if self.dir.user_namespace().with_context(failed)? != ours {
            return Err(Errno::EPERM).with_context(|| {
                format!(
                    "process {} is in another user namespace: the kernel does not let it use /dev/autofs",
                    self.pid
                )
            });
        }
        let effective = self.dir.status().with_context(failed)?.effective;
        if effective.is_some_and(|effective| effective & CAP_SYS_ADMIN == 0) {
            return Err(Errno::EPERM).with_context(|| {
                format!(
                    "process {} has no CAP_SYS_ADMIN: the kernel does not let it use /dev/autofs; restart this master",
                    self.pid
                )
            });
        }
        Ok(())
    }

    /// A copy of one of its descriptors, to look at; `None` if it has none with this number. Nothing is
    /// walked for that.
    pub fn descriptor(&self, number: i32) -> anyhow::Result<Option<OwnedFd>> {
        match pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(rustix::io::Errno::BADF) => Ok(None),
            // It has begun to end, which the pidfd tells an instant later.
            Err(rustix::io::Errno::SRCH) => self.has_ended(),
            Err(error) => {
                Err(io::Error::from(error)).with_context(|| format!("cannot look at descriptor {number}"))
            }
        }
    }

    /// Write ends of the pipes that superblocks in the segment need, by the index of the pipe.
    pub fn write_ends(&self, segment: &Segment, master: usize) -> anyhow::Result<Vec<Option<WriteEnd>>> {
        let pipes = &segment.masters()[master].pipes;
        let mut ends: Vec<Option<WriteEnd>> = pipes.iter().map(|_| None).collect();
        for (_, superblock) in segment.superblocks_of(master) {
            if ends[superblock.pipe].is_none() {
                let number = pipes[superblock.pipe].read_end.fd;
                ends[superblock.pipe] = Some(self.write_end(number)?);
            }
        }
        self.check_alive()?;
        Ok(ends)
    }

    /// Opens a write end of the pipe whose read end it has at this number.
    pub fn write_end(&self, number: i32) -> anyhow::Result<WriteEnd> {
        let descriptors = self.dir.descriptors().context("cannot list its descriptors")?;
        let opened = WriteEnd::open(&descriptors, number)
            .with_context(|| format!("cannot clone a write end of pipe {number} of process {}", self.pid))?;
        opened.ok_or_else(|| {
            anyhow::Error::from(Errno::EBADF)
                .context(format!("descriptor {number} of process {} is no read end of a pipe", self.pid))
        })
    }
}
