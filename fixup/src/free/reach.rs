//! How superblocks can be got at: first what costs nothing and disturbs nobody.

use std::collections::btree_map::{BTreeMap, Entry};

use autofs_cr_common::cli::count;
use autofs_cr_common::doc::report;
use autofs_cr_common::model::{Device, Pid, State, TextPath};
use autofs_cr_common::target::Target;
use nix::errno::Errno;

use super::World;
use super::hung::Hung;
use super::process::{self, Ability};
use super::way::Way;
use crate::live::Process;
use crate::mounts::Mounts;
use crate::opener::{Opener, Places, Wanted, may_be_pending};
use crate::root::{Kind, kind};

/// Finds a way to each superblock. Nothing is changed by that, but processes may be stopped for an
/// instant; not in a dry run.
pub fn find(world: &World, hung: &[Hung<'_>], dry_run: bool) -> anyhow::Result<Vec<Way>> {
    let mut search = Search { world, hung, dry_run, ways: hung.iter().map(|_| None).collect() };
    search.masters()?;
    search.descriptors();
    search.walks()?;
    search.members();
    Ok(search.ways())
}

struct Search<'a> {
    world: &'a World,
    hung: &'a [Hung<'a>],
    dry_run: bool,
    ways: Vec<Option<Result<Way, Errno>>>,
}

impl Search<'_> {
    /// Those to which there is no way yet.
    fn rest(&self) -> Vec<usize> {
        let is_open = |at: &usize| matches!(self.ways[*at], None | Some(Err(_)));
        (0..self.hung.len()).filter(is_open).collect()
    }

    fn found(&mut self, at: usize, way: Way) {
        self.ways[at] = Some(Ok(way));
    }

    /// Living masters that can make the calls.
    fn masters(&mut self) -> anyhow::Result<()> {
        let mut known: BTreeMap<Pid, Ability> = BTreeMap::new();
        for at in self.rest() {
            let one = self.hung[at];
            let master = match (one.superblock.state, one.master()) {
                (State::Connected, Some(master)) => master,
                (State::Catatonic, _) => {
                    self.found(at, Way::Catatonic);
                    continue;
                }
                _ => continue,
            };
            let ability = match known.entry(master.pid) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(self.ability(master)?),
            };
            match ability {
                Ability::Able => self.found(at, Way::Master),
                Ability::Held(why) => self.found(at, Way::Held(why.clone())),
                Ability::Unable(_) => {}
            }
        }
        Ok(())
    }

    fn ability(&self, master: &report::Process) -> anyhow::Result<Ability> {
        if self.dry_run {
            return Ok(Ability::Able);
        }
        let ability = process::ability(self.world, master.pid, master.start_time)?;
        if let Ability::Unable(why) = &ability {
            let (command, pid) = (&master.command, master.pid);
            self.world.voice.detail(format_args!("master {command} (process {pid}) is of no use now: {why}"));
        }
        Ok(ability)
    }

    /// Descriptors that some process has.
    fn descriptors(&mut self) {
        for at in self.rest() {
            let one = self.hung[at];
            let root = one.descriptors().find_map(|(process, fd)| {
                let process = Process::open(&self.world.proc, process.pid, process.start_time).ok()?;
                let fd = process.descriptor(fd).ok()??;
                (kind(&fd).ok()? == Kind::Autofs(one.superblock.device)).then_some(fd)
            });
            if let Some(root) = root {
                self.found(at, Way::Root(root));
            }
        }
    }

    /// A walk of a child, unless that is known to block.
    fn walks(&mut self) -> anyhow::Result<()> {
        let (blocked, free): (Vec<usize>, Vec<usize>) =
            self.rest().into_iter().partition(|&at| self.hung[at].is_blocked());
        blocked.into_iter().for_each(|at| self.ways[at] = Some(Err(Errno::ETIMEDOUT)));
        let wanted: Vec<Wanted> = free.iter().map(|&at| (at, self.hung[at].superblock.device)).collect();
        let places = Places::List(self.hung.iter().map(Hung::place).collect());
        let opener = Opener::new(places, &self.world.device, self.world.target.as_ref());
        let mut opener = opener.until(self.world.deadline);
        for (at, root) in free.into_iter().zip(opener.open(&wanted)?) {
            self.ways[at] = Some(root.map(Way::Root));
        }
        Ok(())
    }

    /// Living processes of the mount's group, whose walks wait for nobody.
    fn members(&mut self) {
        let mut groups: BTreeMap<Pid, Vec<usize>> = BTreeMap::new();
        for at in self.rest() {
            if let Some(group) = self.hung[at].superblock.pgrp {
                groups.entry(group).or_default().push(at);
            }
        }
        for (group, mut rest) in groups {
            for member in process::members(self.world, group) {
                if rest.is_empty() {
                    break;
                }
                if let Err(error) = self.open_by(&member, group, &rest) {
                    let pid = member.pid();
                    self.world
                        .voice
                        .detail(format_args!("process {pid} of its group is of no use: {error:#}"));
                }
                rest.retain(|&at| !matches!(self.ways[at], Some(Ok(_))));
            }
        }
    }

    /// Has a process open what it can reach.
    fn open_by(&mut self, member: &Process, group: Pid, rest: &[usize]) -> anyhow::Result<()> {
        let mounts = Mounts::read(member.dir())?;
        let mut wanted: Vec<(usize, TextPath, Device)> = Vec::new();
        for &at in rest {
            let device = self.hung[at].superblock.device;
            let seen = mounts.place_of(device, self.hung[at].place());
            let seen = seen.filter(|place| mounts.let_pass(group.as_raw(), place));
            wanted.extend(seen.map(|place| (at, place, device)));
        }
        self.keep_reachable(member, &mut wanted)?;
        if self.dry_run {
            wanted.iter().for_each(|(at, ..)| self.found(*at, Way::Member(member.pid())));
            return Ok(());
        }
        for part in wanted.chunks(process::AT_ONCE) {
            let roots = process::open_mounts(self.world, member, part)?;
            let mounts = count(roots.iter().flatten().count(), "mount");
            self.world.voice.detail(format_args!("{mounts} opened by process {} of the group", member.pid()));
            for ((at, ..), root) in part.iter().zip(roots) {
                self.ways[*at] = Some(root.map(Way::Root));
            }
        }
        Ok(())
    }

    /// Only what can be walked to without waiting for anything on the way.
    fn keep_reachable(
        &self,
        process: &Process,
        wanted: &mut Vec<(usize, TextPath, Device)>,
    ) -> anyhow::Result<()> {
        let target = Target::open(process.pid())?;
        process.check_alive()?;
        let places = Places::List(wanted.iter().map(|(_, place, _)| place).collect());
        let mut opener = Opener::new(places, &self.world.device, Some(&target)).until(self.world.deadline);
        let reached = opener.reaches(&(0..wanted.len()).collect::<Vec<_>>())?;
        let mut reached = reached.into_iter();
        wanted.retain(|_| reached.next() == Some(true));
        Ok(())
    }

    fn ways(self) -> Vec<Way> {
        let hung = self.hung.iter();
        hung.zip(self.ways)
            .map(|(one, way)| match way {
                Some(Ok(way)) => way,
                Some(Err(errno)) if may_be_pending(errno) && one.is_blocked_by_first() => Way::Kill,
                Some(Err(errno)) => Way::None(errno),
                None => Way::None(Errno::ENOENT),
            })
            .collect()
    }
}
