//! The state of each superblock, and why.

use std::collections::HashSet;

use super::census::Census;
use super::holders::Holders;
use super::processes;
use super::tables::{Instance, Tables};
use crate::doc::report::{Process, Superblock};
use crate::model::{Device, KernelPipe, Pid, State};

/// Says of each superblock in which state it is; adds to `hidden` what could not be seen.
pub(super) fn judge(
    census: &Census<'_>,
    tables: &Tables,
    holders: &Holders,
    hidden: &mut Vec<String>,
) -> Vec<Superblock> {
    let mut judge = Judge { census, holders, groups: None, last: None };
    let judged = tables.superblocks.iter().map(|(&device, found)| judge.superblock(device, found));
    let judged = judged.collect();
    hidden.extend(judge.hidden(tables));
    judged
}

/// A state, why, and who serves.
#[derive(Clone)]
struct Verdict {
    state: State,
    reason: String,
    master: Option<Pid>,
}

impl Verdict {
    fn unknown(reason: &str) -> Self {
        Self { state: State::Unknown, reason: format!("unknown: {reason}"), master: None }
    }
}

struct Judge<'a> {
    census: &'a Census<'a>,
    holders: &'a Holders,
    groups: Option<Groups>,
    /// What was said last, and of what: most often the next superblock has the same pipe.
    last: Option<(Case, Verdict)>,
}

/// All that a verdict depends on: pipe, process group and depth.
type Case = (KernelPipe, Option<Pid>, usize);

/// The process groups that have a living member.
#[derive(Default)]
struct Groups {
    alive: HashSet<i32>,
    /// Those with a member whose descriptors could not be seen.
    unseen: HashSet<i32>,
    /// Some processes did not even tell their group.
    incomplete: bool,
}

impl Judge<'_> {
    fn superblock(&mut self, device: Device, instance: &Instance) -> Superblock {
        let found = &instance.options;
        let group = Pid::new(found.pgrp);
        let case = (found.pipe, group, instance.depth);
        let verdict = match &self.last {
            Some((last, verdict)) if *last == case => verdict.clone(),
            _ => {
                let verdict = self.verdict(case);
                self.last.insert((case, verdict)).1.clone()
            }
        };
        Superblock {
            device,
            options: found.options.clone(),
            state: verdict.state,
            reason: verdict.reason,
            pipe: match found.pipe {
                KernelPipe::Inode(inode) => Some(inode),
                KernelPipe::None | KernelPipe::NotShown => None,
            },
            pgrp: group,
            fd: (found.fd >= 0).then_some(found.fd),
            master: verdict.master,
        }
    }

    fn verdict(&mut self, (pipe, group, depth): Case) -> Verdict {
        let pipe = match pipe {
            KernelPipe::None => {
                let reason = "catatonic: the kernel has no pipe to a master".to_owned();
                return Verdict { state: State::Catatonic, reason, master: None };
            }
            KernelPipe::NotShown => {
                return Verdict::unknown(
                    "this kernel does not tell which pipe it is (pipe_ino is missing in mountinfo: it needs Linux 4.14 and CONFIG_CHECKPOINT_RESTORE)",
                );
            }
            KernelPipe::Inode(pipe) => pipe,
        };
        let Some(group) = group else { return self.of_invisible_group(pipe) };
        if let Some(master) = master_in(group, self.holders.readers_of(pipe)) {
            return served(State::Connected, master, pipe, "");
        }
        self.not_connected(pipe, group, depth)
    }

    /// The mount's process group has no id here: it lives in a pid namespace that this one cannot see.
    fn of_invisible_group(&self, pipe: u64) -> Verdict {
        let who = match self.holders.readers_of(pipe).next() {
            Some(holder) => format!("{}[{}] reads pipe {pipe}, but ", holder.command, holder.pid),
            None => String::new(),
        };
        Verdict::unknown(&format!(
            "{who}its process group is not visible from this pid namespace (look from the one of its master)"
        ))
    }

    fn not_connected(&mut self, pipe: u64, group: Pid, depth: usize) -> Verdict {
        let holders = self.holders;
        let unseen = holders.unseen_from(depth);
        let groups = self.groups();
        let is_alive = groups.alive.contains(&group.as_raw());
        let may_hold = groups.incomplete || groups.unseen.contains(&group.as_raw());
        match holders.readers_of(pipe).next() {
            Some(holder) if !may_hold => {
                let detail = format!(", and is not in its process group {group}");
                served(State::Delegated, holder, pipe, &detail)
            }
            Some(holder) => Verdict::unknown(&format!(
                "{}[{}] reads pipe {pipe}, but the descriptors of its process group {group} are not visible",
                holder.command, holder.pid
            )),
            None if unseen > 0 || groups.incomplete => Verdict::unknown(&format!(
                "no visible process holds the read end of pipe {pipe}, but the descriptors of {} are not visible",
                processes(unseen)
            )),
            None => {
                let fate = if is_alive { "lives" } else { "is gone" };
                let reason = format!(
                    "orphaned: no process holds the read end of pipe {pipe}; its process group {group} {fate}"
                );
                Verdict { state: State::Orphaned, reason, master: None }
            }
        }
    }

    /// Read only when something is not connected: it needs a file of every process.
    fn groups(&mut self) -> &Groups {
        let (census, holders) = (self.census, self.holders);
        self.groups.get_or_insert_with(|| Groups::new(census, holders))
    }

    fn hidden(&self, tables: &Tables) -> Vec<String> {
        let mut hidden = Vec::new();
        if tables.superblocks.values().any(|found| found.options.pipe == KernelPipe::NotShown) {
            hidden.push("the pipes of the mounts: this kernel shows no pipe_ino in mountinfo".to_owned());
        }
        let unseen = self.holders.unseen.len();
        if unseen > 0 {
            hidden.push(format!("the descriptors of {}", processes(unseen)));
        }
        if self.groups.as_ref().is_some_and(|groups| groups.incomplete) {
            hidden.push(format!(
                "some processes: {} does not show all of them",
                self.census.proc.path().display()
            ));
        }
        hidden
    }
}

impl Groups {
    fn new(census: &Census<'_>, holders: &Holders) -> Self {
        // Process 1 always lives; with the mount option hidepid it can be invisible.
        let mut groups =
            Self { incomplete: !census.pids.iter().any(|pid| pid.as_raw() == 1), ..Self::default() };
        for entry in census.entries() {
            groups.incomplete |= entry.is_hidden;
            let Some(group) = entry.group else { continue };
            groups.alive.insert(group);
            if holders.unseen.binary_search_by_key(&entry.pid, |unseen| unseen.pid).is_ok() {
                groups.unseen.insert(group);
            }
        }
        groups
    }
}

fn served(state: State, master: &Process, pipe: u64, detail: &str) -> Verdict {
    let reason = format!("{state}: {}[{}] reads pipe {pipe}{detail}", master.command, master.pid);
    Verdict { state, reason, master: Some(master.pid) }
}

/// The leader of the group if it is among the readers, else the one with the lowest id that is in it.
fn master_in<'a>(group: Pid, readers: impl Iterator<Item = &'a Process>) -> Option<&'a Process> {
    let mut members = readers.filter(|reader| reader.group_ids.first() == Some(&u32::from(group)));
    let first = members.next()?;
    if first.pid == group {
        return Some(first);
    }
    Some(members.find(|member| member.pid == group).unwrap_or(first))
}
