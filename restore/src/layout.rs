//! How the mounts of an image lie in each other.

use std::collections::{BTreeMap, HashMap};

use autofs_cr_common::doc::Image;
use autofs_cr_common::doc::report::Within;
use autofs_cr_common::model::{Device, TextPath};

use crate::plan::Item;

/// Tables about the mounts of an image, by their index.
#[derive(Debug)]
pub struct Layout {
    /// The mount that it is nested in; none if that is no mount of the image.
    pub parents: Vec<Option<usize>>,
    /// How many mounts of the image lie below it at the same mount point.
    pub layers: Vec<usize>,
    by_device: HashMap<Device, Vec<usize>>,
}

impl Layout {
    /// Builds the tables.
    pub fn of(image: &Image) -> Self {
        let mut by_device: HashMap<Device, Vec<usize>> = HashMap::new();
        let mut seen: HashMap<&TextPath, usize> = HashMap::new();
        let mut layers = Vec::with_capacity(image.mounts.len());
        for (index, mount) in image.mounts.iter().enumerate() {
            by_device.entry(mount.device).or_default().push(index);
            let layer = seen.entry(&mount.mount_point).or_default();
            layers.push(*layer);
            *layer += 1;
        }
        Self { parents: parents(image), layers, by_device }
    }

    /// The mounts that show a superblock.
    pub fn mounts_of(&self, device: Device) -> Vec<usize> {
        self.by_device.get(&device).cloned().unwrap_or_default()
    }

    /// The innermost mount of the image that a path is below of, or at.
    pub fn around(&self, image: &Image, path: &TextPath) -> Option<usize> {
        let mounts = image.mounts.iter().enumerate();
        let around = mounts.filter(|(_, mount)| path.starts_with(&mount.mount_point));
        around.max_by_key(|(_, mount)| mount.mount_point.as_bytes().len()).map(|(index, _)| index)
    }

    /// Puts the items whose mounts are nested into groups. Groups and their members are in the order
    /// of the image's mounts, so that what lies outside comes first.
    pub fn groups(&self, items: &[Item], item_of: &[usize]) -> Vec<Vec<usize>> {
        let mut sets = Sets::new(items.len());
        for (mount, parent) in self.parents.iter().enumerate() {
            let Some(parent) = *parent else { continue };
            let (inner, outer) = (item_of[mount], item_of[parent]);
            if items[inner].action.makes() && items[outer].action.makes() {
                sets.join(inner, outer);
            }
        }
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|&index| items[index].mounts.first().copied());
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut first = HashMap::new();
        for (position, index) in order.into_iter().enumerate() {
            let place = *first.entry(sets.root(index)).or_insert(position);
            groups.entry(place).or_default().push(index);
        }
        groups.into_values().collect()
    }
}

/// For each mount the item that it shows.
pub fn item_of(image: &Image, items: &[Item]) -> Vec<usize> {
    let mut item_of = vec![0; image.mounts.len()];
    for (index, item) in items.iter().enumerate() {
        item.mounts.iter().for_each(|&mount| item_of[mount] = index);
    }
    item_of
}

/// For each mount the last one before it in the image that its mount point is below of, or equal to, if
/// the image says that it is on an autofs mount or on something mounted on one.
fn parents(image: &Image) -> Vec<Option<usize>> {
    let mounts = &image.mounts;
    let mut order: Vec<usize> = (0..mounts.len()).collect();
    // Paths compare part by part, so that all that is below a path stands right behind it.
    order.sort_by(|&one, &other| {
        mounts[one].mount_point.cmp(&mounts[other].mount_point).then(one.cmp(&other))
    });
    let mut parents = vec![None; mounts.len()];
    let mut open: Vec<usize> = Vec::new();
    for index in order {
        let mount = &mounts[index];
        while open.last().is_some_and(|&outer| !mount.mount_point.starts_with(&mounts[outer].mount_point)) {
            open.pop();
        }
        if mount.within != Within::Other {
            parents[index] = open.iter().rev().copied().find(|&outer| outer < index);
        }
        open.push(index);
    }
    parents
}

/// Disjoint sets of numbers.
struct Sets {
    parents: Vec<usize>,
}

impl Sets {
    fn new(count: usize) -> Self {
        Self { parents: (0..count).collect() }
    }

    fn root(&mut self, mut member: usize) -> usize {
        while self.parents[member] != member {
            self.parents[member] = self.parents[self.parents[member]];
            member = self.parents[member];
        }
        member
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.parents[one] = other;
    }
}
