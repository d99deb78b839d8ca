//! Stage 5: what is inside the superblocks.
//!
//! Their roots are opened by a walk, which blocks for ever where a request is pending on a direct
//! root. So a child does it, which is killed when it makes no progress; another one goes on behind the
//! place that it was stuck at. Several children share the work. Superblocks of which it is known that a request waits are not walked.

mod part;
mod place;
mod wire;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::CString;

use anyhow::{Context, Result};
use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::RequestKind;
use autofs_cr_common::model::{Device, MountType, TextPath};
use autofs_cr_common::progress::Progress;
use autofs_cr_common::scan::Expiring;

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
    avoid: Avoid,
    /// A sentence for each place that an expire keeps from being read.
    unread: Vec<String>,
}

/// What is not walked to.
#[derive(Clone, Debug, Default)]
pub struct Avoid {
    /// Places inside superblocks, and with an empty path their roots.
    places: HashSet<(Device, Vec<u8>)>,
    /// Superblocks of which only the root is walked to.
    insides: BTreeSet<Device>,
}

impl Avoid {
    fn has(&self, device: Device, path: &[u8]) -> bool {
        (!path.is_empty() && self.insides.contains(&device))
            || (!self.places.is_empty() && self.places.contains(&(device, path.to_vec())))
    }
}

/// Plans the reading of all superblocks of a report.
pub fn plan(report: &Report, expiring: &Expiring) -> Result<Plan> {
    let Roots { jobs, known, unread } = roots(report, expiring)?;
    let insides = jobs.iter().map(|job| job.device).filter(|device| expiring.is_of(*device));
    let avoid = Avoid { insides: insides.collect(), places: pending_keys(report) };
    Ok(Plan { jobs, known, avoid, unread })
}

/// Children that read, side by side.
pub struct Reading<'a> {
    parts: Vec<(&'a [Job], Part<'a>)>,
    known: Contents,
    unread: Vec<String>,
}

/// What was read.
pub struct Found {
    /// What is inside the superblocks.
    pub contents: Contents,
    /// A sentence for each place that a pending request kept from being read.
    pub pending: Vec<String>,
    /// A sentence for each place that an expire kept from being read.
    pub unread: Vec<String>,
}

impl Plan {
    /// Starts the children.
    pub fn start<'a>(&'a mut self, means: Means<'a>) -> Result<Reading<'a>> {
        let known = std::mem::take(&mut self.known);
        let inside = self.avoid.insides.iter().map(|device| format!(
            "an expire of something in device {device} is not answered, so nobody may look at its keys: what is there is taken from the mounts below it"
        ));
        let unread = std::mem::take(&mut self.unread).into_iter().chain(inside).collect();
        let parts = self.jobs.chunks(part_size(self.jobs.len()));
        let start = |jobs| Ok((jobs, Part::start(means, jobs, self.avoid.clone())?));
        Ok(Reading { parts: parts.map(start).collect::<Result<_>>()?, known, unread })
    }
}

impl Reading<'_> {
    /// Waits for all that the children find.
    pub fn finish(self, progress: &Progress) -> Result<Found> {
        let mut found = Found { contents: self.known, pending: Vec::new(), unread: self.unread };
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

/// The roots of superblocks: those to walk to, and what is known of those that must not be.
#[derive(Default)]
struct Roots {
    jobs: Vec<Job>,
    known: Contents,
    unread: Vec<String>,
}

fn roots(report: &Report, expiring: &Expiring) -> Result<Roots> {
    let pending = pending_roots(report);
    let mut places = HashMap::with_capacity(report.superblocks.len());
    for mount in report.mounts.iter().filter(|mount| mount.root.as_bytes() == b"/") {
        places.entry(mount.device).or_insert(&mount.mount_point);
    }
    let mut roots = Roots { jobs: Vec::with_capacity(report.superblocks.len()), ..Roots::default() };
    for superblock in &report.superblocks {
        if let Some(&inode) = pending.get(&superblock.device) {
            roots.known.insert(superblock.device, Inside { inode: Some(inode), ..Inside::default() });
        } else if let Some(place) = places.get(&superblock.device) {
            if let Some(at) = expiring.on_the_way(place) {
                roots.known.insert(superblock.device, Inside::default());
                roots.unread.push(in_expire(place, at, superblock.device));
                continue;
            }
            let path = CString::new(place.as_bytes()).with_context(|| format!("mount point '{place}'"))?;
            roots.jobs.push(Job { device: superblock.device, path });
        }
    }
    Ok(roots)
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

fn in_expire(place: &TextPath, at: &TextPath, device: Device) -> String {
    format!(
        "an expire of {at} is not answered, so nobody may look into {place} (device {device}): its inode number is left \
         out, and what is inside is taken from the mounts below it"
    )
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
