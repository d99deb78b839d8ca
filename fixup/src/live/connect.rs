//! Connecting opened superblocks inside a session.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;

use anyhow::bail;
use autofs_cr_common::doc::image::End;
use autofs_cr_common::sys::autofs::{
    CATATONIC_REQUEST, SETPIPEFD_REQUEST, catatonic_argument, setpipefd_argument,
};

use super::{Live, Opened, STEP};
use crate::remote::{Batch, Data, Received, Session};

/// Where the numbers are in the argument of SETPIPEFD: the mount, the pipe.
const MOUNT_AT: usize = 12;
const PIPE_AT: usize = 16;

/// What stands there until the numbers are known.
const UNKNOWN: i32 = -1;

/// The most superblocks of one batch: each brings a descriptor, and there are those of the device and of the pipes.
const AT_ONCE: usize = 245;

impl Live<'_> {
    /// Has the master set the pipes of all superblocks, and point its control fds to them.
    pub(super) fn send(&self, session: &mut Session<'_>, opened: &[Opened]) -> anyhow::Result<()> {
        let mut rest = opened;
        let mut count = AT_ONCE;
        while !rest.is_empty() {
            let part = &rest[..count.min(rest.len())];
            let batch = self.batch(part)?;
            let fits = batch.received() <= session.descriptors() && batch.size() <= session.room();
            if !fits && part.len() > 1 {
                count = (part.len() * 3 / 4).max(1);
                continue;
            }
            session.run(&batch, self.watch.step(STEP))?;
            self.sight.step(part.len());
            self.check_controls(part)?;
            rest = &rest[part.len()..];
        }
        Ok(())
    }

    /// Whether the master can make the calls that connect what restore makes when its control fds were let go of: an
    /// error later would come too late. Any descriptors stand for those that are not there yet.
    pub(super) fn check_calls(
        &self,
        session: &Session<'_>,
        held: &BTreeMap<usize, Vec<End>>,
    ) -> anyhow::Result<()> {
        for controls in held.values() {
            let mut batch = Batch::new();
            let [device, pipe, root] = [(); 3].map(|()| batch.receive(self.device.as_fd()));
            connect(&mut batch, device, pipe, root, controls);
            session.check(&batch)?;
        }
        Ok(())
    }

    fn batch<'b>(&'b self, part: &'b [Opened]) -> anyhow::Result<Batch<'b>> {
        let mut batch = Batch::new();
        let device = batch.receive(self.device.as_fd());
        let mut pipes: HashMap<usize, Received> = HashMap::new();
        for one in part {
            let number = self.segment().superblocks()[one.index].pipe;
            let Some(Some(pipe)) = self.pipes.get(number) else { bail!("pipe {number} is not open") };
            let pipe = *pipes.entry(number).or_insert_with(|| batch.receive(pipe.fd.as_fd()));
            let root = batch.receive(one.root.as_fd());
            connect(&mut batch, device, pipe, root, &one.controls);
        }
        Ok(batch)
    }

    fn check_controls(&self, part: &[Opened]) -> anyhow::Result<()> {
        for one in part {
            for &end in &one.controls {
                if !self.shows(end, one.device)? {
                    bail!("its control fd {} could not be pointed to {}", end.fd, one.device);
                }
            }
        }
        Ok(())
    }
}

/// The calls that connect a superblock.
fn connect(batch: &mut Batch<'_>, device: Received, pipe: Received, root: Received, controls: &[End]) {
    // By the same batch, so that nobody can end in between: without a pipe nothing is served.
    let argument = Data::new(catatonic_argument(UNKNOWN)).with_number(MOUNT_AT, root);
    batch.ioctl(device, CATATONIC_REQUEST, argument);
    let argument = Data::new(setpipefd_argument(UNKNOWN, UNKNOWN))
        .with_number(MOUNT_AT, root)
        .with_number(PIPE_AT, pipe);
    batch.ioctl(device, SETPIPEFD_REQUEST, argument);
    for end in controls {
        batch.replace(end.fd, root, end.flags.cloexec);
    }
}
