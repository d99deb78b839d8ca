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
use super::requests::Requests;
use super::sight::Sight;
use super::tables::Tables;
use super::whereabouts::{self, Part, Sleep};
use crate::cli::count;
use crate::doc::report::{Process, Request, RequestKind, Superblock, Waiter, WaiterRole};
use crate::model::{Device, Pid, State, TextPath};
use crate::proc::{Absence, Proc, ProcessDir, SchedulerClocks, Stat, Status, absence};

/// What is known when the waiters are looked for.
pub(super) struct Scene<'a> {
    pub proc: &'a Proc,
    pub tables: &'a Tables,
    pub superblocks: &'a [Superblock],
    pub holders: &'a Holders,
    pub requests: &'a Requests,
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
            return if self.may_wait(&stat) { self.sleeping(&proc.process(pid)?, pid, pid) } else { Ok(()) };
        }
        let process = proc.process(pid)?;
        for tid in process.threads()? {
            let looked = process.thread_stat(tid).and_then(|stat| match self.may_wait(&stat) {
                true => self.sleeping(&process, pid, tid),
                false => Ok(()),
            });
            self.note(looked);
        }
        Ok(())
    }

    /// Whether a thread may wait in autofs: it is blocked, or where a pipe is full, it sleeps.
    fn may_wait(&self, stat: &Stat) -> bool {
        stat.is_blocked() || (self.scene.requests.have_no_room && stat.state == b'S')
    }

    /// A thread that waits for something, which may be autofs.
    fn sleeping(&mut self, process: &ProcessDir, pid: Pid, tid: Pid) -> io::Result<()> {
        let thread = process.thread(tid)?;
        match whereabouts::sleep(&thread)? {
            Sleep::Autofs => {}
            Sleep::Elsewhere => return Ok(()),
            // It went on meanwhile, or this may not be known. The link of its directory is for the same readers.
            Sleep::Unknown => return thread.cwd().map(drop),
        }
        let Some(waiter) = self.waiter(&thread, pid, tid)? else { return Ok(()) };
        // What was read belongs together if it still waits.
        if whereabouts::sleep(&thread)? == Sleep::Autofs {
            self.unseen_roles += usize::from(waiter.role == WaiterRole::Unknown);
            self.waiters.push(waiter);
        }
        Ok(())
    }

    /// `None` if it waits on a mount that was not asked about.
    fn waiter(&mut self, thread: &ProcessDir, pid: Pid, tid: Pid) -> io::Result<Option<Waiter>> {
        let (stat, status) = (thread.stat()?, thread.status()?);
        let sight = self.sight(thread)?;
        let Part { mut role, is_unsent } = whereabouts::part(thread);
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
            unsent: is_unsent,
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
        scene.requests.list.iter().filter(|request| status.ids.contains(&request.pid)).find(|request| {
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
            None => sight.devices().any(|device| superblocks.contains_key(&device)),
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
