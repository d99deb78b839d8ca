//! Stage 5: what is inside the superblocks.
//!
//! Their roots are opened by a walk, which blocks for ever where a request is pending on a direct
//! root. So a child does it, which is killed when it makes no progress; another one goes on behind the
//! place that it was stuck at. Several children share the work. Superblocks of which it is known that a request waits are not walked.

mod part;
mod place;
mod wire;
mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;

use anyhow::{Context, Result};
use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::RequestKind;
use autofs_cr_common::model::{Device, MountType, TextPath};
use autofs_cr_common::progress::Progress;

pub use part::Means;
use part::Part;
use place::Place;

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

/// What is to be looked into, and what is known before.
pub struct Plan {
    jobs: Vec<Job>,
    known: Contents,
    /// Keys that are not walked to.
    avoid: HashSet<(Device, Vec<u8>)>,
}

/// Plans the reading of all superblocks of a report.
pub fn plan(report: &Report) -> Result<Plan> {
    let (jobs, known) = jobs(report)?;
    Ok(Plan { jobs, known, avoid: pending_keys(report) })
}

/// Children that read, side by side.
pub struct Reading<'a> {
    parts: Vec<(&'a [Job], Part<'a>)>,
    known: Contents,
}

/// What was read.
pub struct Found {
    /// What is inside the superblocks.
    pub contents: Contents,
    /// A sentence for each place that a pending request kept from being read.
    pub pending: Vec<String>,
}

impl Plan {
    /// Starts the children.
    pub fn start<'a>(&'a mut self, means: Means<'a>) -> Result<Reading<'a>> {
        let known = std::mem::take(&mut self.known);
        let parts = self.jobs.chunks(part_size(self.jobs.len()));
        let start = |jobs| Ok((jobs, Part::start(means, jobs, self.avoid.clone())?));
        Ok(Reading { parts: parts.map(start).collect::<Result<_>>()?, known })
    }
}

impl Reading<'_> {
    /// Waits for all that the children find.
    pub fn finish(self, progress: &Progress) -> Result<Found> {
        let mut found = Found { contents: self.known, pending: Vec::new() };
        for (jobs, part) in self.parts {
            let before = found.contents.len();
            let (done, stuck) = part.finish(|done| progress.at(before + done))?;
            found.contents.extend(jobs.iter().map(|job| job.device).zip(done));
            found.pending.extend(stuck.iter().map(|place| describe(&jobs[place.job], place)));
        }
        Ok(found)
    }
}

/// Fewer superblocks than this are not worth a child of their own.
const SMALLEST_PART: usize = 512;

/// How many superblocks each child reads: as many children as there are processors.
fn part_size(jobs: usize) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    jobs.div_ceil(processors).max(SMALLEST_PART)
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

fn describe(job: &Job, place: &Place) -> String {
    let path = TextPath::from_bytes(place.path.clone());
    let key = if place.path.is_empty() { String::new() } else { format!("/{path}") };
    format!(
        "a request for {}{key} (device {}) is pending, so nobody may look into it: what is there is taken from the mounts below it",
        shown(job),
        job.device,
    )
}

fn shown(job: &Job) -> TextPath {
    TextPath::from_bytes(job.path.to_bytes().to_vec())
}
