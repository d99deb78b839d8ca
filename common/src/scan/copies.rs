//! Copies of a master's mount that do not work as the mount itself does.
//!
//! The kernel sends requests from every mount of a superblock. The master answers them by mounting in its own mount
//! namespace, on the mount that it made; that appears on another mount of the superblock only if it is propagated there
//! (mount_namespaces(7)). Which mount the master made is in no file: here it is the first of the superblock, in the order
//! of mountinfo, in the master's namespace that shows all of it. The order is that in which they were made, but in a namespace
//! that is a copy of another one.
//!
//! Nothing is said where not all is seen: of a superblock whose master is not, of one whose master has another root
//! directory than its namespace, and of a slave of a peer group that no mount is seen of.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::holders::Holders;
use super::tables::Tables;
use crate::doc::report::{CopyFault, Mount, Superblock};
use crate::masters::MasterKind;
use crate::model::{Device, Pid, Propagation, State};
use crate::proc::mountinfo::lines;
use crate::proc::{Proc, ProcessDir};

/// A fault of a mount in another namespace than its master's, by mount id. Two files were read at two times to find it.
pub(super) type Fault = (u64, CopyFault);

/// Says of each mount whether it is a copy that fails; returns those to be confirmed by a second look.
pub(super) fn mark(
    proc: &Proc,
    tables: &mut Tables,
    superblocks: &[Superblock],
    holders: &Holders,
) -> Vec<Fault> {
    let homes = Homes::find(proc, superblocks, holders);
    if homes.are_all_that_is_shown(tables, superblocks) {
        return Vec::new();
    }
    let faults = Sight::take(proc, tables, homes).faults(tables, superblocks);
    let mut elsewhere = Vec::new();
    for (at, fault, is_elsewhere) in faults {
        let mount = &mut tables.mounts[at];
        mount.copy = Some(fault);
        elsewhere.extend(is_elsewhere.then_some((mount.id, fault)));
    }
    elsewhere
}

/// Where masters mount.
struct Homes {
    /// The mount namespaces, by process; `None` for one that is not seen.
    namespaces: BTreeMap<Pid, Option<u64>>,
    /// The processes of groups whose mounts are not served that are process 1 of their pid namespace.
    inits: BTreeSet<Pid>,
}

#[derive(Clone, Copy)]
struct Home {
    process: Pid,
    namespace: u64,
}

impl Homes {
    fn find(proc: &Proc, superblocks: &[Superblock], holders: &Holders) -> Self {
        let unserved = superblocks.iter().filter(|superblock| is_unserved(superblock));
        let groups: BTreeSet<Pid> = unserved.filter_map(|superblock| superblock.pgrp).collect();
        let inits = groups.into_iter().filter(|group| is_init(proc, *group)).collect();
        let mut homes = Self { namespaces: BTreeMap::new(), inits };
        for superblock in superblocks {
            let Some(process) = homes.process(superblock) else { continue };
            let namespace = || namespace(&proc.process(process).ok()?, process, holders);
            homes.namespaces.entry(process).or_insert_with(namespace);
        }
        homes
    }

    /// The process whose mounts would appear on the superblock's own mount. Of one that is not served it is systemd as
    /// process 1 of a machine or a container, if its group is the one that did: that number is never given to another
    /// process there.
    fn process(&self, superblock: &Superblock) -> Option<Pid> {
        match superblock.state {
            State::Connected => superblock.master,
            _ if is_unserved(superblock) => superblock.pgrp.filter(|group| self.inits.contains(group)),
            _ => None,
        }
    }

    fn of(&self, superblock: &Superblock) -> Option<Home> {
        let process = self.process(superblock)?;
        let namespace = (*self.namespaces.get(&process)?)?;
        Some(Home { process, namespace })
    }

    /// Each superblock has one mount, in the only namespace that was looked at, which is that of all masters: there are no
    /// copies to be seen.
    fn are_all_that_is_shown(&self, tables: &Tables, superblocks: &[Superblock]) -> bool {
        let [only] = tables.namespaces.as_slice() else { return false };
        tables.mounts.len() == superblocks.len()
            && self.namespaces.values().flatten().all(|home| *home == only.id)
    }
}

fn is_unserved(superblock: &Superblock) -> bool {
    matches!(superblock.state, State::Orphaned | State::Catatonic)
}

fn is_init(proc: &Proc, pid: Pid) -> bool {
    let ids = proc.process(pid).and_then(|process| process.status()).map(|status| status.ids);
    ids.is_ok_and(|ids| ids.last() == Some(&1))
}

fn namespace(dir: &ProcessDir, pid: Pid, holders: &Holders) -> Option<u64> {
    let namespace = dir.mount_namespace().ok()?;
    let stat = dir.stat().ok()?;
    // The number may be that of another process by now.
    let is_it = match holders.process(pid) {
        Some(known) => stat.start_time == known.start_time,
        None => MasterKind::of_command(&stat.command) == MasterKind::Systemd,
    };
    is_it.then_some(namespace)
}

/// A mount of a superblock in its master's namespace.
#[derive(Clone, Copy)]
struct AtHome {
    id: u64,
    is_whole: bool,
    propagation: Propagation,
}

/// What is known of the mounts and of their peer groups.
struct Sight {
    homes: Homes,
    /// In the order of mountinfo; `None` for a namespace of which not all is seen.
    at_home: HashMap<u64, Option<HashMap<Device, Vec<AtHome>>>>,
    /// Each peer group that a mount was seen of, and the one that it receives from.
    groups: HashMap<u32, Option<u32>>,
}

impl Sight {
    fn take(proc: &Proc, tables: &Tables, homes: Homes) -> Self {
        let mut sight = Self { at_home: HashMap::new(), groups: HashMap::new(), homes };
        let known =
            sight.homes.namespaces.iter().filter_map(|(process, namespace)| Some((*process, (*namespace)?)));
        for (process, namespace) in known {
            sight.at_home.entry(namespace).or_insert_with(|| {
                let is_seen = tables.is_whole(namespace);
                if is_seen { Some(HashMap::new()) } else { read(proc, Home { process, namespace }) }
            });
        }
        for mount in &tables.mounts {
            if tables.is_whole(mount.namespace) {
                if let Some(Some(mounts)) = sight.at_home.get_mut(&mount.namespace) {
                    mounts.entry(mount.device).or_default().push(AtHome::of(mount));
                }
            }
            note(&mut sight.groups, mount.propagation);
        }
        for mounts in sight.at_home.values().flatten().flat_map(HashMap::values).flatten() {
            note(&mut sight.groups, mounts.propagation);
        }
        sight
    }

    /// By index of the mount; whether it is in another namespace than its master's.
    fn faults(&self, tables: &Tables, superblocks: &[Superblock]) -> Vec<(usize, CopyFault, bool)> {
        let fault = |mount: &Mount| {
            let at = superblocks.binary_search_by_key(&mount.device, |superblock| superblock.device).ok()?;
            let home = self.homes.of(&superblocks[at])?;
            let is_connected = superblocks[at].state == State::Connected;
            let fault = self.fault(mount, home.namespace, is_connected)?;
            Some((fault, mount.namespace != home.namespace))
        };
        let all = tables.mounts.iter().enumerate();
        all.filter_map(|(at, mount)| fault(mount).map(|(fault, elsewhere)| (at, fault, elsewhere))).collect()
    }

    fn fault(&self, mount: &Mount, home: u64, is_connected: bool) -> Option<CopyFault> {
        let shown = self.at_home.get(&home)?.as_ref()?.get(&mount.device);
        let Some(shown) = shown.filter(|shown| !shown.is_empty()) else { return Some(CopyFault::Stale) };
        let original = shown.iter().find(|mount| mount.is_whole)?;
        let is_severed = is_connected
            && mount.id != original.id
            && receives(&self.groups, mount.propagation, original.propagation) == Some(false);
        is_severed.then_some(CopyFault::Severed)
    }
}

impl AtHome {
    fn of(mount: &Mount) -> Self {
        Self { id: mount.id, is_whole: mount.root.as_bytes() == b"/", propagation: mount.propagation }
    }
}

/// The autofs mounts of a namespace that was not asked for, if the process has the root of the namespace.
fn read(proc: &Proc, home: Home) -> Option<HashMap<Device, Vec<AtHome>>> {
    let dir = proc.process(home.process).ok()?;
    if dir.root().ok()? != b"/" {
        return None;
    }
    let mountinfo = dir.mountinfo().ok()?;
    if dir.mount_namespace().ok()? != home.namespace {
        return None;
    }
    let mut mounts: HashMap<Device, Vec<AtHome>> = HashMap::new();
    for line in lines(&mountinfo) {
        let line = line.ok()?;
        if line.is_autofs() {
            let (is_whole, propagation) = (line.root == b"/", line.propagation());
            mounts.entry(line.device()?).or_default().push(AtHome { id: line.id, is_whole, propagation });
        }
    }
    Some(mounts)
}

fn note(groups: &mut HashMap<u32, Option<u32>>, propagation: Propagation) {
    if let Some(group) = propagation.shared {
        groups.insert(group, propagation.slave_of);
    }
}

/// Whether what is mounted on `original` appears on `copy`; `None` if the way from one to the other is not seen.
fn receives(groups: &HashMap<u32, Option<u32>>, copy: Propagation, original: Propagation) -> Option<bool> {
    let Some(source) = original.shared else { return Some(false) };
    if copy.shared == Some(source) {
        return Some(true);
    }
    let mut above = copy.slave_of;
    // A cycle cannot be, but namespaces change while they are read.
    for _ in 0..=groups.len() {
        match above {
            None => return Some(false),
            Some(group) if group == source => return Some(true),
            Some(group) => above = *groups.get(&group)?,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_receives_from_its_peers_and_from_the_groups_above() {
        let of = |text: &str| text.parse::<Propagation>().expect("a propagation");
        let mut groups = HashMap::new();
        for seen in ["shared:1", "shared:2,slave:1", "shared:3,slave:2", "shared:4", "shared:6,slave:5"] {
            note(&mut groups, of(seen));
        }
        for (copy, original, expected) in [
            ("shared:1", "shared:1", Some(true)),
            ("slave:1", "shared:1", Some(true)),
            ("slave:3", "shared:1", Some(true)),
            ("shared:9,slave:3", "shared:1", Some(true)),
            ("slave:1", "shared:2,slave:1", Some(false)),
            ("shared:1", "shared:2,slave:1", Some(false)),
            ("private", "shared:1", Some(false)),
            ("shared:4", "shared:1", Some(false)),
            ("slave:4", "shared:1", Some(false)),
            ("slave:1", "slave:1", Some(false)),
            ("private", "private", Some(false)),
            // What group 5 receives from is not seen, and it may be group 1.
            ("slave:5", "shared:1", None),
            ("slave:6", "shared:1", None),
            ("slave:5", "shared:5", Some(true)),
        ] {
            assert_eq!(receives(&groups, of(copy), of(original)), expected, "{copy} of {original}");
        }
    }

    #[test]
    fn a_circle_of_groups_ends() {
        let groups = HashMap::from([(1, Some(2)), (2, Some(1))]);
        let of = |text: &str| text.parse::<Propagation>().expect("a propagation");
        assert_eq!(receives(&groups, of("slave:1"), of("shared:3")), None);
    }
}
