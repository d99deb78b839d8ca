//! Which masters of the image live in the target, with their read ends.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

use autofs_cr_common::doc::image::{End, Master, Superblock};
use autofs_cr_common::doc::{Image, Report};
use autofs_cr_common::model::Pid;
use autofs_cr_common::pipe::WriteEnd;
use autofs_cr_common::proc::{Descriptors, Proc, ProcessDir, Target};
use autofs_cr_common::target::{is_alive, open_pidfd};

/// A master that lives.
#[derive(Debug)]
pub struct Live {
    /// Its id for this process.
    pub pid: Pid,
    /// The process itself, to learn of its end.
    pub pidfd: OwnedFd,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
    /// Its process group, in its own pid namespace.
    pub own_group: Option<Pid>,
    /// Those pipes of the image that it still reads, by their inode in the image.
    pub pipes: Pipes,
}

/// A pipe that a living master reads.
#[derive(Debug)]
pub struct ReadPipe {
    /// The number of the read end in the master, now.
    pub read_end: i32,
    /// A write end of it.
    pub write_end: WriteEnd,
}

/// The living masters, by their id in the image, and why others are taken for gone.
#[derive(Debug, Default)]
pub struct Masters {
    /// Those that live.
    pub live: HashMap<String, Live>,
    /// Of the others, what speaks against a process that has their pid.
    pub doubts: Vec<String>,
}

impl Masters {
    /// The living master of a superblock.
    pub fn of(&self, superblock: &Superblock) -> Option<&Live> {
        self.live.get(superblock.master.as_deref()?)
    }

    /// The pipe of a superblock, if its master lives and still reads it.
    pub fn pipe_of(&self, superblock: &Superblock) -> Option<&ReadPipe> {
        self.of(superblock)?.pipes.get(&superblock.pipe?)
    }
}

/// Looks for the image's masters in the pid namespace with this inode number. The report is of what is there.
pub fn find(proc: &Proc, image: &Image, pid_namespace: u64, there: &Report) -> io::Result<Masters> {
    let wanted: HashMap<Pid, &Master> =
        image.masters.iter().filter_map(|master| Some((master.pid?, master))).collect();
    let mut masters = Masters::default();
    if wanted.is_empty() {
        return Ok(masters);
    }
    for pid in proc.pids()? {
        let Ok(process) = proc.process(pid) else { continue };
        let Some(master) = own_id(&process).and_then(|own_id| wanted.get(&own_id)) else { continue };
        if !is_inside(&process, pid_namespace, master).map_err(|error| unseen(pid, master, &error))? {
            continue;
        }
        match examine(&process, pid, master, |pipe| serves_others(image, master, pipe, there)) {
            Ok(live) => drop(masters.live.insert(master.id.clone(), live)),
            // One that lives must not be taken for gone: another would be made in its place.
            Err(Doubt::Unreadable(error)) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(unseen(pid, master, &error));
            }
            Err(doubt) => {
                masters.doubts.push(format!("process {pid} is not taken for master {}: {doubt}", master.id));
            }
        }
    }
    Ok(masters)
}

/// The id of a process in its own pid namespace. Everybody may see that.
fn own_id(process: &ProcessDir) -> Option<Pid> {
    Pid::try_from(*process.status().ok()?.ids.last()?).ok()
}

/// Whether a process is in the pid namespace. An error only if it cannot be seen, and has the name of the master.
fn is_inside(process: &ProcessDir, pid_namespace: u64, master: &Master) -> io::Result<bool> {
    match process.pid_namespace() {
        Ok(found) => Ok(found == pid_namespace),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let has_its_name = process.stat().is_ok_and(|stat| stat.command == master.command);
            if has_its_name { Err(error) } else { Ok(false) }
        }
        // It has ended.
        Err(_) => Ok(false),
    }
}

fn unseen(pid: Pid, master: &Master, error: &io::Error) -> io::Error {
    let why = format!(
        "process {pid} may be master {}, and cannot be looked at: {error} (to look into a process of other rights is \
        for CAP_SYS_PTRACE, into one of another user also for CAP_DAC_READ_SEARCH, and to open its pipes for \
        CAP_DAC_OVERRIDE)",
        master.id
    );
    io::Error::new(ErrorKind::PermissionDenied, why)
}

type Pipes = HashMap<u64, ReadPipe>;

/// Why a process is not the master.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error("its name is '{0}', not '{1}'")]
    Name(String, String),
    #[error("it has none of the pipes, and its descriptor {0} is no read end of a pipe")]
    NoReadEnd(i32),
    #[error("it serves mounts that are not those of the image")]
    ServesOthers,
    #[error("it cannot be looked at: {0}")]
    Unreadable(#[from] io::Error),
}

/// Whether a pipe that is at the number of one of the image's is that of a mount which the image does not have.
/// Then the process is the same program somewhere else, with mounts of its own.
fn serves_others(image: &Image, master: &Master, (inode, of_image): (u64, u64), there: &Report) -> bool {
    let is_own = |device| {
        image.superblocks.iter().any(|superblock| {
            let is_same = superblock.device == device && superblock.pipe == Some(of_image);
            is_same && superblock.master.as_deref() == Some(&*master.id)
        })
    };
    there.superblocks.iter().any(|found| found.pipe == Some(inode) && !is_own(found.device))
}

/// `serves_others` says of a pipe of the process and the one of the image that it is taken for whether it is
/// another one.
fn examine(
    process: &ProcessDir,
    pid: Pid,
    master: &Master,
    serves_others: impl Fn((u64, u64)) -> bool,
) -> Result<Live, Doubt> {
    // Opened first: what is read below is of the same process if the pidfd is still alive at the end.
    let pidfd = open_pidfd(pid)?;
    let stat = process.stat()?;
    if stat.command != master.command {
        return Err(Doubt::Name(stat.command.to_string(), master.command.to_string()));
    }
    let descriptors = process.descriptors()?;
    let mut pipes = by_inode(&descriptors, master)?;
    // A process that was restored has other pipes, at the same numbers. One that has any of the pipes was not.
    if pipes.is_empty() && master.kind.can_be_started() {
        pipes = by_number(&descriptors, master)?;
        if pipes.iter().any(|(&of_image, pipe)| serves_others((pipe.write_end.inode, of_image))) {
            return Err(Doubt::ServesOthers);
        }
    }
    let own_group = process.status()?.group_ids.last().and_then(|&group| Pid::try_from(group).ok());
    if !is_alive(pidfd.as_fd()) {
        return Err(io::Error::from(nix::errno::Errno::ESRCH).into());
    }
    Ok(Live { pid, pidfd, start_time: stat.start_time, own_group, pipes })
}

/// The pipes that the process reads, under whatever number: systemd moves them when it executes itself again.
fn by_inode(descriptors: &Descriptors<'_>, master: &Master) -> Result<Pipes, Doubt> {
    let wanted: HashSet<u64> = master.pipes.iter().map(|pipe| pipe.inode).collect();
    let mut numbers = Vec::new();
    descriptors.for_each(|fd, target| match target {
        Target::Pipe(inode) if wanted.contains(&inode) => numbers.push((inode, fd)),
        _ => {}
    })?;
    let mut pipes = Pipes::new();
    for (inode, fd) in numbers {
        let write_end = WriteEnd::open(descriptors, fd)?.filter(|end| end.inode == inode);
        pipes.extend(write_end.map(|write_end| (inode, ReadPipe { read_end: fd, write_end })));
    }
    Ok(pipes)
}

/// The pipes that the process has at the numbers of the image; all of them must be there.
fn by_number(descriptors: &Descriptors<'_>, master: &Master) -> Result<Pipes, Doubt> {
    let mut pipes = Pipes::new();
    for pipe in &master.pipes {
        let Some(End { fd: read_end, .. }) = pipe.read_end else { continue };
        let write_end = WriteEnd::open(descriptors, read_end)?.ok_or(Doubt::NoReadEnd(read_end))?;
        pipes.insert(pipe.inode, ReadPipe { read_end, write_end });
    }
    Ok(pipes)
}
