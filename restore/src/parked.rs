//! What a restore that was killed left parked: mounts that it had moved aside while it replaced what they were
//! on. The next restore moves them back.

use autofs_cr_common::model::TextPath;
use autofs_cr_common::proc::{Proc, mountinfo};
use autofs_cr_common::target::Target;

use crate::mounter::PARKING_SOURCE;

/// A place where mounts are parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parking {
    /// Where it is.
    pub mount_point: TextPath,
    /// What is parked there.
    pub mounts: Vec<Parked>,
    /// What covers superblocks whose content is parked.
    pub covers: Vec<Cover>,
}

/// An empty directory over an autofs mount whose content is parked: see [`crate::mounter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Its mount id.
    pub id: u64,
    /// Where it is.
    pub mount_point: TextPath,
}

/// A mount that is parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Its mount id.
    pub id: u64,
    /// Where it is.
    pub mount_point: TextPath,
    /// Where it was.
    pub was_at: TextPath,
}

/// Looks for parked mounts in the mount namespace of a process.
pub fn find(proc: &Proc, target: &Target) -> anyhow::Result<Vec<Parking>> {
    let text = proc.process(target.pid())?.mountinfo()?;
    let lines: Vec<_> = mountinfo::lines(&text).collect::<Result<_, _>>()?;
    let ours = lines.iter().filter(|line| line.source == PARKING_SOURCE.as_bytes());
    // A cover shows only a directory of it.
    let (parkings, covers): (Vec<&mountinfo::Line<'_>>, Vec<_>) = ours.partition(|line| line.root == b"/");
    parkings
        .into_iter()
        .map(|parking| {
            let parked = lines.iter().filter(|line| line.parent == parking.id);
            let mounts = parked.map(|line| examine(target, line.id, path(line.mount_point)));
            Ok(Parking {
                mount_point: path(parking.mount_point),
                mounts: mounts.collect::<std::io::Result<_>>()?,
                covers: covers.iter().filter(|line| line.device == parking.device).map(cover).collect(),
            })
        })
        .collect()
}

fn cover(line: &&mountinfo::Line<'_>) -> Cover {
    Cover { id: line.id, mount_point: path(line.mount_point) }
}

fn examine(target: &Target, id: u64, mount_point: TextPath) -> std::io::Result<Parked> {
    let mut link = mount_point.as_bytes().to_vec();
    link.extend_from_slice(b".was-at");
    let was_at = target.read_link(&TextPath::from_bytes(link))?;
    Ok(Parked { id, mount_point, was_at: TextPath::from_bytes(was_at) })
}

fn path(escaped: &[u8]) -> TextPath {
    TextPath::from_bytes(mountinfo::unescape(escaped).into_owned())
}
