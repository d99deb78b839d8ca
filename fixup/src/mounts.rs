//! The autofs mounts that a process sees.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use autofs_cr_common::model::{Device, KernelPipe, OptionsReader, SuperOptions, TextPath};
use autofs_cr_common::proc::{ProcessDir, mountinfo};
use autofs_cr_common::segment::Superblock;

/// What the kernel says of those superblocks that a process sees.
pub fn options_of(
    process: &ProcessDir,
    wanted: &HashSet<Device>,
) -> anyhow::Result<HashMap<Device, SuperOptions>> {
    let text = process.mountinfo().context("cannot read its mountinfo")?;
    let mut found = HashMap::with_capacity(wanted.len());
    let mut options = OptionsReader::default();
    for line in mountinfo::lines(&text) {
        let line = line?;
        let Some(device) = line.device().filter(|device| line.is_autofs() && wanted.contains(device)) else {
            continue;
        };
        found.insert(device, options.read(line.super_options)?);
    }
    Ok(found)
}

/// The autofs mounts of a mount namespace, as one of its processes sees them.
#[derive(Debug, Default)]
pub struct Mounts {
    at: HashMap<Vec<u8>, Vec<Device>>,
    options: HashMap<Device, SuperOptions>,
}

impl Mounts {
    /// Reads the mountinfo of a process.
    pub fn read(process: &ProcessDir) -> anyhow::Result<Self> {
        let text = process.mountinfo().context("cannot read its mountinfo")?;
        let mut mounts = Self::default();
        let mut options = OptionsReader::default();
        for line in mountinfo::lines(&text) {
            let line = line?;
            let Some(device) = line.device().filter(|_| line.is_autofs()) else { continue };
            mounts.options.insert(device, options.read(line.super_options)?);
            let place = mountinfo::unescape(line.mount_point).into_owned();
            mounts.at.entry(place).or_default().push(device);
        }
        Ok(mounts)
    }

    /// The superblocks that are mounted at the place of this one, the lowest first.
    pub fn at(&self, superblock: &Superblock) -> &[Device] {
        self.at.get(superblock.mount_point.as_bytes()).map_or(&[], Vec::as_slice)
    }

    /// A place of a superblock: this one if it is there, else the first.
    pub fn place_of(&self, device: Device, preferred: &TextPath) -> Option<TextPath> {
        let is_at = |place: &[u8]| self.at.get(place).is_some_and(|there| there.contains(&device));
        if is_at(preferred.as_bytes()) {
            return Some(preferred.clone());
        }
        let first = self.at.keys().filter(|place| is_at(place)).min()?;
        Some(TextPath::from_bytes(first.clone()))
    }

    /// Whether a process of this group can walk to a place without waiting on an autofs mount: each on
    /// the way has that group, or is catatonic.
    pub fn let_pass(&self, group: i32, place: &TextPath) -> bool {
        let passes = |device: &Device| {
            let options = self.options.get(device);
            options.is_some_and(|found| found.pipe == KernelPipe::None || (group > 0 && found.pgrp == group))
        };
        let on_the_way = place.ancestors().filter_map(|above| self.at.get(above.as_os_str().as_bytes()));
        on_the_way.flatten().all(passes)
    }

    /// What the kernel says of a superblock.
    pub fn options(&self, device: Device) -> Option<&SuperOptions> {
        self.options.get(&device)
    }

    /// The device number that a superblock has. Where the number need not be kept it got any, and is
    /// known by its place and by not being connected.
    pub fn device_of(&self, superblock: &Superblock) -> Option<Device> {
        let there = self.at(superblock);
        if there.contains(&superblock.device) {
            return Some(superblock.device);
        }
        let topmost = *there.last()?;
        let options = self.options(topmost)?;
        let fits = options.options.mount_type == superblock.mount_type && options.pipe == KernelPipe::None;
        fits.then_some(topmost)
    }
}

/// The same, read when they are first asked for: it takes as long as much of the work, and mostly they are not needed.
#[derive(Debug, Default)]
pub struct WhenNeeded(OnceCell<Mounts>);

impl WhenNeeded {
    /// What this process sees, which is always the same one.
    pub fn of(&self, process: &ProcessDir) -> anyhow::Result<&Mounts> {
        if let Some(mounts) = self.0.get() {
            return Ok(mounts);
        }
        let read = Mounts::read(process)?;
        Ok(self.0.get_or_init(|| read))
    }
}
