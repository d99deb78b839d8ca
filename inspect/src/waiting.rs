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
