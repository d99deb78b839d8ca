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
    let mut families = Families::default();
    let others = pids.iter().filter(|pid| Some(**pid) != reader);
    let found = others.filter_map(|&pid| look(proc, pid, &masters, &mut families).ok());
    found.flatten().collect()
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

/// The masters that a process is a stranger to.
fn look(proc: &Proc, pid: Pid, masters: &[Master<'_>], families: &mut Families) -> io::Result<Vec<Stranger>> {
    let dir = proc.process(pid)?;
    let namespace = dir.mount_namespace()?;
    if !masters.iter().any(|master| master.shown_in.contains(&namespace)) {
        return Ok(Vec::new());
    }
    let stat = dir.stat()?;
    if stat.is_dead() || stat.is_kernel_thread() {
        return Ok(Vec::new());
    }
    let seen_from = families.of(&dir)?;
    let blind = masters.iter().filter(|master| {
        master.shown_in.contains(&namespace) && !seen_from.contains(&master.process.pid_namespace)
    });
    let stranger = |master: &Master<'_>| Stranger {
        pid,
        start_time: stat.start_time,
        command: stat.command.clone(),
        namespace,
        master: master.process.pid,
    };
    Ok(blind.map(stranger).collect())
}

/// The pid namespaces from which the processes of each are seen: itself and those above it, up to that of the reader.
#[derive(Default)]
struct Families(HashMap<u64, Vec<u64>>);

impl Families {
    fn of(&mut self, process: &ProcessDir) -> io::Result<&[u64]> {
        Ok(match self.0.entry(process.pid_namespace()?) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(process.pid_namespaces()?),
        })
    }
}
