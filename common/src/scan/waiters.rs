//! Who waits in autofs, on which mount, and for what.
//!
//! The kernel does not say on which mount a thread waits. Two things do: the request that it made, as long as nobody
//! has read it, and the path that its system call names.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::rc::Rc;

use super::advice;
use super::asked;
use super::holders::Holders;
use super::memory::Memory;
use super::tables::Tables;
use super::tree::Tree;
use crate::cli::count;
use crate::doc::report::{Process, Request, RequestKind, Superblock, Waiter, WaiterRole};
use crate::model::{Device, Pid, State, TextPath};
use crate::proc::mountinfo::{Line, lines, unescape};
use crate::proc::{Absence, Proc, ProcessDir, SchedulerClocks, Status, absence};

/// What is known when the waiters are looked for.
pub(super) struct Scene<'a> {
    pub proc: &'a Proc,
    pub tables: &'a Tables,
    pub superblocks: &'a [Superblock],
    pub holders: &'a Holders,
    pub requests: &'a [Request],
}

impl<'a> Scene<'a> {
    /// The process of its own group that serves a superblock.
    fn master(&self, device: Device) -> Option<&'a Process> {
        let at = self.superblocks.binary_search_by_key(&device, |superblock| superblock.device).ok()?;
        let served = Some(&self.superblocks[at]).filter(|superblock| superblock.state == State::Connected)?;
        self.holders.process(served.master?)
    }
}

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By process and thread.
    pub waiters: Vec<Waiter>,
    /// How many threads are blocked, and what they wait for is not visible.
    pub unseen: usize,
}

/// Looks at every thread but those of the reader. One read tells of most that they do not wait at all.
pub(super) fn find(scene: &Scene<'_>, pids: &[Pid], reader: Option<Pid>, hidden: &mut Vec<String>) -> Found {
    if scene.superblocks.is_empty() {
        return Found::default();
    }
    let mut search = Search {
        scene,
        waiters: Vec::new(),
        sights: HashMap::new(),
        memory: Memory::default(),
        clocks: SchedulerClocks::default(),
        unseen: 0,
        unseen_roles: 0,
    };
    for &pid in pids.iter().filter(|pid| Some(**pid) != reader) {
        let looked = search.process(pid);
        search.note(looked);
    }
    hidden.extend(search.hidden());
    Found { waiters: search.waiters, unseen: search.unseen }
}

struct Search<'a> {
    scene: &'a Scene<'a>,
    waiters: Vec<Waiter>,
    /// By mount namespace and root directory.
    sights: HashMap<(u64, Vec<u8>), Rc<Sight>>,
    memory: Memory,
    clocks: SchedulerClocks,
    /// Threads that are blocked, and what they wait for is not visible.
    unseen: usize,
    /// Waiters whose stack is not visible.
    unseen_roles: usize,
}

impl<'a> Search<'a> {
    /// Remembers that something could not be seen, unless it is gone.
    fn note(&mut self, looked: io::Result<()>) {
        if looked.is_err_and(|error| absence(&error) != Some(Absence::Gone)) {
            self.unseen += 1;
        }
    }

    fn process(&mut self, pid: Pid) -> io::Result<()> {
        let proc = self.scene.proc;
        let stat = proc.stat(pid)?;
        if stat.threads <= 1 {
            // What is said of the process is said of its only thread.
            return if stat.is_blocked() { self.blocked(&proc.process(pid)?, pid, pid) } else { Ok(()) };
        }
        let process = proc.process(pid)?;
        for tid in process.threads()? {
            let looked = process.thread_stat(tid).and_then(|stat| match stat.is_blocked() {
                true => self.blocked(&process, pid, tid),
                false => Ok(()),
            });
            self.note(looked);
        }
        Ok(())
    }

    /// A thread that waits for something, which may be autofs.
    fn blocked(&mut self, process: &ProcessDir, pid: Pid, tid: Pid) -> io::Result<()> {
        let thread = process.thread(tid)?;
        match thread.wchan()? {
            Some(function) if is_autofs(&function) => {}
            Some(_) => return Ok(()),
            // It went on meanwhile, or this may not be known. The link of its directory is for the same readers.
            None => return thread.cwd().map(drop),
        }
        let Some(waiter) = self.waiter(&thread, pid, tid)? else { return Ok(()) };
        // What was read belongs together if it still waits.
        if thread.wchan()?.is_some_and(|function| is_autofs(&function)) {
            self.unseen_roles += usize::from(waiter.role == WaiterRole::Unknown);
            self.waiters.push(waiter);
        }
        Ok(())
    }

    /// `None` if it waits on a mount that was not asked about.
    fn waiter(&mut self, thread: &ProcessDir, pid: Pid, tid: Pid) -> io::Result<Option<Waiter>> {
        let (stat, status) = (thread.stat()?, thread.status()?);
        let sight = self.sight(thread)?;
        let mut role = role(thread);
        let request = self.request(thread, &status, &sight);
        if let (WaiterRole::Unknown, Some(request)) = (role, request) {
            role = role_of_request(request);
        }
        let paths = match thread.syscall() {
            Ok(Some(call)) => asked::paths(thread, tid, &call, &mut self.memory),
            _ => Vec::new(),
        };
        let (path, device) = place(&sight, &paths, request);
        if !self.belongs_here(device, &sight) {
            return Ok(None);
        }
        // Who waits does not run.
        let since = stat.processor.and_then(|at| self.clocks.last_ran(self.scene.proc, thread, at));
        Ok(Some(Waiter {
            pid,
            tid,
            start_time: stat.start_time,
            command: stat.command,
            uid: status.uid.unwrap_or_default(),
            role,
            device,
            path: path.map(TextPath::from_bytes),
            namespace: Some(thread.mount_namespace()?),
            since: since.map(|since| since.as_secs()),
        }))
    }

    /// The autofs mounts as a thread sees them.
    fn sight(&mut self, thread: &ProcessDir) -> io::Result<Rc<Sight>> {
        Ok(match self.sights.entry((thread.mount_namespace()?, thread.root()?)) {
            Entry::Occupied(known) => Rc::clone(known.get()),
            Entry::Vacant(vacant) => Rc::clone(vacant.insert(Rc::new(Sight::read(&thread.mountinfo()?)))),
        })
    }

    /// The request that a thread made, if it is still unread. It names the thread in numbers of the master's pid
    /// namespace.
    fn request(&self, thread: &ProcessDir, status: &Status, sight: &Sight) -> Option<&'a Request> {
        let scene = self.scene;
        scene.requests.iter().filter(|request| status.ids.contains(&request.pid)).find(|request| {
            let Some(master) = scene.master(request.device) else { return false };
            let level = master.ids.len() - 1;
            let is_deeper = status.ids.len() > master.ids.len();
            status.ids.get(level) == Some(&request.pid)
                && status.process_ids.get(level) == Some(&request.tgid)
                && (is_deeper || thread.pid_namespace().is_ok_and(|id| id == master.pid_namespace))
                && sight.shows(request.device)
        })
    }

    /// Whether the report is about the mount that it waits on; where that is not known, whether it can be.
    fn belongs_here(&self, device: Option<Device>, sight: &Sight) -> bool {
        let superblocks = &self.scene.tables.superblocks;
        match device {
            Some(device) => superblocks.contains_key(&device),
            None => sight.mounts.values().any(|device| superblocks.contains_key(device)),
        }
    }

    fn hidden(&self) -> Vec<String> {
        let mut hidden = Vec::new();
        if self.unseen > 0 {
            hidden.push(format!("what keeps {}{} blocked", count(self.unseen, "thread"), advice()));
        }
        if self.unseen_roles > 0 {
            let waiters = count(self.unseen_roles, "thread");
            hidden.push(format!("whether {waiters} in autofs asked first: kernel stacks are for root alone"));
        }
        hidden.extend(self.memory.hidden());
        hidden
    }
}

pub(super) fn is_autofs(function: &[u8]) -> bool {
    function.starts_with(b"autofs_")
}

/// What a thread waits for, by the functions on its kernel stack (fs/autofs of Linux).
pub(super) fn role(thread: &ProcessDir) -> WaiterRole {
    thread.stack().map_or(WaiterRole::Unknown, |stack| role_by_stack(&stack))
}

pub(super) fn role_by_stack(stack: &[u8]) -> WaiterRole {
    let has = |function: &str| {
        let function = function.as_bytes();
        stack.split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_').any(|word| word == function)
    };
    if has("autofs_expire_wait") || has("autofs_do_expire_multi") {
        WaiterRole::Expire
    } else if has("autofs_d_automount") {
        WaiterRole::First
    } else if has("autofs_wait") {
        WaiterRole::Joined
    } else {
        WaiterRole::Unknown
    }
}

fn role_of_request(request: &Request) -> WaiterRole {
    match request.kind {
        RequestKind::Mount => WaiterRole::First,
        RequestKind::Expire => WaiterRole::Expire,
    }
}

/// The path that was asked for, and the superblock that it is on.
pub(super) fn place(
    sight: &Sight,
    paths: &[Vec<u8>],
    request: Option<&Request>,
) -> (Option<Vec<u8>>, Option<Device>) {
    let on_autofs = paths.iter().find_map(|path| Some((path, sight.device_at(path)?)));
    match (request, on_autofs) {
        (Some(request), Some((path, device))) if request.device == device => {
            (Some(path.clone()), Some(device))
        }
        (Some(request), _) => (paths.first().cloned().or_else(|| sight.name(request)), Some(request.device)),
        (None, Some((path, device))) => (Some(path.clone()), Some(device)),
        (None, None) => (paths.first().cloned(), None),
    }
}

/// The autofs mounts that paths of a process lead to.
pub(super) struct Sight {
    /// By mount point; of several at one place the topmost.
    mounts: HashMap<Vec<u8>, Device>,
}

impl Sight {
    pub(super) fn read(mountinfo: &[u8]) -> Self {
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

    fn shows(&self, device: Device) -> bool {
        self.mounts.values().any(|shown| *shown == device)
    }

    /// The superblock of the innermost autofs mount that a path leads to or through.
    fn device_at(&self, path: &[u8]) -> Option<Device> {
        let ends = (1..path.len()).rev().filter(|&end| path[end] == b'/');
        let ways = std::iter::once(path).chain(ends.map(|end| &path[..end])).chain([&b"/"[..]]);
        ways.into_iter().find_map(|way| self.mounts.get(way).copied())
    }

    /// The path that a request is about.
    fn name(&self, request: &Request) -> Option<Vec<u8>> {
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
