//! Becoming a master that is not there yet.
//!
//! | stage | what it does |
//! |---|---|
//! | look | the program, the segment, the limits: nothing is changed before all of them are fine |
//! | reserve | every recorded descriptor number is taken, so that nothing else gets it |
//! | group | a process group of its own: what the kernel takes from who sets the pipe |
//! | connect | the pipes at their numbers, the mounts, the control fds |
//! | exec | the descriptors stay open, without close-on-exec also where it was recorded: CMD needs them |

mod command;
mod numbers;

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use autofs_cr_common::cli::{Voice, count};
use autofs_cr_common::exit::Exit;
use autofs_cr_common::limits;
use autofs_cr_common::proc::Proc;
use autofs_cr_common::segment::{Progress, Segment};
use autofs_cr_common::sys::autofs::ControlDevice;
use nix::errno::Errno;
use nix::unistd::{getpgrp, getpid, setsid};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cli::Arguments;
use crate::mounts::Mounts;
use crate::opener::{Opener, Places};
use crate::watch::{Watch, select};
use crate::{TOOL, device, errno, run, show};
use command::Program;
use numbers::{Numbers, Reserved};

/// Becomes the master, and executes the command. Returns only if that failed, or in a dry run.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let voice = Voice::new(TOOL, arguments.verbosity);
    let program = Program::find_in_time(&arguments.command)?;
    let mut source = run::source(arguments)?;
    let (master, numbers) = look(&source.open()?, arguments.master.as_deref())?;
    if arguments.dry_run {
        print!("{}", show::plan(&source.open()?, master));
        println!("execute {program}");
        return Ok(Exit::Done);
    }
    numbers.check_limit()?;
    let device = device::open()?;
    program.try_out()?;
    source.move_above(numbers.above())?;
    let device = device::move_above(device, numbers.above())?;
    let reserved = numbers.reserve(device.as_fd())?;
    // Only now, so that its descriptors have other numbers than the recorded ones.
    let segment = source.open()?;
    let watch = Watch::new(&segment, arguments.timeout);
    watch.check()?;
    let claim = segment.claim(master)?;
    let mut becoming = Becoming { watch, master, device: &device, voice, roots: Vec::new() };
    if let Err(error) = becoming.connect(&numbers, reserved) {
        becoming.undo(errno::of(&error));
        return Err(
            error.context(format!("cannot become master {}", show::quoted(&segment.masters()[master].id)))
        );
    }
    voice.note(format_args!("connected {} of 1 master", count(becoming.roots.len(), "mount")));
    drop(claim);
    let error = program.exec();
    becoming.undo(Errno::ENOEXEC);
    Err(error)
}

/// The master that is meant, and the numbers that it needs.
fn look(segment: &Segment, id: Option<&str>) -> anyhow::Result<(usize, Numbers)> {
    let master = choose(segment, id)?;
    let described = &segment.masters()[master];
    if let Some(process) = described.process {
        bail!(
            "master {} lives (process {}): connect it with autofs-fixup --pid",
            show::quoted(&described.id),
            process.pid
        );
    }
    Ok((master, Numbers::of(segment, master)?))
}

fn choose(segment: &Segment, id: Option<&str>) -> anyhow::Result<usize> {
    if let Some(id) = id {
        return segment.master_index(id).with_context(|| {
            format!("the segment has no master {}; {}", show::quoted(id), show::masters(segment))
        });
    }
    let mut absent = Vec::new();
    for (index, master) in segment.masters().iter().enumerate() {
        let waits = !select(segment, index, |progress| !progress.is_final())?.is_empty();
        if master.process.is_none() && waits && !segment.is_claimed(index)? {
            absent.push(index);
        }
    }
    match absent.as_slice() {
        [one] => Ok(*one),
        [] => bail!("no master waits to be started; {}", show::masters(segment)),
        _ => {
            bail!("several masters wait to be started: choose one with --master; {}", show::masters(segment))
        }
    }
}

/// A process that becomes a master.
struct Becoming<'a> {
    watch: Watch<'a>,
    master: usize,
    device: &'a ControlDevice,
    voice: Voice,
    /// What is open of its superblocks, by their index in the segment.
    roots: Vec<(usize, OwnedFd)>,
}

/// The write ends that the kernel gets, by the index of the pipe.
type WriteEnds = Vec<OwnedFd>;

impl Becoming<'_> {
    fn segment(&self) -> &Segment {
        self.watch.segment
    }

    fn connect(&mut self, numbers: &Numbers, mut reserved: Reserved) -> anyhow::Result<()> {
        become_group_leader()?;
        self.wait_until_created()?;
        limits::raise_descriptors();
        self.open()?;
        let write_ends = self.make_pipes(numbers, &mut reserved)?;
        self.set_pipes(&write_ends)?;
        self.keep_controls(&mut reserved)?;
        for (index, _) in &self.roots {
            self.segment().advance(*index, Progress::Connected)?;
        }
        // They end with this process, or with what it executes.
        reserved.leave_open();
        limits::put_back_descriptors().context("cannot set the limit of descriptors back")?;
        Ok(())
    }

    /// Waits for restore. There is no old master that could hold a superblock.
    fn wait_until_created(&self) -> anyhow::Result<()> {
        loop {
            let seen = self.segment().wake_value();
            self.watch.check()?;
            for index in select(self.segment(), self.master, |progress| progress == Progress::Held)? {
                self.segment().advance(index, Progress::Released)?;
            }
            let is_waited_for = |progress| matches!(progress, Progress::Pending | Progress::Released);
            let waiting = select(self.segment(), self.master, is_waited_for)?;
            if waiting.is_empty() {
                return Ok(());
            }
            self.voice.detail(format_args!("waiting for {}", count(waiting.len(), "mount")));
            self.watch.wait(seen)?;
        }
    }

    /// Opens and claims all superblocks.
    fn open(&mut self) -> anyhow::Result<()> {
        let ready = |progress| matches!(progress, Progress::Created | Progress::Claimed);
        let ready = select(self.segment(), self.master, ready)?;
        let segment = self.watch.segment;
        let mounts = Proc::open().and_then(|proc| proc.this()).context("cannot open /proc")?;
        let mounts = Mounts::read(&mounts)?;
        let mut wanted = Vec::with_capacity(ready.len());
        for index in ready {
            let superblock = &segment.superblocks()[index];
            let device = mounts.device_of(superblock).ok_or(Errno::ENOENT).with_context(|| {
                format!(
                    "{}: no autofs mount with device {} is there (is this the right mount namespace?)",
                    superblock.mount_point, superblock.device
                )
            })?;
            wanted.push((index, device));
        }
        let opened = Opener::new(Places::Segment(segment), self.device, None).open(&wanted)?;
        for ((index, _), root) in wanted.into_iter().zip(opened) {
            let root =
                root.with_context(|| format!("cannot open {}", segment.superblocks()[index].mount_point))?;
            if segment.progress(index)? == Progress::Created {
                segment.advance(index, Progress::Claimed)?;
            }
            self.roots.push((index, root));
        }
        Ok(())
    }

    /// Makes the master's pipes, with both ends at their numbers.
    fn make_pipes(&self, numbers: &Numbers, reserved: &mut Reserved) -> anyhow::Result<WriteEnds> {
        let mut write_ends = Vec::new();
        for pipe in &numbers.pipes {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
            rustix::io::ioctl_fionbio(&read, pipe.read_end.flags.nonblock)
                .context("cannot set O_NONBLOCK")?;
            reserved.put(pipe.read_end.fd, read.as_fd())?;
            if let Some(end) = pipe.write_end {
                rustix::io::ioctl_fionbio(&write, end.flags.nonblock).context("cannot set O_NONBLOCK")?;
                reserved.put(end.fd, write.as_fd())?;
            }
            write_ends.push(write);
        }
        Ok(write_ends)
    }

    fn set_pipes(&self, write_ends: &WriteEnds) -> anyhow::Result<()> {
        for (index, root) in &self.roots {
            let superblock = &self.segment().superblocks()[*index];
            let pipe =
                write_ends.get(superblock.pipe).context("the segment names a pipe that is not there")?;
            // An adopted superblock may still have a pipe.
            self.device.make_catatonic(root.as_fd()).context("cannot make it catatonic")?;
            self.device.set_pipe(root.as_fd(), pipe.as_fd()).with_context(|| {
                format!(
                    "cannot set the pipe of {} (invalid argument: this is another pid namespace than that of \
                    the group that it was made with)",
                    superblock.mount_point
                )
            })?;
        }
        Ok(())
    }

    fn keep_controls(&self, reserved: &mut Reserved) -> anyhow::Result<()> {
        for (index, root) in &self.roots {
            for end in &self.segment().superblocks()[*index].control_fds {
                reserved.put(end.fd, root.as_fd())?;
            }
        }
        Ok(())
    }

    /// Takes back what was connected, and gives everything up. Its own errors do not matter any more.
    fn undo(&self, errno: Errno) {
        for (_, root) in &self.roots {
            let _ = self.device.make_catatonic(root.as_fd());
        }
        let open = select(self.segment(), self.master, |progress| !progress.is_final());
        for index in open.unwrap_or_default() {
            let _ = self.segment().advance(index, Progress::Failed(errno));
        }
    }
}

fn become_group_leader() -> anyhow::Result<()> {
    if getpgrp() != getpid() {
        setsid().context("cannot make a process group")?;
    }
    Ok(())
}
