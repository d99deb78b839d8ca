//! Which mount is on which.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use autofs_cr_common::proc::{Proc, mountinfo};

/// The mounts below the target's root directory.
#[derive(Debug)]
pub struct Tree {
    mounts: HashMap<u64, Node>,
}

#[derive(Debug)]
struct Node {
    parent: u64,
    is_autofs: bool,
}

impl Tree {
    /// As they are now.
    pub fn read() -> io::Result<Self> {
        // The current directory is the /proc of restore.
        let text = Proc::at(Path::new("."))?.this()?.mountinfo()?;
        let nodes = mountinfo::lines(&text).map(|line| {
            line.map(|line| (line.id, Node { parent: line.parent, is_autofs: line.is_autofs() }))
        });
        Ok(Self { mounts: nodes.collect::<Result<_, _>>().map_err(io::Error::other)? })
    }

    /// A mount, the one that it is on, and so on.
    pub fn above(&self, mount: u64) -> impl Iterator<Item = u64> {
        let parent = |mount: &u64| self.mounts.get(mount).map(|node| node.parent);
        // The root of a namespace can be its own parent.
        std::iter::successors(Some(mount), parent).take(self.mounts.len() + 1)
    }

    /// Whether a mount is an autofs mount, or on one.
    pub fn is_on_autofs(&self, mount: u64) -> bool {
        self.above(mount).any(|id| self.mounts.get(&id).is_some_and(|node| node.is_autofs))
    }
}
