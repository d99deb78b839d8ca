//! The mount namespaces, and the autofs mounts in them.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{HashMap, HashSet};
use std::io;

use super::tree::Tree;
use super::{ScanError, Scope, processes, read_error};
use crate::doc::report::{Content, Mount, Namespace, RunsIn};
use crate::model::{Device, KernelPipe, Pid, SuperOptions, TextPath};
use crate::proc::mountinfo::{Line, lines, unescape};
use crate::proc::{Absence, Proc, ProcessDir, absence};

/// What the mountinfo files say.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub namespaces: Vec<Namespace>,
    pub superblocks: BTreeMap<Device, Instance>,
    pub mounts: Vec<Mount>,
    pub content: Vec<Content>,
    /// The namespaces that were looked at through a process with their root directory, so that no mount is hidden.
    pub whole: HashSet<u64>,
    /// Where in `mounts` a mount id is.
    pub by_id: HashMap<u64, usize>,
    /// The pipes of the superblocks.
    pub pipes: HashSet<u64>,
    /// What the link of a descriptor on the root of a mount reads, for those mounts whose process has
    /// another root than the reader.
    moved: HashMap<Vec<u8>, ()>,
    /// The places of the other mounts, by hash: most descriptors are on none of them.
    places: HashSet<u64>,
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
    proc: &Proc,
    scope: Scope,
    pids: &[Pid],
    hidden: &mut Vec<String>,
) -> Result<Tables, ScanError> {
    let mut views = match scope {
        Scope::Own => vec![own_view(proc, pids)?],
        Scope::Of(pid) => vec![view_of(proc, pid)?],
        Scope::All => all_views(proc, pids, hidden)?,
    };
    views.sort_unstable_by_key(|view| view.namespace.id);
    let mut tables = Tables::default();
    for view in views {
        tables.add(view)?;
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
        let Some(namespace) = proc.process(pid).and_then(|dir| stand_in(&dir, pid)).ok() else { continue };
        let same =
            (namespace.id, namespace.pid_namespace) == (view.namespace.id, view.namespace.pid_namespace);
        let same_root = || proc.process(pid).and_then(|dir| dir.root_id()).is_ok_and(|id| id == root);
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
fn all_views(proc: &Proc, pids: &[Pid], hidden: &mut Vec<String>) -> Result<Vec<View>, ScanError> {
    let mut seen = HashSet::new();
    let mut views = Vec::new();
    let mut unreadable = 0_usize;
    let this = proc.reader();
    for &pid in pids.iter().filter(|pid| Some(**pid) != this) {
        let view = proc.process(pid).and_then(|dir| {
            let id = dir.mount_namespace()?;
            if seen.contains(&id) { Ok(None) } else { read_view(&dir, pid).map(Some) }
        });
        match view.map_err(|error| (absence(&error), error)) {
            Ok(None) | Err((Some(Absence::Gone), _)) => {}
            Ok(Some(view)) => {
                seen.insert(view.namespace.id);
                views.push(view);
            }
            Err((Some(Absence::NotVisible), _)) => unreadable += 1,
            Err((None, source)) => return Err(read_error(proc, &format!("{pid}/mountinfo"), source)),
        }
    }
    if this.is_some() {
        let own = own_view(proc, &[])?;
        if seen.insert(own.namespace.id) {
            views.push(own);
        }
    }
    if unreadable > 0 {
        hidden.push(format!("the mount namespaces of {}", processes(unreadable)));
    }
    Ok(views)
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
    })
}

impl Tables {
    fn add(&mut self, view: View) -> Result<(), ScanError> {
        let malformed = |source| ScanError::MountInfo { pid: view.namespace.process, source };
        let all: Vec<Line<'_>> = lines(&view.mountinfo).collect::<Result<_, _>>().map_err(malformed)?;
        if all.iter().any(Line::is_autofs) {
            let tree = Tree::new(&all);
            for line in &all {
                self.add_line(&view, line, &tree)?;
            }
        }
        if view.root.is_empty() {
            self.whole.insert(view.namespace.id);
        }
        self.namespaces.push(view.namespace);
        Ok(())
    }

    fn add_line(&mut self, view: &View, line: &Line<'_>, tree: &Tree<'_>) -> Result<(), ScanError> {
        let on_autofs = tree.is_on_autofs(line);
        if line.is_autofs() {
            self.add_autofs(view, line, tree).map_err(|cause| ScanError::Autofs {
                pid: view.namespace.process,
                mount_point: text(line.mount_point).to_string(),
                cause,
            })
        } else {
            if on_autofs {
                self.content.push(content(view, line));
            }
            Ok(())
        }
    }

    fn add_autofs(&mut self, view: &View, line: &Line<'_>, tree: &Tree<'_>) -> Result<(), String> {
        let device = line.device().ok_or("its device number makes no sense")?;
        self.add_superblock(device, view.depth, line)?;
        let mount = Mount {
            namespace: view.namespace.id,
            id: line.id,
            parent: line.parent,
            device,
            root: text(line.root),
            mount_point: text(line.mount_point),
            options: String::from_utf8_lossy(line.options).into_owned(),
            propagation: line.propagation(),
            source: text(line.source),
            within: tree.within(line),
            covers: tree.covers(line),
            buried: tree.is_buried(line),
            copy: None,
        };
        self.add_place(view, &mount);
        self.by_id.insert(mount.id, self.mounts.len());
        self.mounts.push(mount);
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
        let options = std::str::from_utf8(line.super_options).map_err(|error| error.to_string())?;
        let options = SuperOptions::parse(options).map_err(|error| error.to_string())?;
        if let KernelPipe::Inode(inode) = options.pipe {
            self.pipes.insert(inode);
        }
        vacant.insert(Instance { options, depth });
        Ok(())
    }

    fn add_place(&mut self, view: &View, mount: &Mount) {
        let place = mount.mount_point.as_bytes();
        if view.root.is_empty() {
            self.places.insert(hash(place));
        } else {
            self.moved.insert([&view.root, place].concat(), ());
        }
    }

    /// Whether a descriptor whose link reads so can be on the root of an autofs mount. On a mount that
    /// is detached, it reads as the root.
    pub fn can_be_control_fd(&self, link: &[u8]) -> bool {
        link == b"/" || self.places.contains(&hash(link)) || self.moved.contains_key(link)
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
