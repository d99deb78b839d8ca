//! Connecting opened superblocks inside a session.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;

use anyhow::{Context, bail};
use autofs_cr_common::doc::image::End;
use autofs_cr_common::sys::autofs::{
    CATATONIC_REQUEST, SETPIPEFD_REQUEST, catatonic_argument, setpipefd_argument,
};

use super::{Expected, Live, Opened, STEP};
use crate::remote::{Batch, Data, Received, Session};

/// Where the numbers are in the argument of SETPIPEFD: the mount, the pipe.
const MOUNT_AT: usize = 12;
const PIPE_AT: usize = 16;

/// What stands there until the numbers are known.
const UNKNOWN: i32 = -1;

/// The most superblocks of one batch: each brings a descriptor, and there are those of the device and of the pipes.
const AT_ONCE: usize = 245;

impl Live<'_> {
    /// Has the master set the pipes of all superblocks, and point its control fds to them. It works on one batch while
    /// the next one is made, and the descriptors of the one before are closed.
    pub(super) fn send(
        &self,
        session: &mut Session<'_>,
        opened: Vec<Opened>,
        sent: &mut Vec<Expected>,
    ) -> anyhow::Result<()> {
        sent.extend(opened.iter().map(Expected::from));
        let mut rest = opened.into_iter();
        let mut count = AT_ONCE;
        let mut before: Option<Vec<Opened>> = None;
        while !rest.as_slice().is_empty() {
            let part = &rest.as_slice()[..count.min(rest.len())];
            let batch = self.batch(part)?;
            let fits = batch.received() <= session.descriptors() && batch.size() <= session.room();
            if !fits && part.len() > 1 {
                count = (part.len() * 3 / 4).max(1);
                continue;
            }
            let taken = part.len();
            while !session.send(&batch)? {
                let before = before.take().context("a batch is too large for a socket")?;
                self.finish(session, &before)?;
            }
            let part = rest.by_ref().take(taken).collect();
            if let Some(before) = before.replace(part) {
                self.finish(session, &before)?;
            }
        }
        before.map_or(Ok(()), |last| self.finish(session, &last))
    }

    /// Waits until the master has made the calls for these superblocks.
    fn finish(&self, session: &mut Session<'_>, part: &[Opened]) -> anyhow::Result<()> {
        session.wait(self.watch.step(STEP))?;
        self.sight.step(part.len());
        self.check_controls(part)
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
