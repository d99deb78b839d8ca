//! Opening the mounts of many masters by one child, where they see the same and have few each: to start a child for each of
//! them would be much of the work.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use autofs_cr_common::proc::Proc;
use autofs_cr_common::segment::{Progress, Segment};
use autofs_cr_common::sys::autofs::ControlDevice;
use nix::errno::Errno;

use crate::expires::Expires;
use crate::opener::{AT_ONCE, Opener, Places, Wanted};
use crate::sight::{Together, View};
use crate::watch::select;

/// How long the mounts of one master may take. All others wait meanwhile.
const PATIENCE: Duration = Duration::from_millis(200);

/// What is done for a master before a process works on it.
#[derive(Debug, Default)]
pub struct Prepared {
    /// A look at all expires.
    pub expires: Option<Expires>,
    /// Roots of its superblocks, by their index in the segment. Those that are missing are opened by that process.
    pub roots: HashMap<usize, OwnedFd>,
}

/// Prepares one master after the other.
pub struct Ahead<'a> {
    together: &'a Together,
    segment: &'a Segment,
    openers: HashMap<&'a View, Opener<'a>>,
    expires: Option<Expires>,
}

impl<'a> Ahead<'a> {
    /// For those masters that see the same as others.
    pub fn new(together: &'a Together, segment: &'a Segment, device: &'a ControlDevice) -> Self {
        let opener = |target| Opener::new(Places::Segment(segment), device, Some(target)).hasty(PATIENCE);
        let openers = together.targets().map(|(view, target)| (view, opener(target))).collect();
        Self { together, segment, openers, expires: None }
    }

    /// Prepares a master. What fails here is tried again by the process that works on it, which tells why it fails.
    pub fn prepare(&mut self, master: usize) -> Prepared {
        let Some(view) = self.together.view(master) else { return Prepared::default() };
        if !self.expires.as_ref().is_some_and(Expires::stays_good) {
            self.expires = Proc::open().and_then(|proc| Expires::look(&proc)).ok();
        }
        Prepared { expires: self.expires.clone(), roots: self.roots(view, master).unwrap_or_default() }
    }

    /// None where nobody is to be tried any more, as something blocked.
    fn roots(&mut self, view: &View, master: usize) -> Option<HashMap<usize, OwnedFd>> {
        let wanted = self.wanted(master)?;
        let opener = self.openers.get_mut(view)?;
        opener.renew(self.expires.clone());
        let opened = opener.open_together(&wanted).unwrap_or_default();
        if opened.is_empty() || opened.iter().any(|root| matches!(root, Err(Errno::ETIMEDOUT))) {
            self.openers.remove(view);
        }
        let opened = wanted.iter().zip(opened);
        Some(opened.filter_map(|((index, _), root)| Some((*index, root.ok()?))).collect())
    }

    /// The superblocks that are made, by the number that is recorded; none if they are more than come at once.
    fn wanted(&self, master: usize) -> Option<Vec<Wanted>> {
        let made = select(self.segment, master, |progress| progress == Progress::Created).ok()?;
        let superblocks = self.segment.superblocks();
        let plain = made.into_iter().filter(|&index| superblocks[index].control_fds.is_empty());
        let wanted: Vec<Wanted> = plain.map(|index| (index, superblocks[index].device)).collect();
        (1..=AT_ONCE).contains(&wanted.len()).then_some(wanted)
    }
}
