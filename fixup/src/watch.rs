//! Watching over the restore while its segment is worked on.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use autofs_cr_common::segment::{Claim, ClaimError, Outcome, Progress, Segment};
use nix::errno::Errno;

/// How often the life of the restore and of another fixup is looked at: their death changes nothing in the segment.
const LOOK: Duration = Duration::from_millis(200);

/// The least time that is given: the restore's clock may be another one (in a time namespace).
const LEAST: Duration = Duration::from_secs(5);

/// The segment, with a deadline.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    /// The segment.
    pub segment: &'a Segment,
    /// When to give up.
    pub deadline: Instant,
}

impl<'a> Watch<'a> {
    /// For the time that was asked for, or as long as the restore waits.
    pub fn new(segment: &'a Segment, timeout: Option<Duration>) -> Self {
        let time = timeout.unwrap_or_else(|| segment.time_left().max(LEAST));
        Self { segment, deadline: Instant::now() + time }
    }

    /// Whether the restore goes on; the error says how it ended.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.segment.outcome()? {
            Outcome::Finished => bail!("the restore that made this segment has finished"),
            Outcome::Failed => bail!("the restore that made this segment has failed, and undoes what it did"),
            Outcome::Running => {}
        }
        let lives = self.segment.coordinator_lives().context("cannot look at the locks of the segment")?;
        if !lives {
            bail!(
                "the restore that made this segment is gone (process {} was killed): run it again",
                self.segment.coordinator().pid
            );
        }
        Ok(())
    }

    /// Waits until something changed since `seen`, but not for long.
    pub fn wait(&self, seen: u32) -> anyhow::Result<()> {
        if self.is_over() {
            return Err(Errno::ETIMEDOUT).context("the restore did not make the mounts in time");
        }
        self.pause(seen)
    }

    /// Waits for its turn to work on a master: only one fixup does at a time. None if that one has left nothing to
    /// do; `told` is called once if there is one.
    pub fn claim(&self, master: usize, told: impl Fn(&ClaimError)) -> anyhow::Result<Option<Claim<'a>>> {
        let mut told = Some(told);
        loop {
            let seen = self.segment.wake_value();
            // Before the look at restore, which may have ended since the last one was connected.
            if select(self.segment, master, |progress| !progress.is_final())?.is_empty() {
                return Ok(None);
            }
            self.check()?;
            match self.segment.claim(master) {
                Ok(claim) => return Ok(Some(claim)),
                Err(error @ ClaimError::Claimed { .. }) if !self.is_over() => {
                    told.take().inspect(|told| told(&error));
                }
                Err(error) => return Err(error.into()),
            }
            self.pause(seen)?;
        }
    }

    fn pause(&self, seen: u32) -> anyhow::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.segment.wait(seen, left.min(LOOK)).context("cannot wait for the segment")?;
        Ok(())
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// The deadline of a step that takes at most this long.
    pub fn step(&self, most: Duration) -> Instant {
        self.deadline.min(Instant::now() + most)
    }
}

/// The superblocks of a master in a state that `wanted` picks.
pub fn select(
    segment: &Segment,
    master: usize,
    wanted: impl Fn(Progress) -> bool,
) -> anyhow::Result<Vec<usize>> {
    let mut found = Vec::new();
    for (index, _) in segment.superblocks_of(master) {
        if wanted(segment.progress(index)?) {
            found.push(index);
        }
    }
    Ok(found)
}

/// Marks superblocks as failed. Restore may have given one up at the same time, which is as good.
pub fn give_up(
    segment: &Segment,
    indices: impl IntoIterator<Item = usize>,
    errno: Errno,
) -> anyhow::Result<()> {
    let failed = Progress::Failed(errno);
    let lost = |index: &usize| !matches!(segment.progress(*index), Ok(Progress::Failed(_)));
    let indices: Vec<usize> = indices.into_iter().collect();
    match segment.advance_all(indices.iter().copied(), failed) {
        Err(error) if indices.iter().any(lost) => Err(error.into()),
        _ => Ok(()),
    }
}
