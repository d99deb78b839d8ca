//! How the mounts of one namespace hang together.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use crate::doc::report::Within;
use crate::proc::mountinfo::Line;

/// What is mounted on what.
pub(super) struct Tree<'a> {
    mounts: HashMap<u64, &'a Line<'a>>,
    /// The places that are mounted on, with the mount that they are in.
    covered: HashSet<(u64, &'a [u8])>,
    /// What was found last, and of which directory in which mount: a list has most mounts of a directory side by
    /// side.
    last: Cell<Option<(u64, &'a [u8], Surroundings<'a>)>>,
}

/// What a mount is on and beneath.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    parent: Option<&'a Line<'a>>,
    /// What it is mounted on.
    pub within: Within,
    /// Something is mounted on a directory above it, in the same mount as it or as one that it is
    /// mounted on: a walk along its path goes there instead.
    pub buried: bool,
}

impl Surroundings<'_> {
    /// It is mounted directly on an autofs mount.
    pub fn is_on_autofs(&self) -> bool {
        self.parent.is_some_and(Line::is_autofs)
    }

    /// Its mount point is the root of the mount that it is mounted on.
    pub fn covers(&self, line: &Line<'_>) -> bool {
        self.parent.is_some_and(|parent| parent.mount_point == line.mount_point)
    }
}

impl<'a> Tree<'a> {
    pub fn new(all: &'a [Line<'a>]) -> Self {
        Self {
            mounts: all.iter().map(|line| (line.id, line)).collect(),
            covered: all.iter().map(|line| (line.parent, line.mount_point)).collect(),
            last: Cell::new(None),
        }
    }

    /// What a mount is on and beneath. It is the same for all mounts of one directory.
    pub fn surroundings(&self, line: &Line<'a>) -> Surroundings<'a> {
        let directory =
            memchr::memrchr(b'/', line.mount_point).map_or(&[][..], |end| &line.mount_point[..end]);
        match self.last.get() {
            Some((parent, last, found))
                if parent == line.parent && last == directory && line.id != line.parent =>
            {
                found
            }
            _ => {
                let found = self.find_surroundings(line);
                self.last.set((line.id != line.parent).then_some((line.parent, directory, found)));
                found
            }
        }
    }

    fn find_surroundings(&self, line: &Line<'a>) -> Surroundings<'a> {
        Surroundings { parent: self.parent(line), within: self.within(line), buried: self.is_buried(line) }
    }

    fn within(&self, line: &Line<'_>) -> Within {
        match self.ancestors(line).position(Line::is_autofs) {
            Some(0) => Within::Autofs,
            Some(_) => Within::Content,
            None => Within::Other,
        }
    }

    fn is_buried(&self, line: &Line<'a>) -> bool {
        self.has_mount_above(line) || self.ancestors(line).any(|ancestor| self.has_mount_above(ancestor))
    }

    fn has_mount_above(&self, line: &Line<'_>) -> bool {
        // What is mounted on the root directory of the process does not hide what is below, as the
        // process starts its walks beneath it.
        let above = |path: &'_ [u8]| path.iter().rposition(|&byte| byte == b'/').filter(|&end| end > 0);
        let inside = self.parent(line).map_or(0, |parent| parent.mount_point.len());
        let mut path = line.mount_point;
        while let Some(end) = above(path).filter(|&end| end >= inside) {
            path = &path[..end];
            if self.covered.contains(&(line.parent, path)) {
                return true;
            }
        }
        false
    }

    fn parent(&self, line: &Line<'_>) -> Option<&'a Line<'a>> {
        self.mounts.get(&line.parent).copied().filter(|parent| parent.id != line.id)
    }

    /// The mounts that it is on, nearest first. No chain is longer than the list, unless the list is
    /// wrong.
    fn ancestors(&self, line: &Line<'_>) -> impl Iterator<Item = &'a Line<'a>> {
        std::iter::successors(self.parent(line), |line| self.parent(line)).take(self.mounts.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::mountinfo::lines;

    fn facts(text: &str, id: u64) -> (Within, bool, bool) {
        let all: Vec<_> = lines(text.as_bytes()).map(|line| line.expect("valid")).collect();
        let at = all.iter().position(|line| line.id == id).expect("the line is there");
        let tree = Tree::new(&all);
        // Asked for all, as what was found of one is kept for the next.
        let around = all.iter().map(|line| tree.surroundings(line)).nth(at).expect("listed");
        (around.within, around.covers(&all[at]), around.buried)
    }

    const MOUNTS: &str = "\
1 0 8:1 / / rw - ext4 d rw
2 1 0:20 / /a rw - autofs m rw
3 2 0:21 / /a rw - tmpfs t rw
4 3 0:22 / /a/b rw - autofs m rw
5 1 0:23 / /x/y rw - autofs m rw
6 1 0:24 / /x rw - tmpfs t rw
7 5 0:25 / /x/y rw - tmpfs t rw
8 7 0:26 / /x/y/z rw - autofs m rw
9 1 0:27 / /ab rw - autofs m rw
10 1 0:28 / / rw - tmpfs t rw
11 2 0:29 / /a/k rw - autofs m rw
";

    #[test]
    fn the_surroundings_of_a_mount_are_found() {
        assert_eq!(facts(MOUNTS, 2), (Within::Other, false, false));
        assert_eq!(facts(MOUNTS, 3), (Within::Autofs, true, false));
        assert_eq!(facts(MOUNTS, 4), (Within::Content, false, false));
        assert_eq!(facts(MOUNTS, 9), (Within::Other, false, false));
    }

    #[test]
    fn what_a_later_mount_hides_is_buried() {
        assert!(facts(MOUNTS, 5).2, "/x covers /x/y");
        assert!(facts(MOUNTS, 8).2, "it is on a mount that is buried");
        assert!(facts(MOUNTS, 11).2, "/a is covered at its root");
    }

    #[test]
    fn a_circle_of_parents_ends() {
        assert_eq!(facts("1 2 0:1 / /a rw - x y z\n2 1 0:2 / /a/b rw - x y z\n", 1).0, Within::Other);
    }
}
