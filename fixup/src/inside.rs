//! Opening mounts from inside another process: the walks of a mount's own process group never wait there,
//! where those of all others block while a request is pending.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use autofs_cr_common::model::{Device, TextPath};
use autofs_cr_common::sys::autofs::{ControlDevice, OPENED_AT, OPENMOUNT_REQUEST, openmount_argument};
use nix::errno::Errno;

use crate::remote::{Batch, Data, Session};
use crate::root::{Kind, kind};

/// How many mounts are opened at once: what is opened waits in the socket until the engine takes it.
const AT_ONCE: usize = 32;

/// Has a process open mounts at places that it can walk to without waiting, and hand them over. In the
/// process nothing stays open.
pub fn open(
    session: &mut Session<'_>,
    device: &ControlDevice,
    wanted: &[(&TextPath, Device)],
    deadline: Instant,
) -> anyhow::Result<Vec<Result<OwnedFd, Errno>>> {
    let mut all = Vec::with_capacity(wanted.len());
    let mut count = AT_ONCE;
    while all.len() < wanted.len() {
        let rest = &wanted[all.len()..];
        let part = &rest[..count.min(rest.len())];
        let batch = batch(device, part)?;
        if batch.size() > session.room() && part.len() > 1 {
            count = part.len() / 2;
            continue;
        }
        let opened = session.run(&batch, deadline)?;
        all.extend(part.iter().zip(opened).map(|((_, device), root)| check(root, *device)));
    }
    Ok(all)
}

fn batch<'a>(device: &'a ControlDevice, wanted: &[(&TextPath, Device)]) -> anyhow::Result<Batch<'a>> {
    let mut batch = Batch::new();
    let control = batch.receive(device.as_fd());
    for (place, number) in wanted {
        let argument = openmount_argument(&CString::new(place.as_bytes())?, *number);
        batch.open(control, OPENMOUNT_REQUEST, Data::new(argument), OPENED_AT);
    }
    Ok(batch)
}

/// Only what is the mount that was asked for.
fn check(root: Option<OwnedFd>, device: Device) -> Result<OwnedFd, Errno> {
    let root = root.ok_or(Errno::ENOENT)?;
    match kind(&root) {
        Ok(Kind::Autofs(found)) if found == device => Ok(root),
        _ => Err(Errno::ESTALE),
    }
}
