//! The autofs mounts as the paths of a process lead to them.

use std::collections::HashMap;

use super::tree::Tree;
use crate::doc::report::Request;
use crate::model::Device;
use crate::proc::mountinfo::{Line, lines, unescape};

/// The autofs mounts that paths of a process lead to.
pub(super) struct Sight {
    /// By mount point; of several at one place the topmost.
    mounts: HashMap<Vec<u8>, Device>,
}

impl Sight {
    /// From a mountinfo file.
    pub fn read(mountinfo: &[u8]) -> Self {
        let all: Vec<Line<'_>> = lines(mountinfo).flatten().collect();
        if !all.iter().any(Line::is_autofs) {
            return Self { mounts: HashMap::new() };
        }
        let tree = Tree::new(&all);
        let reachable = all.iter().filter(|line| line.is_autofs() && !tree.surroundings(line).buried);
        let seen = |line: &Line<'_>| Some((unescape(line.mount_point).into_owned(), line.device()?));
        // What is mounted later at the same place stands later, and takes its place here too.
        Self { mounts: reachable.filter_map(seen).collect() }
    }

    /// The superblocks that they show.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        self.mounts.values().copied()
    }

    /// Whether one of them shows this superblock.
    pub fn shows(&self, device: Device) -> bool {
        self.devices().any(|shown| shown == device)
    }

    /// The superblock of the innermost autofs mount that a path leads to or through.
    pub fn device_at(&self, path: &[u8]) -> Option<Device> {
        let ends = (1..path.len()).rev().filter(|&end| path[end] == b'/');
        let ways = std::iter::once(path).chain(ends.map(|end| &path[..end])).chain([&b"/"[..]]);
        ways.into_iter().find_map(|way| self.mounts.get(way).copied())
    }

    /// The path that a request is about.
    pub fn name(&self, request: &Request) -> Option<Vec<u8>> {
        let shown = self.mounts.iter().filter(|(_, device)| **device == request.device);
        let mut path = shown.map(|(mount_point, _)| mount_point).min()?.clone();
        if let Some(name) = &request.name {
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
        }
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(minor: u32) -> Option<Device> {
        Some(Device::anonymous(minor))
    }

    #[test]
    fn the_innermost_mount_on_the_way_is_found() {
        let sight = Sight::read(
            b"1 0 8:1 / / rw - ext4 d rw\n\
              2 1 0:20 / /net rw - autofs m rw\n\
              3 2 0:21 / /net/a\\040b/in rw - autofs m rw\n\
              4 1 0:22 / /top rw - autofs m rw\n\
              5 4 0:23 / /top rw - autofs m rw\n\
              6 1 0:24 / /under/it rw - autofs m rw\n\
              7 1 0:25 / /under rw - tmpfs m rw\n",
        );
        for (path, found) in [
            ("/net", device(20)),
            ("/net/a", device(20)),
            ("/net/a b/in/x", device(21)),
            ("/net/a b/inside", device(20)),
            ("/network", None),
            ("/top/x", device(23)),
            ("/under/it", None),
            ("/", None),
        ] {
            assert_eq!(sight.device_at(path.as_bytes()), found, "{path}");
        }
    }

    #[test]
    fn a_mount_on_the_root_is_on_the_way_of_every_path() {
        let sight = Sight::read(b"1 0 0:20 / / rw - autofs m rw\n");
        assert_eq!((sight.device_at(b"/x/y"), sight.device_at(b"/")), (device(20), device(20)));
    }
}
