//! A part of the superblocks, read by one child at a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use autofs_cr_common::channel::ChannelError;
use autofs_cr_common::child::Child;
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_common::target::Target;

use super::place::{Place, PlaceFile};
use super::wire::{Batch, Item};
use super::{Avoid, Inside, Job, shown, worker};

/// How long a child may take to start; nothing there can block.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// What the children need.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The process whose namespaces they enter.
    pub target: &'a Target,
    /// The control device.
    pub control: &'a ControlDevice,
    /// How long one place may take.
    pub timeout: Duration,
}

/// A part of the jobs.
pub struct Part<'a> {
    means: Means<'a>,
    jobs: &'a [Job],
    avoid: Avoid,
    child: Child,
    place: PlaceFile,
    /// The results of the first jobs.
    done: Vec<Inside>,
    /// Where a request turned out to be pending.
    pending: Vec<Place>,
}

impl<'a> Part<'a> {
    /// Starts the first child.
    pub fn start(means: Means<'a>, jobs: &'a [Job], avoid: Avoid) -> Result<Self> {
        let (child, place) = spawn(means, jobs, 0, &avoid)?;
        let done = Vec::with_capacity(jobs.len());
        Ok(Self { means, jobs, avoid, child, place, done, pending: Vec::new() })
    }

    /// Waits for all results; also says where a request is pending. `tell` hears how many there are.
    pub fn finish(mut self, tell: impl Fn(usize)) -> Result<(Vec<Inside>, Vec<Place>)> {
        while let Some(place) = self.follow(&tell)? {
            self.child.kill();
            self.avoid.places.insert((self.jobs[place.job].device, place.path.clone()));
            self.pending.push(place);
            (self.child, self.place) = spawn(self.means, self.jobs, self.done.len(), &self.avoid)?;
        }
        self.child.wait().context("cannot wait for a child process")?;
        // A superblock that was begun anew may have told of a place twice.
        self.pending.sort_unstable();
        self.pending.dedup();
        Ok((self.done, self.pending))
    }

    /// Takes what the child says, to the end or until it is stuck: then it returns where.
    fn follow(&mut self, tell: &impl Fn(usize)) -> Result<Option<Place>> {
        let start = Instant::now();
        let mut inside = Inside::default();
        while self.done.len() < self.jobs.len() {
            tell(self.done.len());
            let before = self.place_now()?;
            match self.child.receive::<Batch>(Some(Instant::now() + self.means.timeout)) {
                Ok((batch, _)) => self.take(batch, &mut inside)?,
                Err(ChannelError::TimedOut) => match self.place_now()? {
                    Some(place) if before.as_ref() == Some(&place) => return self.stuck(place).map(Some),
                    None if start.elapsed() > START_DEADLINE => {
                        bail!("the child process that reads the contents does not start")
                    }
                    _ => {}
                },
                Err(ChannelError::Closed) => {
                    bail!("the child process that reads the contents ended too early")
                }
                Err(error) => {
                    return Err(error).context("cannot speak to the child process that reads the contents");
                }
            }
        }
        Ok(None)
    }

    fn place_now(&self) -> Result<Option<Place>> {
        self.place.read().context("cannot read a file in memory")
    }

    fn stuck(&self, place: Place) -> Result<Place> {
        if place.job < self.jobs.len() {
            return Ok(place);
        }
        bail!("the child process that reads the contents is at an unknown place")
    }

    fn take(&mut self, batch: Batch, inside: &mut Inside) -> Result<()> {
        for item in batch {
            match item {
                Item::Root(inode) => inside.inode = Some(inode),
                Item::Empty(inode) => {
                    self.done.push(Inside { inode: Some(inode), ..std::mem::take(inside) });
                }
                Item::Directory(path, mode) => drop(inside.directories.insert(path, mode)),
                Item::Symlink(path, target) => drop(inside.symlinks.insert(path, target)),
                Item::Pending(path) => {
                    self.pending.push(Place { job: self.done.len(), path: path.as_bytes().to_vec() });
                }
                Item::End => self.done.push(std::mem::take(inside)),
                Item::Failed(what, errno) => return Err(self.failed(&what, errno)),
            }
        }
        Ok(())
    }

    fn failed(&self, what: &str, errno: i32) -> anyhow::Error {
        let error = std::io::Error::from_raw_os_error(errno);
        match self.jobs.get(self.done.len()) {
            Some(job) => {
                anyhow::anyhow!("cannot {what} of {} (device {}): {error}", shown(job), job.device)
            }
            None => anyhow::anyhow!("cannot {what}: {error}"),
        }
    }
}

fn spawn(means: Means<'_>, jobs: &[Job], first: usize, avoid: &Avoid) -> Result<(Child, PlaceFile)> {
    let place = PlaceFile::new().context("cannot make a file in memory")?;
    let work = |channel| worker::run(&channel, &place, means, jobs, first, avoid);
    let child = Child::spawn(work).context("cannot start a child process")?;
    Ok((child, place))
}
