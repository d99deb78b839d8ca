//! What is said of those who wait.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Component;

use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::{Mount, Process, RequestKind, Waiter, WaiterRole};
use autofs_cr_common::model::{Device, Pid, State, TextPath};

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

/// A waiter, on which mount it waits, and what comes of it.
pub struct Waiting<'a> {
    pub waiter: &'a Waiter,
    mount: Option<&'a Mount>,
    pub outlook: Outlook<'a>,
}

/// All waiters of a report, in its order.
pub fn all(report: &Report) -> Vec<Waiting<'_>> {
    let mut mounts: HashMap<Device, Vec<&Mount>> = HashMap::new();
    for mount in &report.mounts {
        mounts.entry(mount.device).or_default().push(mount);
    }
    let waiting = |waiter| {
        let mount = mount_of(waiter, &mounts);
        Waiting { waiter, mount, outlook: outlook(report, waiter, mount) }
    };
    report.waiters.iter().map(waiting).collect()
}

/// The processes that wait on each superblock, each once.
pub fn by_device(report: &Report) -> HashMap<Device, Vec<&Waiter>> {
    let mut found: HashMap<Device, Vec<&Waiter>> = HashMap::new();
    for waiter in &report.waiters {
        let Some(device) = waiter.device else { continue };
        let processes = found.entry(device).or_default();
        if processes.last().is_none_or(|last| last.pid != waiter.pid) {
            processes.push(waiter);
        }
    }
    found
}

/// `2 processes wait: ls[123], cat[124]`.
pub fn list(processes: &[&Waiter]) -> String {
    let names: Vec<String> = processes.iter().map(|waiter| name(&waiter.command, waiter.pid)).collect();
    let count =
        if names.len() == 1 { "1 process waits".into() } else { format!("{} processes wait", names.len()) };
    format!("{count}: {}", names.join(", "))
}

fn name(command: &TextPath, pid: Pid) -> String {
    format!("{command}[{pid}]")
}

/// Of several mounts that show the superblock, the one that the path leads through.
fn mount_of<'a>(waiter: &Waiter, mounts: &HashMap<Device, Vec<&'a Mount>>) -> Option<&'a Mount> {
    let shown = mounts.get(&waiter.device?)?;
    let on_the_way =
        |mount: &&&Mount| waiter.path.as_ref().is_some_and(|path| path.starts_with(&mount.mount_point));
    shown.iter().find(on_the_way).or_else(|| shown.first()).copied()
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

/// Whether the request that it waits for, or may wait for, is still in the pipe.
fn is_unread(report: &Report, waiter: &Waiter, mount: Option<&Mount>) -> bool {
    let kind = if waiter.role == WaiterRole::Expire { RequestKind::Expire } else { RequestKind::Mount };
    let key = key(waiter, mount);
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
        let Waiter { pid, tid, command, path, role, .. } = self.waiter;
        match pid == tid {
            true => write!(f, "{command}[{pid}] waits on ")?,
            false => write!(f, "{command}[{pid}, thread {tid}] waits on ")?,
        }
        match self.mount {
            Some(mount) => write!(f, "{}", mount.mount_point)?,
            None => f.write_str("an autofs mount that could not be told")?,
        }
        if let Some(path) = path {
            write!(f, " for {path}")?;
        }
        f.write_str(match role {
            WaiterRole::First => " (asked first)",
            WaiterRole::Joined => " (joined)",
            WaiterRole::Expire => " (in an expire)",
            WaiterRole::Unknown => "",
        })?;
        match (self.outlook, self.mount) {
            (Outlook::MasterGone, Some(mount)) => {
                write!(f, "; its master is gone: free it with autofs-fixup --free {}", mount.mount_point)
            }
            (Outlook::MasterGone, None) => f.write_str("; its master is gone"),
            (Outlook::Read(master), _) => {
                write!(f, ": {} has read the request and not answered yet", name(&master.command, master.pid))
            }
            (Outlook::Unread(master), _) => {
                write!(f, ": {} has not read the request yet", name(&master.command, master.pid))
            }
            (Outlook::Unclear, _) => Ok(()),
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
- {pid: 60, tid: 60, start_time: 1, command: cat, uid: 0, role: first, device: "0:45", path: /net/a/x}
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
        let told: Vec<String> = all(&report).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "cat[60] waits on /net for /net/a/x (asked first): automount[50] has not read the request yet",
                "ls[61] waits on /copy for /copy/b (joined): automount[50] has read the request and not answered yet",
                "ls[62] waits on /net for /net/a (in an expire): automount[50] has read the request and not answered yet",
                "ls[63] waits on /data (joined); its master is gone: free it with autofs-fixup --free /data",
                "ls[63, thread 64] waits on /data for /data (asked first); its master is gone: free it with autofs-fixup --free /data",
                "df[65] waits on an autofs mount that could not be told",
            ]
        );
    }

    #[test]
    fn a_process_with_several_threads_counts_once() {
        let report: Report = autofs_cr_common::doc::parse(REPORT.as_bytes(), "a report").expect("valid");
        let processes = by_device(&report);
        let list_of = |minor| list(&processes[&Device::anonymous(minor)]);
        assert_eq!(list_of(46), "1 process waits: ls[63]");
        assert_eq!(list_of(45), "3 processes wait: cat[60], ls[61], ls[62]");
    }
}
