//! A process whose namespaces a tool works in.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2, readlinkat};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::model::Pid;

/// Everything that is needed to enter a process's mount and pid namespace and its root, held open, so
/// that its id being used again cannot lead elsewhere.
#[derive(Debug)]
pub struct Target {
    pid: Pid,
    pidfd: OwnedFd,
    mount_namespace: Namespace,
    pid_namespace: Namespace,
    root: OwnedFd,
}

/// An open namespace.
#[derive(Debug)]
struct Namespace {
    file: File,
    id: u64,
}

/// Why a process cannot be a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// There is none with this id.
    #[error("process {0} does not exist")]
    Gone(Pid),
    /// It is not for this user to look at.
    #[error("cannot open {what} of process {pid}: permission denied (that is for root, or CAP_SYS_PTRACE)")]
    NotAllowed {
        /// The process.
        pid: Pid,
        /// What could not be opened.
        what: &'static str,
    },
    /// Something else failed.
    #[error("cannot open {what} of process {pid}")]
    Io {
        /// The process.
        pid: Pid,
        /// What could not be opened.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl Target {
    /// Opens all of a process.
    pub fn open(pid: Pid) -> Result<Self, TargetError> {
        let failed = |what: &'static str| move |source: io::Error| TargetError::from_io(pid, what, source);
        let pidfd = open_pidfd(pid).map_err(failed("a descriptor"))?;
        let namespace = |name: &str| Namespace::open(&format!("/proc/{pid}/ns/{name}"));
        let target = Self {
            pid,
            pidfd,
            mount_namespace: namespace("mnt").map_err(failed("the mount namespace"))?,
            pid_namespace: namespace("pid").map_err(failed("the pid namespace"))?,
            root: open_root(pid).map_err(failed("the root directory"))?,
        };
        // All was opened by its id: only if it still lives, it is sure to be the one of the pidfd.
        if target.is_alive() { Ok(target) } else { Err(TargetError::Gone(pid)) }
    }

    /// The process itself, by its id in this pid namespace.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The inode number of its mount namespace.
    pub fn mount_namespace(&self) -> u64 {
        self.mount_namespace.id
    }

    /// The inode number of its pid namespace.
    pub fn pid_namespace(&self) -> u64 {
        self.pid_namespace.id
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        is_alive(self.pidfd.as_fd())
    }

    /// Opens a path in its root directory, and inside that root. No link at its end is followed.
    pub fn open_inside(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }

    /// What a symbolic link in its root directory points to. The path is resolved inside that root.
    pub fn read_link(&self, path: &Path) -> io::Result<Vec<u8>> {
        let link = self.open_inside(path, OFlags::PATH)?;
        Ok(readlinkat(&link, "", Vec::new())?.into_bytes())
    }

    /// Enters its mount namespace and its root directory, for good. Only in a process with one thread.
    pub fn enter_mounts(&self) -> io::Result<()> {
        setns(&self.mount_namespace.file, CloneFlags::CLONE_NEWNS)?;
        nix::unistd::fchdir(&self.root)?;
        nix::unistd::chroot(".")?;
        Ok(())
    }

    /// Makes children of this process that are forked from now on be born in its pid namespace.
    pub fn enter_pids(&self) -> io::Result<()> {
        setns(&self.pid_namespace.file, CloneFlags::CLONE_NEWPID)?;
        Ok(())
    }
}

/// pidfd_open(2).
pub fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    let raw = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(rustix::io::Errno::SRCH)?;
    Ok(pidfd_open(raw, PidfdFlags::empty())?)
}

/// Whether the process of a pidfd has not ended: a pidfd is readable from its end on.
pub fn is_alive(pidfd: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], Some(&now)), Ok(0))
}

fn open_root(pid: Pid) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())?)
}

impl Namespace {
    fn open(path: &str) -> io::Result<Self> {
        let file = File::open(path)?;
        let id = rustix::fs::fstat(&file)?.st_ino;
        Ok(Self { file, id })
    }
}

impl TargetError {
    fn from_io(pid: Pid, what: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ESRCH | libc::ENOENT) => Self::Gone(pid),
            // pidfd_open says EINVAL for a thread that is no process.
            Some(libc::EINVAL) => Self::Gone(pid),
            Some(libc::EACCES | libc::EPERM) => Self::NotAllowed { pid, what },
            _ => Self::Io { pid, what, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_does_not_exist_is_named() {
        let pid = Pid::new(i32::MAX).expect("a pid");
        let error = Target::open(pid).expect_err("there is no such process");
        assert_eq!(error.to_string(), "process 2147483647 does not exist");
    }
}
