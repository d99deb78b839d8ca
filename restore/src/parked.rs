//! What a restore that was killed left: its work place, with mounts that it had moved aside while it replaced what they
//! were on. The next restore moves them back.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use autofs_cr_common::doc::{self, Image};
use autofs_cr_common::model::{Device, KernelPipe, SuperOptions, TextPath};
use autofs_cr_common::proc::{Proc, mountinfo};
use autofs_cr_common::target::Target;
use autofs_cr_common::unfinished::{IMAGE, is_cover, is_finished, is_work_place, options_of};
use rustix::fs::OFlags;

use crate::before::Before;
use crate::plan::Wishes;

/// The file in a work place that says what was there before.
pub const BEFORE: &str = "before";

/// The link in a work place that says at which place mounts were changed last without moving any into the work place.
pub const AT_WORK: &str = "at-work";

/// How the names of the copies of mounts in a work place begin.
pub const COPY: &str = "copy-";

/// How long a restore that was killed may take to be gone, with its children.
const PATIENCE: Duration = Duration::from_secs(2);

/// No file in a work place is longer.
const MOST: u64 = 256 << 20;

/// The work place of a restore that is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parking {
    /// Its mount id.
    pub id: u64,
    /// Where it is.
    pub mount_point: TextPath,
    /// Nothing is left to do but to take it away.
    pub is_finished: bool,
    /// The image of that restore, if it is there and can be read.
    pub image: Option<Image>,
    /// What that restore was asked for.
    pub wishes: Wishes,
    /// What is parked there.
    pub mounts: Vec<Parked>,
    /// What covers superblocks whose content is parked.
    pub covers: Vec<Cover>,
    /// The copies of mounts there.
    pub copies: Vec<TextPath>,
    /// The autofs mounts there that keep pipes open.
    pub pipes: Vec<Keeper>,
    /// What was there before that restore.
    pub before: Before,
}

/// An autofs mount whose only use is that a pipe stays open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keeper {
    /// Where it is.
    pub mount_point: TextPath,
    /// The inode of the pipe.
    pub pipe: Option<u64>,
}

/// An empty directory over an autofs mount whose content is parked: see [`crate::mounter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Its mount id.
    pub id: u64,
    /// The device number of the work place that it is of. The kernel gives the id of a mount that is gone to the next one.
    pub device: Option<Device>,
    /// Where it is.
    pub mount_point: TextPath,
    /// The id of the mount that is on it, if its content was not moved away yet.
    pub carries: Option<u64>,
}

/// A mount that is parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Its mount id.
    pub id: u64,
    /// Where it is.
    pub mount_point: TextPath,
    /// Where it was.
    pub was_at: TextPath,
}

impl Parked {
    /// Whether it was not moved: only the superblock that it was on was taken away.
    pub fn is_in_place(&self) -> bool {
        self.mount_point == self.was_at
    }
}

/// Looks for work places in the mount namespace of a process, which has these mounts. That of a restore which is at work is
/// an error.
pub fn find(proc: &Proc, target: &Target, mountinfo: &[u8]) -> anyhow::Result<Vec<Parking>> {
    let before = work_places(mountinfo)?;
    if before.is_empty() {
        return Ok(Vec::new());
    }
    for place in &before {
        wait_for_end(proc, place).with_context(|| what(place))?;
    }
    // One that was at its end has taken its work place away since.
    let text = proc.process(target.pid())?.mountinfo()?;
    let lines: Vec<mountinfo::Line<'_>> = mountinfo::lines(&text).collect::<Result<_, _>>()?;
    let places = lines.iter().filter(|line| is_work_place(line));
    places.map(|place| examine(target, &lines, place).with_context(|| what(place))).collect()
}

fn work_places(text: &[u8]) -> anyhow::Result<Vec<mountinfo::Line<'_>>> {
    let mut places = Vec::new();
    for line in mountinfo::lines(text) {
        places.extend(Some(line?).filter(is_work_place));
    }
    Ok(places)
}

fn what(place: &mountinfo::Line<'_>) -> String {
    format!("cannot look at {}, which a restore made", path(place.mount_point))
}

fn examine(
    target: &Target,
    lines: &[mountinfo::Line<'_>],
    place: &mountinfo::Line<'_>,
) -> anyhow::Result<Parking> {
    let mount_point = path(place.mount_point);
    let here = lines.iter().filter(|line| line.parent == place.id);
    let (copies, here): (Vec<&mountinfo::Line<'_>>, Vec<_>) = here.partition(|line| is_copy(line));
    let (pipes, parked): (Vec<&mountinfo::Line<'_>>, Vec<_>) =
        here.into_iter().partition(|line| line.is_autofs());
    let mounts = parked.iter().map(|line| parked_mount(target, line.id, path(line.mount_point)));
    let mounts = mounts.chain(place_at_work(target, &mount_point)?.and_then(|at| alone(lines, at)).map(Ok));
    let is_copied = |line: &mountinfo::Line<'_>| copies.iter().any(|copy| copy.id == line.parent);
    let covers =
        lines.iter().filter(|line| is_cover(line) && line.device == place.device && !is_copied(line));
    let text = read(target, &inside(&mount_point, BEFORE))?.unwrap_or_default();
    let image = read(target, &inside(&mount_point, IMAGE))?;
    Ok(Parking {
        id: place.id,
        is_finished: is_finished(place, lines),
        image: image.and_then(|text| doc::parse(&text, "the image").ok()),
        wishes: Wishes::of(&options_of(place)),
        mounts: mounts.collect::<io::Result<_>>()?,
        covers: covers.map(|line| cover(lines, line)).collect(),
        copies: copies.iter().map(|line| path(line.mount_point)).collect(),
        pipes: pipes.iter().map(|line| keeper(line)).collect(),
        before: Before::read(&String::from_utf8_lossy(&text))?,
        mount_point,
    })
}

/// Waits until the mounter that has made a work place is dead: it holds a lock there. The place is not walked to, which
/// could keep a mounter that lives from unmounting it.
fn wait_for_end(proc: &Proc, place: &mountinfo::Line<'_>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let device = place.device().context("its device number makes no sense")?;
    while proc.locked().context("cannot read /proc/locks")?.contains(&device) {
        if Instant::now() >= deadline {
            bail!("another autofs-restore is at work in this mount namespace: wait for its end")
        }
        // The kernel tells nobody when a lock is free but who waits for it without a deadline.
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn is_copy(line: &mountinfo::Line<'_>) -> bool {
    path(line.mount_point).file_name().is_some_and(|name| name.as_bytes().starts_with(COPY.as_bytes()))
}

/// The place at which mounts were changed last.
fn place_at_work(target: &Target, place: &TextPath) -> io::Result<Option<TextPath>> {
    match target.read_link(&inside(place, AT_WORK)) {
        Ok(link) => Ok(Some(TextPath::from_bytes(link))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is mounted at a place, if the superblock that it was on was taken away from under it.
fn alone(lines: &[mountinfo::Line<'_>], place: TextPath) -> Option<Parked> {
    let here: Vec<_> = lines.iter().filter(|line| path(line.mount_point) == place).collect();
    let lowest = here.iter().find(|line| here.iter().all(|other| other.id != line.parent))?;
    // A cover is no content: that is parked then.
    let id = (!lowest.is_autofs() && !is_cover(lowest)).then_some(lowest.id)?;
    Some(Parked { id, mount_point: place.clone(), was_at: place })
}

fn keeper(line: &mountinfo::Line<'_>) -> Keeper {
    let options = SuperOptions::parse(&String::from_utf8_lossy(line.super_options));
    let pipe = options.ok().and_then(|options| match options.pipe {
        KernelPipe::Inode(inode) => Some(inode),
        _ => None,
    });
    Keeper { mount_point: path(line.mount_point), pipe }
}

fn cover(lines: &[mountinfo::Line<'_>], line: &mountinfo::Line<'_>) -> Cover {
    let carries = lines.iter().find(|other| other.parent == line.id);
    let carries = carries.map(|line| line.id);
    Cover { id: line.id, device: line.device(), mount_point: path(line.mount_point), carries }
}

fn parked_mount(target: &Target, id: u64, mount_point: TextPath) -> io::Result<Parked> {
    let mut link = mount_point.as_bytes().to_vec();
    link.extend_from_slice(b".was-at");
    let was_at = target.read_link(&TextPath::from_bytes(link))?;
    Ok(Parked { id, mount_point, was_at: TextPath::from_bytes(was_at) })
}

/// What is in a file; none if it is not there.
fn read(target: &Target, path: &TextPath) -> anyhow::Result<Option<Vec<u8>>> {
    let file: OwnedFd = match target.open_inside(path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(|| format!("cannot open {path}"))?,
    };
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(MOST)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {path}"))?;
    Ok(Some(bytes))
}

fn inside(place: &TextPath, name: &str) -> TextPath {
    TextPath::from_bytes([place.as_bytes(), b"/", name.as_bytes()].concat())
}

fn path(escaped: &[u8]) -> TextPath {
    TextPath::from_bytes(mountinfo::unescape(escaped).into_owned())
}
