//! The mounts that were made. A descriptor of each is kept, as an undo must not have to walk onto a mount that
//! somebody waits for. Where this process may not have that many, the last ones are only known by their ids.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use autofs_cr_common::model::TextPath;

use super::place::{Root, mount_id};

/// How many descriptors are left for other things than mounts.
const OTHERS: usize = 256;

/// One of them.
#[derive(Debug)]
pub enum Tree {
    /// Its descriptor.
    Open(OwnedFd),
    /// Its mount id.
    Known(u64),
}

impl Tree {
    /// Its descriptor, found by its place where it was only known.
    pub fn open(self, root: &Root, mount_point: &TextPath) -> io::Result<OwnedFd> {
        match self {
            Self::Open(tree) => Ok(tree),
            Self::Known(id) => root.mount(mount_point, id),
        }
    }
}

/// All of them, by their mounts in the image.
#[derive(Debug)]
pub struct Made {
    trees: HashMap<usize, Tree>,
    /// How many descriptors this process may have.
    limit: usize,
}

impl Made {
    /// None yet, in a process that may have so many descriptors.
    pub fn new(limit: usize) -> Self {
        Self { trees: HashMap::new(), limit }
    }

    /// Adds one, whose descriptor has to be kept where something goes into it or onto it.
    pub fn insert(&mut self, mount: usize, tree: OwnedFd, must_stay_open: bool) -> io::Result<()> {
        let tree = match self.is_scarce(&tree) && !must_stay_open {
            true => Tree::Known(mount_id(tree.as_fd())?),
            false => Tree::Open(tree),
        };
        self.trees.insert(mount, tree);
        Ok(())
    }

    /// Takes one out.
    pub fn remove(&mut self, mount: usize) -> Option<Tree> {
        self.trees.remove(&mount)
    }

    /// Whether it was made.
    pub fn contains(&self, mount: usize) -> bool {
        self.trees.contains_key(&mount)
    }

    /// Its descriptor, if that is kept.
    pub fn get(&self, mount: usize) -> Option<BorrowedFd<'_>> {
        match self.trees.get(&mount)? {
            Tree::Open(tree) => Some(tree.as_fd()),
            Tree::Known(_) => None,
        }
    }

    /// Whether few more descriptors can be had after this one.
    pub fn is_scarce(&self, last: &OwnedFd) -> bool {
        self.room(last) == 0
    }

    /// How many descriptors can be kept after this one. The kernel gives the lowest free number, so the number tells how many
    /// there are.
    pub fn room(&self, last: &OwnedFd) -> usize {
        self.limit.saturating_sub(last.as_raw_fd() as usize + OTHERS)
    }
}
