//! Which mount is on which.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

use autofs_cr_common::doc::Report;
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
}

/// The autofs mounts, and what is on them, by mount id.
#[derive(Debug)]
pub struct OnAutofs(HashSet<u64>);

impl OnAutofs {
    /// Those of a report of this mount namespace.
    pub fn of(report: &Report) -> Self {
        let mounts = report.mounts.iter().map(|mount| mount.id);
        Self(mounts.chain(report.content.iter().map(|content| content.id)).collect())
    }

    /// Those that are there now.
    pub fn read() -> io::Result<Self> {
        let tree = Tree::read()?;
        let is_autofs = |id: u64| tree.mounts.get(&id).is_some_and(|node| node.is_autofs);
        Ok(Self(tree.mounts.keys().copied().filter(|&mount| tree.above(mount).any(is_autofs)).collect()))
    }

    /// Whether this is one of them.
    pub fn has(&self, mount: u64) -> bool {
        self.0.contains(&mount)
    }
}
