//! What can go wrong with a segment.

use std::io;

use super::layout::LayoutError;
use super::locator::FOLDER;
use super::progress::{Outcome, Progress};
use crate::model::Pid;

/// Why a segment cannot be made, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// It cannot be made.
    #[error("cannot make a segment in {FOLDER}, which has to be a tmpfs that can be written to and has room")]
    Create {
        /// The cause.
        source: io::Error,
    },
    /// The plan does not fit into a segment.
    #[error("cannot publish the plan: {0}")]
    Plan(LayoutError),
    /// It cannot be opened.
    #[error("cannot open the segment {locator}")]
    Open {
        /// Where it should be.
        locator: String,
        /// The cause.
        source: io::Error,
    },
    /// Another than restore as this user made it, or can write to it.
    #[error("the segment {locator} is not to be trusted: {cause}")]
    Untrusted {
        /// Where it is.
        locator: String,
        /// What is wrong about it.
        cause: String,
    },
    /// Its bytes are wrong.
    #[error("the segment {locator} is not valid")]
    Layout {
        /// Where it is.
        locator: String,
        /// What is wrong.
        source: LayoutError,
    },
    /// It is not the one that the stage document means.
    #[error("the segment {locator} was made by process {found}, not by {expected}")]
    Other {
        /// Where it is.
        locator: String,
        /// Who made it.
        found: Pid,
        /// Who should have made it.
        expected: Pid,
    },
}

/// Why the progress of a superblock or of the restore cannot be read or changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProgressError {
    /// There is no such superblock.
    #[error("the segment has no superblock {0}")]
    NoSuperblock(usize),
    /// The step is not allowed.
    #[error("superblock {index} is {from} and cannot become {to}")]
    Step {
        /// Which superblock.
        index: usize,
        /// What it is.
        from: Progress,
        /// What it was to become.
        to: Progress,
    },
    /// The restore has ended already, in this way.
    #[error("the restore has already ended: {0:?}")]
    Ended(Outcome),
    /// The word means nothing.
    #[error("the segment was damaged: word {index} is {word:#x}")]
    Word {
        /// Which word.
        index: usize,
        /// What it is.
        word: u32,
    },
}

/// Why a master cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// There is no such master.
    #[error("the segment has no master {0}")]
    NoMaster(usize),
    /// Another fixup that lives has it.
    #[error("another fixup works on master {id}{}", process(.by))]
    Claimed {
        /// The id of the master.
        id: String,
        /// The fixup, in its own pid namespace, if it has left its id.
        by: Option<Pid>,
    },
    /// The lock cannot be taken.
    #[error("cannot lock master {id} in the segment")]
    Lock {
        /// The id of the master.
        id: String,
        /// The cause.
        source: io::Error,
    },
}

fn process(pid: &Option<Pid>) -> String {
    pid.as_ref().map(|pid| format!(" (process {pid})")).unwrap_or_default()
}
