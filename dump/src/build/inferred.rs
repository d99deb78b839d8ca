//! Directories that cannot be seen but must be there: something is mounted on them or below.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::Mount;
use autofs_cr_common::model::{Device, TextPath};

/// Directories inside superblocks.
pub type Inferred = BTreeMap<Device, BTreeSet<TextPath>>;

/// The directories inside each superblock that its mounts tell of.
pub fn directories(report: &Report) -> Inferred {
    let mounts: HashMap<u64, &Mount> = report.mounts.iter().map(|mount| (mount.id, mount)).collect();
    let content = report.content.iter().map(|content| (content.parent, &content.mount_point));
    let nested = report.mounts.iter().map(|mount| (mount.parent, &mount.mount_point));
    let mut found = Inferred::new();
    for (parent, place) in content.chain(nested) {
        let Some(parent) = mounts.get(&parent) else { continue };
        for path in path_and_parents(parent, place) {
            found.entry(parent.device).or_default().insert(path);
        }
    }
    found
}

/// The path of a place inside the superblock of the mount that it is in, and of the directories above.
fn path_and_parents(parent: &Mount, place: &TextPath) -> Vec<TextPath> {
    let Ok(inside) = place.strip_prefix(&*parent.mount_point) else { return Vec::new() };
    // A bind mount shows less than the whole superblock.
    let shown = parent.root.strip_prefix("/").unwrap_or(&parent.root);
    let path = shown.join(inside);
    let whole = path.ancestors().filter(|path| !path.as_os_str().is_empty());
    whole.map(TextPath::from).collect()
}
