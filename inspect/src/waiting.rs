//! What is said of those who wait.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Component;

use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::{Halt, Mount, Process, Request, RequestKind, Waiter, WaiterRole};
use autofs_cr_common::model::{Device, Pid, State, TextPath};

use crate::span::Span;
use crate::users::Users;

/// How the wait of a thread can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook<'a> {
    /// Nobody reads requests any more.
    MasterGone,
    /// This process has the request, and has not answered.
    Read(&'a Process),
    /// This process has not read the request yet.
    Unread(&'a Process),
    /// It is not known who will answer.
    Unclear,
}

impl<'a> Outlook<'a> {
    /// The words for them, which programs read.
    pub const ALL: [&'static str; 4] = ["master_gone", "read", "unread", "unclear"];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        let [master_gone, read, unread, unclear] = Self::ALL;
        match self {
            Self::MasterGone => master_gone,
            Self::Read(_) => read,
            Self::Unread(_) => unread,
            Self::Unclear => unclear,
        }
    }

    /// The process that will answer, if any does.
    pub fn master(self) -> Option<&'a Process> {
        match self {
            Self::Read(master) | Self::Unread(master) => Some(master),
            Self::MasterGone | Self::Unclear => None,
        }
    }
}

/// A waiter, on which mount it waits, and what comes of it.
pub struct Waiting<'a> {
    pub waiter: &'a Waiter,
    pub mount: Option<&'a Mount>,
    pub outlook: Outlook<'a>,
    /// How long it has waited, if the kernel tells.
    pub span: Option<Span>,
    user: String,
}

/// All waiters of a report, in its order. `now` is the time in seconds since 1970.
pub fn all<'a>(report: &'a Report, users: &Users, now: u64) -> Vec<Waiting<'a>> {
    if report.waiters.is_empty() {
        return Vec::new();
    }
    let mut mounts: HashMap<Device, Vec<&Mount>> = HashMap::new();
    for mount in &report.mounts {
        mounts.entry(mount.device).or_default().push(mount);
    }
    let waiting = |waiter| {
        let mount = mount_of(waiter, &mounts);
        let outlook = outlook(report, waiter, mount);
        let span = waiter.since.map(|since| Span::between(since, now));
        Waiting { waiter, mount, outlook, span, user: users.name(waiter.uid) }
    };
    report.waiters.iter().map(waiting).collect()
}

/// The processes that wait on a superblock, each once, by pid.
pub fn processes<'a, 'b>(waits: &'b [&'b Waiting<'a>]) -> Vec<&'b Waiting<'a>> {
    let mut processes = waits.to_vec();
    processes.dedup_by_key(|waiting| waiting.waiter.pid);
    processes
}

/// `2 processes wait: ls[123], cat[124]`.
pub fn list(waits: &[&Waiting<'_>]) -> String {
    let processes = processes(waits);
    let names: Vec<String> = processes.iter().map(|waiting| waiting.name()).collect();
    let count =
        if names.len() == 1 { "1 process waits".into() } else { format!("{} processes wait", names.len()) };
    format!("{count}: {}", names.join(", "))
}

/// The longest of some waits, as far as known.
pub fn longest<'a, 'b: 'a>(waits: impl IntoIterator<Item = &'a Waiting<'b>>) -> Option<Span> {
    waits.into_iter().filter_map(|waiting| waiting.span).max()
}

/// A process as messages name it.
pub fn name(command: &TextPath, pid: Pid) -> String {
    format!("{command}[{pid}]")
}

/// What a request asks for, in a word.
pub fn kind(kind: RequestKind) -> &'static str {
    match kind {
        RequestKind::Mount => "mount",
        RequestKind::Expire => "expire",
    }
}

/// What keeps a process from running, in a few words.
pub fn halt(halt: Halt) -> &'static str {
    match halt {
        Halt::Stopped => "a signal has stopped it",
        Halt::Traced => "a tracer holds it",
        Halt::Frozen => "its control group is frozen",
    }
}

/// A request that nobody has read, in a few words. Its process has the id that the master would read.
pub fn request(request: &Request) -> String {
    let kind = kind(request.kind);
    let name = request.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    format!("{kind}{name} for process {} of user {}", request.tgid, request.uid)
}

impl Waiting<'_> {
    /// Its user, by name if that is known.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The word for its role.
    pub fn role(&self) -> &'static str {
        match self.waiter.role {
            WaiterRole::First => "first",
            WaiterRole::Joined => "joined",
            WaiterRole::Expire => "expire",
            WaiterRole::Unknown => "unknown",
        }
    }

    /// Its process.
    pub fn name(&self) -> String {
        name(&self.waiter.command, self.waiter.pid)
    }

    /// Whether it is too early to say anything: its master has not read the request yet, and nothing is known to keep it
    /// from that.
    pub fn is_early(&self, patience: Span) -> bool {
        let Outlook::Unread(master) = self.outlook else { return false };
        master.halt.is_none() && self.span.is_none_or(|span| span < patience)
    }

    /// Who waits, for how long, for what, and in which role: all but the mount.
    pub fn brief(&self) -> String {
        let mut brief = self.who();
        // Writing to a string cannot fail.
        if let Some(span) = self.span {
            let _ = write!(brief, ", {span}");
        }
        if let Some(path) = &self.waiter.path {
            let _ = write!(brief, ", for {path}");
        }
        brief + role_words(self.waiter.role)
    }

    fn who(&self) -> String {
        let Waiter { pid, tid, command, .. } = self.waiter;
        match pid == tid {
            true => format!("{command}[{pid}] of {}", self.user),
            false => format!("{command}[{pid}, thread {tid}] of {}", self.user),
        }
    }
}

fn role_words(role: WaiterRole) -> &'static str {
    match role {
        WaiterRole::First => " (asked first)",
        WaiterRole::Joined => " (joined)",
        WaiterRole::Expire => " (in an expire)",
        WaiterRole::Unknown => "",
    }
}

/// Of several mounts that show the superblock, the one in the waiter's namespace that the path leads through.
fn mount_of<'a>(waiter: &Waiter, mounts: &HashMap<Device, Vec<&'a Mount>>) -> Option<&'a Mount> {
    let shown = mounts.get(&waiter.device?)?;
    let is_here = |mount: &Mount| waiter.namespace == Some(mount.namespace);
    let on_the_way =
        |mount: &Mount| waiter.path.as_ref().is_some_and(|path| path.starts_with(&mount.mount_point));
    shown.iter().max_by_key(|mount| (is_here(mount), on_the_way(mount), Reverse(mount.id))).copied()
}

fn outlook<'a>(report: &'a Report, waiter: &Waiter, mount: Option<&Mount>) -> Outlook<'a> {
    let Some(superblock) = waiter.device.and_then(|device| report.superblock(device)) else {
        return Outlook::Unclear;
    };
    let master = superblock.master.and_then(|pid| report.process(pid));
    match (superblock.state, master) {
        (State::Orphaned, _) => Outlook::MasterGone,
        (State::Connected | State::Delegated, Some(master)) if is_unread(report, waiter, mount) => {
            Outlook::Unread(master)
        }
        (State::Connected | State::Delegated, Some(master)) => Outlook::Read(master),
        _ => Outlook::Unclear,
    }
}

/// Whether the request that it waits for, or may wait for, is still in the pipe, or has not even got there.
fn is_unread(report: &Report, waiter: &Waiter, mount: Option<&Mount>) -> bool {
    let kind = if waiter.role == WaiterRole::Expire { RequestKind::Expire } else { RequestKind::Mount };
    let key = key(waiter, mount);
    let has_key = |other: &Waiter| self::key(other, mount).is_none_or(|its| key.is_none_or(|key| its == key));
    let mut on_it = report.waiters.iter().filter(|other| other.device == waiter.device && other.unsent);
    if waiter.unsent || on_it.any(has_key) {
        return true;
    }
    let mut unread = report.requests.iter().filter(|request| Some(request.device) == waiter.device);
    unread.any(|request| {
        request.kind == kind
            && match (&request.name, key) {
                (Some(name), Some(key)) => name.as_bytes() == key.as_bytes(),
                _ => true,
            }
    })
}

/// The name below the mount point that the waiter asked for.
fn key<'a>(waiter: &'a Waiter, mount: Option<&Mount>) -> Option<&'a OsStr> {
    let below = waiter.path.as_ref()?.strip_prefix(&mount?.mount_point).ok()?;
    match below.components().next()? {
        Component::Normal(name) => Some(name),
        _ => None,
    }
}

impl fmt::Display for Waiting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.span {
            Some(span) => write!(f, "{} has waited {span} on ", self.who())?,
            None => write!(f, "{} waits on ", self.who())?,
        }
        match self.mount {
            Some(mount) => write!(f, "{}", mount.mount_point)?,
            None => f.write_str("an autofs mount that could not be told")?,
        }
        if let Some(path) = &self.waiter.path {
            write!(f, " for {path}")?;
        }
        f.write_str(role_words(self.waiter.role))?;
        match self.outlook {
            Outlook::MasterGone => f.write_str("; its master is gone"),
            Outlook::Read(master) => {
                write!(f, ": {} has read the request and not answered yet", name(&master.command, master.pid))
            }
            Outlook::Unread(master) => {
                write!(f, ": {} has not read the request yet", name(&master.command, master.pid))?;
                if self.waiter.unsent {
                    f.write_str(", for which its pipe has no room")?;
                }
                master.halt.map_or(Ok(()), |what| write!(f, ": {}", halt(what)))
            }
            Outlook::Unclear => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"
format: autofs-cr/report/1
hidden: []
namespaces: []
processes:
- {pid: 50, ids: [50], group_ids: [50], session_ids: [50], pid_namespace: 1, start_time: 1, command: automount, kind: automount, pipe_ends: [], control_fds: []}
superblocks:
- {device: "0:45", options: {type: indirect, timeout: 1, minproto: 5, maxproto: 5}, state: connected, reason: "", pipe: 9, pgrp: 50, fd: 4, master: 50}
- {device: "0:46", options: {type: direct, timeout: 1, minproto: 5, maxproto: 5}, state: orphaned, reason: "", pipe: 8, pgrp: 51, fd: 4}
mounts:
- {namespace: 1, id: 40, parent: 1, device: "0:45", root: /, mount_point: /net, options: rw, propagation: private, source: s}
- {namespace: 1, id: 41, parent: 1, device: "0:45", root: /, mount_point: /copy, options: rw, propagation: private, source: s}
- {namespace: 1, id: 42, parent: 1, device: "0:46", root: /, mount_point: /data, options: rw, propagation: private, source: s}
content: []
requests:
- {pipe: 9, device: "0:45", kind: mount, token: 1, inode: 1, uid: 0, gid: 0, pid: 60, tgid: 60, name: a}
waiters:
- {pid: 60, tid: 60, start_time: 1, command: cat, uid: 0, role: first, device: "0:45", path: /net/a/x, since: 58}
- {pid: 61, tid: 61, start_time: 1, command: ls, uid: 0, role: joined, device: "0:45", path: /copy/b}
- {pid: 62, tid: 62, start_time: 1, command: ls, uid: 0, role: expire, device: "0:45", path: /net/a}
- {pid: 63, tid: 63, start_time: 1, command: ls, uid: 0, role: joined, device: "0:46"}
- {pid: 63, tid: 64, start_time: 1, command: ls, uid: 0, role: first, device: "0:46", path: /data}
- {pid: 65, tid: 65, start_time: 1, command: df, uid: 0, role: unknown}
...
"#;

    #[test]
    fn each_waiter_is_told_what_comes_of_it() {
        let report: Report = autofs_cr_common::doc::parse(REPORT.as_bytes(), "a report").expect("valid");
        let told: Vec<String> =
            all(&report, &Users::default(), 100).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "cat[60] of 0 has waited 42s on /net for /net/a/x (asked first): automount[50] has not read the request yet",
                "ls[61] of 0 waits on /copy for /copy/b (joined): automount[50] has read the request and not answered yet",
                "ls[62] of 0 waits on /net for /net/a (in an expire): automount[50] has read the request and not answered yet",
                "ls[63] of 0 waits on /data (joined); its master is gone",
                "ls[63, thread 64] of 0 waits on /data for /data (asked first); its master is gone",
                "df[65] of 0 waits on an autofs mount that could not be told",
            ]
        );
    }

    #[test]
    fn a_process_with_several_threads_counts_once() {
        let report: Report = autofs_cr_common::doc::parse(REPORT.as_bytes(), "a report").expect("valid");
        let all = all(&report, &Users::default(), 100);
        let list_of = |minor| {
            let on_it = |waiting: &&Waiting<'_>| waiting.waiter.device == Some(Device::anonymous(minor));
            list(&all.iter().filter(on_it).collect::<Vec<_>>())
        };
        assert_eq!(list_of(46), "1 process waits: ls[63]");
        assert_eq!(list_of(45), "3 processes wait: cat[60], ls[61], ls[62]");
    }
}
