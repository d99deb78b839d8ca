//! A report with its parts brought together: what is on a mount, who waits on it, who serves it.

use std::collections::{HashMap, HashSet};

use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::{
    Content, Mount, Namespace, PipeEnd, Process, Request, Stranger, Superblock, Unfinished,
};
use autofs_cr_common::model::{Device, Pid};

use crate::span::Span;
use crate::users::Users;
use crate::waiting::{self, Waiting};

/// A report, and what is looked up in it again and again.
pub struct View<'a> {
    pub report: &'a Report,
    /// The mount namespace of this process.
    pub own: Option<u64>,
    /// All who wait.
    pub waits: Vec<Waiting<'a>>,
    /// By the id of the mount.
    content: HashMap<u64, Vec<&'a Content>>,
    /// Where in `waits`, by the id of the mount.
    waits_on: HashMap<u64, Vec<usize>>,
    requests: HashMap<Device, Vec<&'a Request>>,
    /// The ids of mounts that a later autofs mount covers.
    covered: HashSet<u64>,
}

/// A mount, as a line of the table shows it.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub view: &'a View<'a>,
    pub mount: &'a Mount,
    pub superblock: &'a Superblock,
}

impl<'a> View<'a> {
    /// Looks once at everything. `own` is the mount namespace of this process, `now` the time in seconds since 1970.
    pub fn new(report: &'a Report, own: Option<u64>, now: u64) -> Self {
        let users = Users::find(&report.waiters.iter().map(|waiter| waiter.uid).collect());
        Self::with_users(report, own, now, &users)
    }

    /// The same, with these names of users.
    pub fn with_users(report: &'a Report, own: Option<u64>, now: u64, users: &Users) -> Self {
        let mut view = Self {
            report,
            own,
            waits: waiting::all(report, users, now),
            content: HashMap::new(),
            waits_on: HashMap::new(),
            requests: HashMap::new(),
            covered: report.mounts.iter().filter(|mount| mount.covers).map(|mount| mount.parent).collect(),
        };
        for content in &report.content {
            view.content.entry(content.parent).or_default().push(content);
        }
        for (at, waiting) in view.waits.iter().enumerate() {
            if let Some(mount) = waiting.mount {
                view.waits_on.entry(mount.id).or_default().push(at);
            }
        }
        for request in &report.requests {
            view.requests.entry(request.device).or_default().push(request);
        }
        view
    }

    /// A row for each mount, in the order of the report.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.report.mounts.iter().filter_map(|mount| {
            Some(Row { view: self, mount, superblock: self.report.superblock(mount.device)? })
        })
    }

    /// The restores that have not come to their end, with the namespaces that they are in.
    pub fn unfinished(&self) -> impl Iterator<Item = (&'a Namespace, &'a Unfinished)> {
        self.report
            .namespaces
            .iter()
            .filter_map(|namespace| Some((namespace, namespace.unfinished.as_ref()?)))
    }

    /// A namespace of the report.
    pub fn namespace(&self, id: u64) -> Option<&'a Namespace> {
        self.report.namespaces.iter().find(|namespace| namespace.id == id)
    }

    /// Those who wait on a mount, by process and thread.
    fn waits_on(&self, mount: u64) -> impl Iterator<Item = &Waiting<'a>> {
        self.waits_on.get(&mount).into_iter().flatten().map(|&at| &self.waits[at])
    }
}

impl<'a> Row<'a> {
    /// The process that serves it.
    pub fn master(&self) -> Option<&'a Process> {
        self.view.report.process(self.superblock.master?)
    }

    /// What is mounted on it.
    pub fn content(&self) -> &'a [&'a Content] {
        self.view.content.get(&self.mount.id).map_or(&[], Vec::as_slice)
    }

    /// The requests about its superblock that nobody has read.
    pub fn requests(&self) -> &'a [&'a Request] {
        self.view.requests.get(&self.superblock.device).map_or(&[], Vec::as_slice)
    }

    /// The threads that wait on it, by process.
    pub fn waits(&self) -> Vec<&'a Waiting<'a>> {
        self.view.waits_on(self.mount.id).collect()
    }

    /// Whether somebody waits on its superblock, be it by another mount that shows it.
    pub fn has_waits(&self) -> bool {
        self.all_waits().next().is_some()
    }

    /// The threads that wait on its superblock, be it by another mount.
    pub fn all_waits(&self) -> impl Iterator<Item = &'a Waiting<'a>> {
        let device = Some(self.superblock.device);
        self.view.waits.iter().filter(move |waiting| waiting.waiter.device == device)
    }

    /// How long its longest wait has lasted, if that is known.
    pub fn longest_wait(&self) -> Option<Span> {
        waiting::longest(self.view.waits_on(self.mount.id))
    }

    /// The namespace that it is in.
    pub fn namespace(&self) -> Option<&'a Namespace> {
        self.view.namespace(self.mount.namespace)
    }

    /// A process in its mount namespace, if that is not the one of this process.
    pub fn elsewhere(&self) -> Option<Pid> {
        let other = self.namespace().filter(|namespace| Some(namespace.id) != self.view.own);
        other.map(|namespace| namespace.process)
    }

    /// A later autofs mount covers it, so that no access comes to it any more.
    pub fn is_covered(&self) -> bool {
        self.view.covered.contains(&self.mount.id)
    }

    /// The processes that hold an end of its pipe, with their descriptors.
    pub fn pipe_ends(&self) -> impl Iterator<Item = (&'a Process, &'a PipeEnd)> {
        let pipe = self.superblock.pipe;
        self.view.report.processes.iter().flat_map(move |process| {
            let ends = process.pipe_ends.iter().filter(move |end| Some(end.pipe) == pipe);
            ends.map(move |end| (process, end))
        })
    }

    /// The processes that see it, and that its master does not see.
    pub fn strangers(&self) -> impl Iterator<Item = &'a Stranger> {
        let (namespace, master) = (self.mount.namespace, self.superblock.master);
        let strangers = self.view.report.strangers.iter();
        strangers.filter(move |one| one.namespace == namespace && Some(one.master) == master)
    }
}
