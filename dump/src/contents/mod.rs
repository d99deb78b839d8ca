//! Stage 4: what is inside the superblocks.
//!
//! Their roots are opened by a walk, which blocks for ever where a request is pending on a direct
//! root. So a child does it, which is killed when it makes no progress; another one goes on behind the
//! place that it was stuck at. Superblocks of which it is known that a request waits are not walked.

mod place;
mod wire;
mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use autofs_cr_common::channel::ChannelError;
use autofs_cr_common::child::Child;
use autofs_cr_common::cli::Voice;
use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::RequestKind;
use autofs_cr_common::model::{Device, MountType, TextPath};
use autofs_cr_common::proc::Proc;
use autofs_cr_common::sys::autofs::ControlDevice;

use crate::collect::{self, Collected};
use place::{Place, PlaceFile};
use wire::{Batch, Item};

/// What is inside each superblock.
pub type Contents = BTreeMap<Device, Inside>;

/// What is inside a superblock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// The inode number of its root, if it could be seen.
    pub inode: Option<u64>,
    /// Directories, by path; the permission bits where they could be seen.
    pub directories: BTreeMap<TextPath, Option<u32>>,
    /// Symbolic links and what they point to, by path.
    pub symlinks: BTreeMap<TextPath, TextPath>,
}

/// A superblock to look into.
#[derive(Debug)]
pub struct Job {
    device: Device,
    path: CString,
}

/// Looks into all superblocks.
pub fn read(
    proc: &Proc,
    collected: &Collected,
    control: &ControlDevice,
    timeout: Duration,
    voice: Voice,
) -> Result<Contents> {
    let (jobs, mut contents) = jobs(&collected.report)?;
    let avoid = pending_keys(&collected.report);
    let mut reading = Reading { jobs, avoid, done: Vec::new(), pending: Vec::new() };
    while reading.done.len() < reading.jobs.len() {
        if let Some(place) = reading.run_child(collected, control, timeout)? {
            reading.pending.push(place.clone());
            reading.avoid.insert((reading.jobs[place.job].device, place.path));
        }
    }
    if !reading.pending.is_empty() {
        // A root that is not found may also have been unmounted.
        collect::check_mounts(proc, &collected.report, &collected.target)?;
    }
    // A superblock that was begun anew may have told of a place twice.
    reading.pending.sort_unstable();
    reading.pending.dedup();
    for place in &reading.pending {
        voice.warn(reading.describe(place));
    }
    contents.extend(reading.jobs.iter().map(|job| job.device).zip(reading.done));
    Ok(contents)
}

/// The superblocks to walk to, and what is known of those that must not be.
fn jobs(report: &Report) -> Result<(Vec<Job>, Contents)> {
    let pending = pending_roots(report);
    let mut places = HashMap::with_capacity(report.superblocks.len());
    for mount in report.mounts.iter().filter(|mount| mount.root.as_bytes() == b"/") {
        places.entry(mount.device).or_insert(&mount.mount_point);
    }
    let mut jobs = Vec::with_capacity(report.superblocks.len());
    let mut known = Contents::new();
    for superblock in &report.superblocks {
        if let Some(&inode) = pending.get(&superblock.device) {
            known.insert(superblock.device, Inside { inode: Some(inode), ..Inside::default() });
        } else if let Some(place) = places.get(&superblock.device) {
            let path = CString::new(place.as_bytes()).with_context(|| format!("mount point '{place}'"))?;
            jobs.push(Job { device: superblock.device, path });
        }
    }
    Ok((jobs, known))
}

/// The direct and offset superblocks that a mount request waits for, and the inodes of their roots.
fn pending_roots(report: &Report) -> HashMap<Device, u64> {
    let requests = report.requests.iter().filter(|request| request.kind == RequestKind::Mount);
    let is_root = |device| {
        let found = report.superblock(device);
        found.is_some_and(|superblock| superblock.options.mount_type != MountType::Indirect)
    };
    requests
        .filter(|request| is_root(request.device))
        .map(|request| (request.device, request.inode))
        .collect()
}

/// The keys of indirect superblocks that a mount request waits for.
fn pending_keys(report: &Report) -> HashSet<(Device, Vec<u8>)> {
    let requests = report.requests.iter().filter(|request| request.kind == RequestKind::Mount);
    requests
        .filter_map(|request| Some((request.device, request.name.as_ref()?.as_bytes().to_vec())))
        .collect()
}

struct Reading {
    jobs: Vec<Job>,
    /// What is not walked to: places inside superblocks, and with an empty path their roots.
    avoid: HashSet<(Device, Vec<u8>)>,
    /// The results of the first jobs.
    done: Vec<Inside>,
    /// Where a request turned out to be pending.
    pending: Vec<Place>,
}

impl Reading {
    /// Goes on with the jobs that are not done; returns where the child got stuck, if it did.
    fn run_child(
        &mut self,
        collected: &Collected,
        control: &ControlDevice,
        timeout: Duration,
    ) -> Result<Option<Place>> {
        let place = PlaceFile::new().context("cannot make a file in memory")?;
        let first = self.done.len();
        let mut child = Child::spawn(|channel| {
            worker::run(&channel, &place, &collected.target, control, &self.jobs, first, &self.avoid)
        })
        .context("cannot start a child process")?;
        let mut seen = None;
        let mut inside = Inside::default();
        while self.done.len() < self.jobs.len() {
            match child.receive::<Batch>(Some(Instant::now() + timeout)) {
                Ok((batch, _)) => self.take(batch, &mut inside)?,
                Err(ChannelError::TimedOut) => {
                    let now = place.read().context("cannot read a file in memory")?;
                    if seen.as_ref() == Some(&now) {
                        child.kill();
                        return self.stuck(now).map(Some);
                    }
                    seen = Some(now);
                }
                Err(ChannelError::Closed) => {
                    bail!("the child process that reads the contents ended too early")
                }
                Err(error) => {
                    return Err(error).context("cannot speak to the child process that reads the contents");
                }
            }
        }
        child.wait().context("cannot wait for a child process")?;
        Ok(None)
    }

    fn stuck(&self, place: Option<Place>) -> Result<Place> {
        match place {
            Some(place) if place.job < self.jobs.len() => Ok(place),
            _ => bail!("the child process that reads the contents did not enter the namespaces in time"),
        }
    }

    fn take(&mut self, batch: Batch, inside: &mut Inside) -> Result<()> {
        for item in batch {
            match item {
                Item::Root(inode) => inside.inode = Some(inode),
                Item::Directory(path, mode) => drop(inside.directories.insert(path, mode)),
                Item::Symlink(path, target) => drop(inside.symlinks.insert(path, target)),
                Item::Pending(path) => {
                    let place = Place { job: self.done.len(), path: path.as_bytes().to_vec() };
                    self.pending.push(place);
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

    fn describe(&self, place: &Place) -> String {
        let job = &self.jobs[place.job];
        let path = TextPath::from_bytes(place.path.clone());
        let key = if place.path.is_empty() { String::new() } else { format!("/{path}") };
        format!(
            "a request for {}{key} (device {}) is pending, so nobody may look into it: what is there is taken from the mounts below it",
            shown(job),
            job.device,
        )
    }
}

fn shown(job: &Job) -> TextPath {
    TextPath::from_bytes(job.path.to_bytes().to_vec())
}
