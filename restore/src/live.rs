//! Which masters of the image live in the target, with their read ends.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use autofs_cr_common::doc::Image;
use autofs_cr_common::doc::image::Master;
use autofs_cr_common::doc::report::Access;
use autofs_cr_common::model::Pid;
use autofs_cr_common::proc::{Descriptors, Proc, ProcessDir, Target};
use autofs_cr_common::target::{is_alive, open_pidfd};
use rustix::fs::{Mode, OFlags};

/// A master that lives.
#[derive(Debug)]
pub struct Live {
    /// Its id for this process.
    pub pid: Pid,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// Its process group, in its own pid namespace.
    pub own_group: Option<Pid>,
    /// Its pipes, by their inode in the image.
    pub pipes: HashMap<u64, LivePipe>,
}

/// A pipe whose read end a living master has.
#[derive(Debug)]
pub struct LivePipe {
    /// Its inode number now.
    pub inode: u64,
    /// A write end of our own. As long as it is open, the master sees no hang-up.
    pub write_end: OwnedFd,
}

/// The living masters, by their id in the image, and why others are taken for gone.
#[derive(Debug, Default)]
pub struct Masters {
    /// Those that live.
    pub live: HashMap<String, Live>,
    /// Of the others, what speaks against a process that has their pid.
    pub doubts: Vec<String>,
}

/// Looks for the image's masters in the pid namespace with this inode number.
pub fn find(proc: &Proc, image: &Image, pid_namespace: u64) -> io::Result<Masters> {
    let wanted: HashMap<Pid, &Master> =
        image.masters.iter().filter_map(|master| Some((master.pid?, master))).collect();
    let mut masters = Masters::default();
    if wanted.is_empty() {
        return Ok(masters);
    }
    for pid in proc.pids()? {
        let Ok(process) = proc.process(pid) else { continue };
        let Some(master) = own_id(&process, pid_namespace).and_then(|own_id| wanted.get(&own_id)) else {
            continue;
        };
        match examine(&process, pid, master) {
            Ok(live) => drop(masters.live.insert(master.id.clone(), live)),
            Err(doubt) => {
                masters.doubts.push(format!("process {pid} is not taken for master {}: {doubt}", master.id));
            }
        }
    }
    Ok(masters)
}

/// The id of a process in its own pid namespace, if that is the wanted one.
fn own_id(process: &ProcessDir, pid_namespace: u64) -> Option<Pid> {
    let inside = process.pid_namespace().ok()? == pid_namespace;
    let ids = inside.then(|| process.status().ok())??.ids;
    Pid::try_from(*ids.last()?).ok()
}

/// Why a process is not the master.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error("its name is '{0}', not '{1}'")]
    Name(String, String),
    #[error("its descriptor {0} is no read end of a pipe")]
    NoReadEnd(i32),
    #[error("it cannot be looked at: {0}")]
    Unreadable(#[from] io::Error),
}

fn examine(process: &ProcessDir, pid: Pid, master: &Master) -> Result<Live, Doubt> {
    // Opened first: what is read below is of the same process if the pidfd is still alive at the end.
    let pidfd = open_pidfd(pid)?;
    let stat = process.stat()?;
    if stat.command != master.command {
        return Err(Doubt::Name(stat.command.to_string(), master.command.to_string()));
    }
    let descriptors = process.descriptors()?;
    let inodes = pipe_inodes(&descriptors)?;
    let mut pipes = HashMap::new();
    for pipe in &master.pipes {
        let Some(read_end) = pipe.read_end else { continue };
        let inode = *inodes.get(&read_end.fd).ok_or(Doubt::NoReadEnd(read_end.fd))?;
        pipes.insert(pipe.inode, open_pipe(&descriptors, pid, read_end.fd, inode)?);
    }
    let own_group = process.status()?.group_ids.last().and_then(|&group| Pid::try_from(group).ok());
    if !is_alive(pidfd.as_fd()) {
        return Err(io::Error::from(nix::errno::Errno::ESRCH).into());
    }
    Ok(Live { pid, start_time: stat.start_time, own_group, pipes })
}

/// The pipes among the descriptors of a process.
fn pipe_inodes(descriptors: &Descriptors<'_>) -> io::Result<HashMap<i32, u64>> {
    let mut inodes = HashMap::new();
    descriptors.for_each(|fd, target| {
        if let Target::Pipe(inode) = target {
            inodes.insert(fd, inode);
        }
    })?;
    Ok(inodes)
}

/// Opens a write end to the pipe whose read end a process has at `fd`.
fn open_pipe(descriptors: &Descriptors<'_>, pid: Pid, fd: i32, inode: u64) -> Result<LivePipe, Doubt> {
    let reads = matches!(descriptors.info(fd)?.access(), Some(Access::Read | Access::Both));
    // Without O_NONBLOCK this would wait for a reader for ever, if the master ended just now.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let write_end =
        rustix::fs::open(format!("/proc/{pid}/fd/{fd}"), flags, Mode::empty()).map_err(io::Error::from)?;
    rustix::fs::fcntl_setfl(&write_end, OFlags::empty()).map_err(io::Error::from)?;
    let opened = rustix::fs::fstat(&write_end).map_err(io::Error::from)?;
    if !reads || opened.st_ino != inode {
        return Err(Doubt::NoReadEnd(fd));
    }
    Ok(LivePipe { inode, write_end })
}
