//! Asking the kernel what came of it: the results of single calls inside the master are not seen.

use anyhow::anyhow;
use autofs_cr_common::model::{KernelPipe, SuperOptions};
use autofs_cr_common::segment::Progress;
use nix::errno::Errno;

use super::{Expected, Live};

impl Live<'_> {
    /// Tells the segment which superblocks are connected, and gives up those that are not.
    pub(super) fn verify(&mut self, sent: Vec<Expected>) -> anyhow::Result<()> {
        if sent.is_empty() {
            return Ok(());
        }
        let mut connected = Vec::with_capacity(sent.len());
        for (one, problem) in self.problems(sent)? {
            match problem {
                None => connected.push(one.index),
                Some(error) => self.fail(one.index, &error)?,
            }
        }
        Ok(self.segment().advance_all(connected, Progress::Connected)?)
    }

    /// Tells the segment only which superblocks are connected, with their control fds.
    pub(super) fn keep_connected(&self, sent: Vec<Expected>) -> anyhow::Result<()> {
        for (one, problem) in self.problems(sent)? {
            let mut complete = problem.is_none();
            for &end in &one.controls {
                complete = complete && self.shows(end, one.device)?;
            }
            if complete {
                self.segment().advance(one.index, Progress::Connected)?;
            }
        }
        Ok(())
    }

    /// What is wrong with each superblock.
    fn problems(&self, sent: Vec<Expected>) -> anyhow::Result<Vec<(Expected, Option<anyhow::Error>)>> {
        let devices = sent.iter().map(|one| one.device).collect();
        let found = self.sight.now(self.process.dir(), &devices)?;
        let group = self.process.dir().stat().map_or(0, |stat| stat.group);
        let problems = sent.into_iter().map(|one| {
            let pipe = self.segment().superblocks()[one.index].pipe;
            let inode = self.pipes.get(pipe).and_then(Option::as_ref).map(|end| end.inode);
            let problem = problem(found.get(&one.device), inode, group);
            (one, problem)
        });
        Ok(problems.collect())
    }
}

/// What is wrong with a superblock that should be connected now.
fn problem(found: Option<&SuperOptions>, inode: Option<u64>, group: i32) -> Option<anyhow::Error> {
    let failed = |errno: Errno, why: String| Some(anyhow::Error::from(errno).context(why));
    let Some(found) = found else { return failed(Errno::ENOENT, "it is not mounted any more".into()) };
    match found.pipe {
        KernelPipe::None => failed(
            Errno::EINVAL,
            "the kernel did not take the pipe; mostly the superblock was made with a process group of another \
            pid namespace than that of the master"
                .into(),
        ),
        KernelPipe::Inode(other) if Some(other) != inode => {
            failed(Errno::EBUSY, format!("it has another pipe ({other}): someone else connected it"))
        }
        // A group that is not visible is 0.
        _ if found.pgrp > 0 && group > 0 && found.pgrp != group => Some(
            anyhow!(Errno::EPERM)
                .context(format!("its process group is {}, and the master's is {group}", found.pgrp)),
        ),
        KernelPipe::Inode(_) | KernelPipe::NotShown => None,
    }
}
