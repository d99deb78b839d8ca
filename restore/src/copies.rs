//! Mounts of wanted superblocks in every mount namespace, and which of them go by themselves when those in the
//! target's are unmounted.
//!
//! The kernel hands an unmount on: from the mount that the unmounted one was on, to the others of its peer group,
//! to the slaves of these, and to their slaves. There it takes away what is mounted at the same directory of the
//! same file system (mount_namespaces(7); `propagate_umount` in fs/pnode.c).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use autofs_cr_common::model::{Device, Propagation, TextPath};
use autofs_cr_common::proc::mountinfo;

use crate::plan::{Elsewhere, Numbers, OnIt, Seen, Who};

/// Looks at the mounts of one namespace after the other.
pub struct Look<'a> {
    wanted: &'a HashSet<Device>,
    taken: HashMap<Device, Seen>,
    /// The peer group whose slaves are in another one, by that one.
    masters: HashMap<u32, u32>,
    /// Where the target's mounts are, each with the peer group from which an unmount is handed on.
    sources: HashSet<(Device, Spot, u32)>,
    found: Vec<Found>,
}

/// A directory of a file system: where mounts of a peer group have the same things mounted on them.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Spot {
    device: Device,
    path: PathBuf,
}

/// A mount of a wanted superblock.
struct Found {
    device: Device,
    spot: Option<Spot>,
    /// The propagation of the mount that it is on.
    outer: Propagation,
    seen: Seen,
    on_it: Vec<OnIt>,
}

impl<'a> Look<'a> {
    /// Looks for these superblocks.
    pub fn new(wanted: &'a HashSet<Device>) -> Self {
        let (taken, masters) = (HashMap::new(), HashMap::new());
        Self { wanted, taken, masters, sources: HashSet::new(), found: Vec::new() }
    }

    /// Looks at the mountinfo of the target.
    pub fn at_target(&mut self, text: &[u8], who: impl FnOnce() -> Who) {
        for found in self.read(text, 0, who) {
            if let (Some(spot), Some(group)) = (found.spot, found.outer.shared) {
                self.sources.insert((found.device, spot, group));
            }
        }
    }

    /// Looks at the mountinfo of another namespace.
    pub fn at_other(&mut self, text: &[u8], who: impl FnOnce() -> Who) {
        let found = self.read(text, self.found.len(), who);
        self.found.extend(found);
    }

    /// What is known when every namespace was looked at.
    pub fn end(mut self) -> Numbers {
        let found = std::mem::take(&mut self.found);
        let copies = found.into_iter().map(|found| {
            let is_reached = self.is_reached(found.device, found.spot, found.outer);
            Elsewhere { device: found.device, seen: found.seen, is_reached, on_it: found.on_it }
        });
        Numbers { copies: copies.collect(), taken: self.taken }
    }

    /// Whether an unmount in the target's namespace is handed on to this place.
    fn is_reached(&self, device: Device, spot: Option<Spot>, outer: Propagation) -> bool {
        let Some(spot) = spot else { return false };
        let above = std::iter::successors(outer.slave_of, |group| self.masters.get(group).copied());
        // A cycle cannot be, but namespaces change while they are read.
        let mut groups = outer.shared.into_iter().chain(above.take(self.masters.len() + 1));
        let mut source = (device, spot, 0);
        groups.any(|group| {
            source.2 = group;
            self.sources.contains(&source)
        })
    }

    /// The autofs mounts of wanted superblocks in a namespace; the first gets the number `first`.
    fn read(&mut self, text: &[u8], first: usize, who: impl FnOnce() -> Who) -> Vec<Found> {
        let lines: Vec<_> = mountinfo::lines(text).flatten().collect();
        lines.iter().for_each(|line| self.note_masters(line));
        let found = lines.iter().filter_map(|line| Some((line, line.device()?)));
        let found: Vec<_> = found.filter(|(_, device)| self.wanted.contains(device)).collect();
        if found.is_empty() {
            return Vec::new();
        }
        let who = Rc::new(who());
        let seen = |line: &mountinfo::Line<'_>| {
            let place = TextPath::from_bytes(mountinfo::unescape(line.mount_point).into_owned());
            Seen { place, who: Rc::clone(&who) }
        };
        for (line, device) in &found {
            self.taken.entry(*device).or_insert_with(|| seen(line));
        }
        let found: Vec<_> = found.into_iter().filter(|(line, _)| line.is_autofs()).collect();
        let by_id: HashMap<u64, &mountinfo::Line<'_>> = lines.iter().map(|line| (line.id, line)).collect();
        let numbers: HashMap<u64, usize> = found.iter().map(|(line, _)| line.id).zip(first..).collect();
        let mut on_it = on_them(&lines, &by_id, &numbers);
        let found = found.into_iter().map(|(line, device)| {
            let outer = by_id.get(&line.parent);
            Found {
                device,
                spot: outer.and_then(|outer| Spot::of(line, outer)),
                outer: outer.map(|outer| outer.propagation()).unwrap_or_default(),
                seen: seen(line),
                on_it: on_it.remove(&line.id).unwrap_or_default(),
            }
        });
        found.collect()
    }

    /// Notes of which groups the group of a mount has its mounts and unmounts.
    fn note_masters(&mut self, line: &mountinfo::Line<'_>) {
        let Propagation { shared, slave_of: Some(master), .. } = line.propagation() else { return };
        if let Some(group) = shared {
            self.masters.insert(group, master);
        }
        // The next group above that has a mount in this namespace: those between may be in none that is seen.
        let above = line.optional.split(|&byte| byte == b' ').find_map(|field| {
            std::str::from_utf8(field.strip_prefix(b"propagate_from:")?).ok()?.parse().ok()
        });
        if let Some(above) = above {
            self.masters.entry(master).or_insert(above);
        }
    }
}

/// What is mounted on which mount, of those with numbers.
fn on_them(
    lines: &[mountinfo::Line<'_>],
    by_id: &HashMap<u64, &mountinfo::Line<'_>>,
    numbers: &HashMap<u64, usize>,
) -> HashMap<u64, Vec<OnIt>> {
    let mut on_it: HashMap<u64, Vec<OnIt>> = HashMap::new();
    for line in lines.iter().filter(|line| line.id != line.parent && numbers.contains_key(&line.parent)) {
        let covers = by_id.get(&line.parent).is_some_and(|outer| outer.mount_point == line.mount_point);
        let what = match numbers.get(&line.id) {
            Some(&number) => OnIt::Copy(number),
            None if covers => OnIt::Over,
            None => OnIt::Inside,
        };
        on_it.entry(line.parent).or_default().push(what);
    }
    on_it
}

impl Spot {
    /// Where a mount is on the mount that it is on.
    fn of(line: &mountinfo::Line<'_>, outer: &mountinfo::Line<'_>) -> Option<Self> {
        let path = |text| TextPath::from_bytes(mountinfo::unescape(text).into_owned());
        let (place, outer_place, root) = (path(line.mount_point), path(outer.mount_point), path(outer.root));
        let below = Path::strip_prefix(&place, &outer_place).ok()?;
        Some(Self { device: outer.device()?, path: root.join(below) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "\
10 1 0:9 / / rw shared:1 - overlay o rw
20 10 0:50 / /data rw shared:2 - autofs systemd-1 rw
30 10 0:51 / /etc/more rw shared:3 - autofs systemd-1 rw
";

    fn nobody() -> Who {
        Who { process: "init[1]".to_owned(), unit: None }
    }

    /// Of each copy in other namespaces, whether it is reached, and what is on it.
    fn look(others: &[&str]) -> Vec<(bool, Vec<OnIt>)> {
        let wanted = [50, 51].map(Device::anonymous).into();
        let mut look = Look::new(&wanted);
        look.at_target(TARGET.as_bytes(), nobody);
        for other in others {
            look.at_other(other.as_bytes(), nobody);
        }
        look.end().copies.into_iter().map(|copy| (copy.is_reached, copy.on_it)).collect()
    }

    /// A namespace whose root is mounted with this propagation.
    fn with_root(propagation: &str) -> String {
        format!(
            "110 1 0:9 / / rw {propagation} - overlay o rw\n120 110 0:50 / /data rw - autofs systemd-1 rw\n"
        )
    }

    fn is_reached(others: &[&str]) -> bool {
        look(others).last().expect("a copy").0
    }

    #[test]
    fn an_unmount_reaches_peers_and_slaves_and_nothing_else() {
        for reached in ["shared:1", "master:1", "shared:7 master:1"] {
            assert!(is_reached(&[&with_root(reached)]), "{reached}");
        }
        for apart in ["", "shared:7", "master:7", "shared:7 master:8", "unbindable", "shared:2"] {
            assert!(!is_reached(&[&with_root(apart)]), "{apart}");
        }
    }

    #[test]
    fn it_reaches_slaves_of_slaves_whichever_is_seen_first() {
        let (between, below) = (with_root("shared:7 master:1"), with_root("shared:8 master:7"));
        assert!(is_reached(&[&between, &below]));
        assert!(is_reached(&[&below, &between]));
        assert!(!is_reached(&[&below]), "nobody shows what group 7 is a slave of");
        assert!(is_reached(&[&with_root("master:7 propagate_from:1")]));
        assert!(!is_reached(&[&with_root("master:7 propagate_from:2")]));
        // Not as the kernel has it, but it must come to an end.
        assert!(!is_reached(&[&with_root("shared:7 master:8"), &with_root("shared:8 master:7")]));
    }

    #[test]
    fn it_reaches_the_same_directory_only() {
        let bound = "\
110 1 0:9 / / rw master:1 - overlay o rw
111 110 0:9 /etc /etc ro master:1 - overlay o rw
120 110 0:50 / /elsewhere rw - autofs systemd-1 rw
121 111 0:51 / /etc/more rw - autofs systemd-1 rw
122 110 0:51 / /data rw - autofs systemd-1 rw
123 99 0:50 / /data rw - autofs systemd-1 rw
";
        let reached: Vec<_> = look(&[bound]).into_iter().map(|(is_reached, _)| is_reached).collect();
        // What is found at the place of another superblock was not mounted together with that.
        assert_eq!(reached, [false, true, false, false]);
    }

    #[test]
    fn what_is_mounted_on_a_copy_is_told() {
        let covered = "\
130 120 0:51 / /data/inner rw - autofs systemd-1 rw
140 120 0:60 / /data/other rw - tmpfs t rw
150 120 0:61 / /data rw - tmpfs t rw
160 140 0:62 / /data/other/more rw - tmpfs t rw
";
        let with_content = format!("{}{covered}", with_root("master:1"));
        let copies = look(&[&with_root("master:1"), &with_content]);
        assert_eq!(copies[0], (true, vec![]));
        assert_eq!(copies[1], (true, vec![OnIt::Copy(2), OnIt::Inside, OnIt::Over]));
        assert_eq!(copies[2], (false, vec![]));
    }
}
