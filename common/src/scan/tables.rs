//! The mount namespaces, and the autofs mounts in them.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;

use super::census::Census;
use super::tree::{Surroundings, Tree};
use super::{ScanError, Scope, processes, read_error};
use crate::doc::report::{Content, Mount, Namespace, RunsIn};
use crate::model::{Device, KernelPipe, OptionsReader, Pid, SuperOptions, TextPath};
use crate::proc::mountinfo::{Line, lines, unescape};
use crate::proc::{Absence, Proc, ProcessDir, absence};
use crate::threads::{self, Share};
use crate::unfinished::{self, is_pipe, is_work_place};

/// What the mountinfo files say.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub namespaces: Vec<Namespace>,
    pub superblocks: BTreeMap<Device, Instance>,
    pub mounts: Vec<Mount>,
    pub content: Vec<Content>,
    /// The pipes of the superblocks.
    pub pipes: HashSet<u64>,
    /// The mountinfo that was read last: of a scope of one namespace, that of it.
    pub last_read: Vec<u8>,
    /// The roots of the processes through which namespaces were seen, by namespace, where these are others than that
    /// of the reader.
    roots: HashMap<u64, Vec<u8>>,
    options: OptionsReader,
}

/// A superblock.
#[derive(Debug)]
pub(super) struct Instance {
    pub options: SuperOptions,
    /// In how many pid namespaces the process is through which it was seen, from that of the reader on;
    /// the least, where it was seen through several.
    pub depth: usize,
}

/// One namespace, through one process.
struct View {
    namespace: Namespace,
    /// In how many pid namespaces the process is.
    depth: usize,
    /// The process's root, from the root of the reader; empty for `/`.
    root: Vec<u8>,
    mountinfo: Vec<u8>,
}

/// Reads the namespaces of `scope`.
pub(super) fn collect(
    census: &Census<'_>,
    scope: Scope,
    hidden: &mut Vec<String>,
) -> Result<Tables, ScanError> {
    let (proc, pids) = (census.proc, &census.pids);
    let mut views = match scope {
        Scope::Own => vec![own_view(proc, pids)?],
        Scope::Of(pid) => vec![view_of(proc, pid)?],
        Scope::All => all_views(census, hidden)?,
    };
    views.sort_unstable_by_key(|view| view.namespace.id);
    let mut tables = Tables::default();
    for view in views {
        tables.add(proc, view)?;
    }
    Ok(tables)
}

/// This process's namespace, named after a process that will still be there when the report is read.
fn own_view(proc: &Proc, pids: &[Pid]) -> Result<View, ScanError> {
    let this = proc.this().map_err(|source| read_error(proc, "self", source))?;
    let failed = |source| read_error(proc, "self", source);
    let mut view = read_view(&this, Pid::this()).map_err(failed)?;
    let Ok(root) = this.root_id() else { return Ok(view) };
    for &pid in pids.iter().filter(|pid| **pid != Pid::this()) {
        let Ok(dir) = proc.process(pid) else { continue };
        if dir.mount_namespace().ok() != Some(view.namespace.id) {
            continue;
        }
        let Ok(namespace) = stand_in(&dir, pid) else { continue };
        let same =
            (namespace.id, namespace.pid_namespace) == (view.namespace.id, view.namespace.pid_namespace);
        let same_root = || dir.root_id().is_ok_and(|id| id == root);
        if same && same_root() {
            view.namespace = namespace;
            break;
        }
    }
    Ok(view)
}

fn view_of(proc: &Proc, pid: Pid) -> Result<View, ScanError> {
    let view = proc.process(pid).and_then(|dir| read_view(&dir, pid));
    view.map_err(|source| match absence(&source) {
        Some(Absence::Gone) => ScanError::NoProcess(pid),
        Some(Absence::NotVisible) => ScanError::NotAllowed(pid),
        None => read_error(proc, &format!("{pid}/mountinfo"), source),
    })
}

/// One view of each namespace: through the process with the lowest id in it.
fn all_views(census: &Census<'_>, hidden: &mut Vec<String>) -> Result<Vec<View>, ScanError> {
    let proc = census.proc;
    let (members, mut unreadable) = members(census)?;
    let members: Vec<Vec<Pid>> = members.into_values().collect();
    let mut views = Vec::new();
    for view in threads::each(&members, Share::Large, |pids| first_view(proc, pids)) {
        let (view, unseen) = view?;
        views.extend(view);
        unreadable += unseen;
    }
    if census.reader.is_some() {
        let own = own_view(proc, &[])?;
        if views.iter().all(|view| view.namespace.id != own.namespace.id) {
            views.push(own);
        }
    }
    if unreadable > 0 {
        hidden.push(format!("the mount namespaces of {}", processes(unreadable)));
    }
    Ok(views)
}

/// The processes in each mount namespace but the reader, by id, and how many do not show in which they are.
fn members(census: &Census<'_>) -> Result<(BTreeMap<u64, Vec<Pid>>, usize), ScanError> {
    let proc = census.proc;
    let pids: Vec<Pid> = census.others().collect();
    let ids =
        threads::each(&pids, Share::Small, |pid| proc.process(*pid).and_then(|dir| dir.mount_namespace()));
    let mut members: BTreeMap<u64, Vec<Pid>> = BTreeMap::new();
    let mut unreadable = 0;
    for (pid, id) in pids.into_iter().zip(ids) {
        match seen(proc, pid, id)? {
            Seen::Is(id) => members.entry(id).or_default().push(pid),
            Seen::Gone => {}
            Seen::NotVisible => unreadable += 1,
        }
    }
    Ok((members, unreadable))
}

/// The view through the first of the processes that is still there and shows its mounts, and how many before it do
/// not show them.
fn first_view(proc: &Proc, pids: &[Pid]) -> Result<(Option<View>, usize), ScanError> {
    let mut unreadable = 0;
    for &pid in pids {
        let view = proc.process(pid).and_then(|dir| read_view(&dir, pid));
        match seen(proc, pid, view)? {
            Seen::Is(view) => return Ok((Some(view), unreadable)),
            Seen::Gone => {}
            Seen::NotVisible => unreadable += 1,
        }
    }
    Ok((None, unreadable))
}

/// What was seen of a process.
enum Seen<T> {
    Is(T),
    Gone,
    NotVisible,
}

/// What was seen, if nothing is wrong with the file itself.
fn seen<T>(proc: &Proc, pid: Pid, read: io::Result<T>) -> Result<Seen<T>, ScanError> {
    match read {
        Ok(found) => Ok(Seen::Is(found)),
        Err(error) => match absence(&error) {
            Some(Absence::Gone) => Ok(Seen::Gone),
            Some(Absence::NotVisible) => Ok(Seen::NotVisible),
            None => Err(read_error(proc, &format!("{pid}/mountinfo"), error)),
        },
    }
}

fn read_view(dir: &ProcessDir, pid: Pid) -> io::Result<View> {
    let namespace = stand_in(dir, pid)?;
    let mountinfo = dir.mountinfo()?;
    let mut root = dir.root()?;
    if root == b"/" {
        root.clear();
    }
    Ok(View { namespace, depth: dir.status()?.ids.len(), root, mountinfo })
}

/// The namespace of a process.
fn stand_in(dir: &ProcessDir, pid: Pid) -> io::Result<Namespace> {
    Ok(Namespace {
        id: dir.mount_namespace()?,
        process: pid,
        start_time: dir.stat()?.start_time,
        pid_namespace: dir.pid_namespace()?,
        runs_in: RunsIn::default(),
        unfinished: None,
    })
}

impl Tables {
    /// Whether a namespace was looked at through a process with its root directory, so that no mount is hidden.
    pub fn is_whole(&self, namespace: u64) -> bool {
        let is_seen = self.namespaces.iter().any(|seen| seen.id == namespace);
        is_seen && !self.roots.contains_key(&namespace)
    }

    fn add(&mut self, proc: &Proc, mut view: View) -> Result<(), ScanError> {
        let malformed = |source| ScanError::MountInfo { pid: view.namespace.process, source };
        let all: Vec<Line<'_>> = lines(&view.mountinfo).collect::<Result<_, _>>().map_err(malformed)?;
        if all.iter().any(is_work_place) {
            view.namespace.unfinished = unfinished::find(&all, proc.locked().ok().as_ref());
        }
        if all.iter().any(Line::is_autofs) {
            let tree = Tree::new(&all);
            for line in all.iter().filter(|line| !is_pipe(line)) {
                self.add_line(&view, line, &tree)?;
            }
        }
        if !view.root.is_empty() {
            self.roots.insert(view.namespace.id, view.root);
        }
        self.namespaces.push(view.namespace);
        self.last_read = view.mountinfo;
        Ok(())
    }

    fn add_line<'a>(&mut self, view: &View, line: &Line<'a>, tree: &Tree<'a>) -> Result<(), ScanError> {
        let around = tree.surroundings(line);
        if line.is_autofs() {
            self.add_autofs(view, line, &around).map_err(|cause| ScanError::Autofs {
                pid: view.namespace.process,
                mount_point: text(line.mount_point).to_string(),
                cause,
            })
        } else {
            if around.is_on_autofs() {
                self.content.push(content(view, line));
            }
            Ok(())
        }
    }

    fn add_autofs(&mut self, view: &View, line: &Line<'_>, around: &Surroundings<'_>) -> Result<(), String> {
        let device = line.device().ok_or("its device number makes no sense")?;
        self.add_superblock(device, view.depth, line)?;
        self.mounts.push(Mount {
            namespace: view.namespace.id,
            id: line.id,
            parent: line.parent,
            device,
            root: text(line.root),
            mount_point: text(line.mount_point),
            options: String::from_utf8_lossy(line.options).into_owned(),
            propagation: line.propagation(),
            source: text(line.source),
            within: around.within,
            covers: around.covers(line),
            buried: around.buried,
            copy: None,
        });
        Ok(())
    }

    fn add_superblock(&mut self, device: Device, depth: usize, line: &Line<'_>) -> Result<(), String> {
        let vacant = match self.superblocks.entry(device) {
            Entry::Vacant(vacant) => vacant,
            Entry::Occupied(mut seen) => {
                seen.get_mut().depth = depth.min(seen.get().depth);
                return Ok(());
            }
        };
        let options = self.options.read(line.super_options).map_err(|error| error.to_string())?;
        if let KernelPipe::Inode(inode) = options.pipe {
            self.pipes.insert(inode);
        }
        vacant.insert(Instance { options, depth });
        Ok(())
    }

    /// Each pipe with the process group whose members are asked through it; `None` where such a group is not
    /// visible.
    pub fn served_by(&self) -> Option<BTreeSet<(u64, Pid)>> {
        let mut wanted = BTreeSet::new();
        let mut last = None;
        for options in self.superblocks.values().map(|found| &found.options) {
            let KernelPipe::Inode(pipe) = options.pipe else { continue };
            let pair = (pipe, Pid::new(options.pgrp)?);
            // Most often it is the same as before.
            if last.replace(pair) != Some(pair) {
                wanted.insert(pair);
            }
        }
        Some(wanted)
    }
}

/// Where a descriptor on the root of a mount leads to.
pub(super) struct Places {
    /// The superblock of each mount, by mount id.
    devices: HashMap<u64, Device>,
    /// What the link of a descriptor reads there, for those mounts whose process has another root than the reader.
    moved: HashSet<Vec<u8>>,
    /// The places of the other mounts, by hash: most descriptors are on none of them.
    plain: HashSet<u64>,
}

impl Places {
    pub fn new(tables: &Tables) -> Self {
        let devices = tables.mounts.iter().map(|mount| (mount.id, mount.device)).collect();
        let mut places = Self { devices, moved: HashSet::new(), plain: HashSet::new() };
        for mount in &tables.mounts {
            let place = mount.mount_point.as_bytes();
            match tables.roots.get(&mount.namespace) {
                None => places.plain.insert(hash(place)),
                Some(root) => places.moved.insert([root, place].concat()),
            };
        }
        places
    }

    /// Whether a descriptor whose link reads so can be on the root of an autofs mount. On a mount that
    /// is detached, it reads as the root.
    pub fn can_be_root(&self, link: &[u8]) -> bool {
        link == b"/" || self.plain.contains(&hash(link)) || self.moved.contains(link)
    }

    /// The superblock of a mount.
    pub fn device(&self, mount_id: u64) -> Option<Device> {
        self.devices.get(&mount_id).copied()
    }
}

fn content(view: &View, line: &Line<'_>) -> Content {
    Content {
        namespace: view.namespace.id,
        id: line.id,
        parent: line.parent,
        mount_point: text(line.mount_point),
        fstype: text(line.fstype),
        source: text(line.source),
    }
}

fn text(escaped: &[u8]) -> TextPath {
    TextPath::from_bytes(unescape(escaped).into_owned())
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
