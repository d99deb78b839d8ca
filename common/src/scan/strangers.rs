//! Processes that their master cannot see. The kernel tells a master who asks, by an id of the pid namespace of the
//! mount's process group. Who has none there gets ENOENT, and the master is never asked (`autofs_wait` in
//! fs/autofs/waitq.c).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;

use super::holders::Holders;
use super::tables::Tables;
use crate::doc::report::{Process, Stranger, Superblock};
use crate::model::{Pid, State};
use crate::proc::{Proc, ProcessDir};
use crate::threads::{self, Share};

/// Looks for them in the mount namespaces that were looked at. Of a process that may not be looked into nothing is said.
pub(super) fn find(
    proc: &Proc,
    pids: &[Pid],
    reader: Option<Pid>,
    tables: &Tables,
    superblocks: &[Superblock],
    holders: &Holders,
) -> Vec<Stranger> {
    let masters = masters_below(tables, superblocks, holders);
    if masters.is_empty() {
        return Vec::new();
    }
    let others: Vec<Pid> = pids.iter().copied().filter(|pid| Some(*pid) != reader).collect();
    let places = threads::each(&others, Share::Small, |pid| {
        proc.process(*pid).and_then(|dir| Place::of(&dir)).ok().filter(|place| place.is_shown(&masters))
    });
    let mut families = Families::default();
    let placed = others.into_iter().zip(places).filter_map(|(pid, place)| Some((pid, place?)));
    let found = placed.filter_map(|(pid, place)| look(proc, pid, place, &masters, &mut families).ok());
    found.flatten().collect()
}

/// The mount and the pid namespace of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    mounts: u64,
    pids: u64,
}

impl Place {
    fn of(process: &ProcessDir) -> io::Result<Self> {
        Ok(Self { mounts: process.mount_namespace()?, pids: process.pid_namespace()? })
    }

    /// Whether what one of the masters serves is to be seen there.
    fn is_shown(self, masters: &[Master<'_>]) -> bool {
        masters.iter().any(|master| master.shown_in.contains(&self.mounts))
    }
}

/// A master in a pid namespace below that of the reader.
struct Master<'a> {
    process: &'a Process,
    /// The mount namespaces that show what it serves.
    shown_in: HashSet<u64>,
}

/// What the reader sees, it sees in its own pid namespace; a master in that one sees all of it too. Where the process
/// group comes from a namespace above the master's own, it is not known from which, so nothing is said.
fn masters_below<'a>(tables: &Tables, superblocks: &[Superblock], holders: &'a Holders) -> Vec<Master<'a>> {
    let served = superblocks.iter().filter(|superblock| superblock.state == State::Connected);
    let served = served.filter_map(|superblock| {
        let master = holders.process(superblock.master?)?;
        (master.ids.len() > 1 && master.own_group().is_some()).then_some((superblock.device, master))
    });
    let masters: HashMap<_, _> = served.collect();
    let mut found: HashMap<Pid, Master<'a>> = HashMap::new();
    if !masters.is_empty() {
        for mount in &tables.mounts {
            let Some(process) = masters.get(&mount.device) else { continue };
            let master = || Master { process, shown_in: HashSet::new() };
            found.entry(process.pid).or_insert_with(master).shown_in.insert(mount.namespace);
        }
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort_unstable_by_key(|master| master.process.pid);
    found
}

/// The masters that a process is a stranger to. Most are to none, which their place alone tells.
fn look(
    proc: &Proc,
    pid: Pid,
    place: Place,
    masters: &[Master<'_>],
    families: &mut Families,
) -> io::Result<Vec<Stranger>> {
    let seen_from = families.of(proc, pid, place)?;
    let is_blind = |master: &&Master<'_>| {
        master.shown_in.contains(&place.mounts) && !seen_from.contains(&master.process.pid_namespace)
    };
    let blind: Vec<_> = masters.iter().filter(is_blind).collect();
    if blind.is_empty() {
        return Ok(Vec::new());
    }
    let dir = proc.process(pid)?;
    let stat = dir.stat()?;
    // Another process may have its id now.
    if Place::of(&dir)? != place || stat.is_dead() || stat.is_kernel_thread() {
        return Ok(Vec::new());
    }
    let stranger = |master: &Master<'_>| Stranger {
        pid,
        start_time: stat.start_time,
        command: stat.command.clone(),
        namespace: place.mounts,
        master: master.process.pid,
    };
    Ok(blind.into_iter().map(stranger).collect())
}

/// The pid namespaces from which the processes of each are seen: itself and those above it, up to that of the reader.
#[derive(Default)]
struct Families(HashMap<u64, Vec<u64>>);

impl Families {
    fn of(&mut self, proc: &Proc, pid: Pid, place: Place) -> io::Result<&[u64]> {
        Ok(match self.0.entry(place.pids) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let found = proc.process(pid)?.pid_namespaces()?;
                // It begins with the namespace of the process itself, which may be another one now.
                if found.first() != Some(&place.pids) {
                    return Err(io::Error::other("another process has this id"));
                }
                vacant.insert(found)
            }
        })
    }
}
