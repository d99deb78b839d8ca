//! What is seen of the mounts, for many masters together: mountinfo has a line for each mount of all masters, so each
//! of them reading all of it would take the square of their number.
//!
//! The process that works on one master asks its parent for what came of its work. The parent answers many of them
//! from one look.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context;
use autofs_cr_common::channel::Channel;
use autofs_cr_common::model::{Device, SuperOptions};
use autofs_cr_common::proc::ProcessDir;
use autofs_cr_common::segment::Segment;
use autofs_cr_common::target::Target;
use serde::{Deserialize, Serialize};

use crate::ahead::Prepared;
use crate::live::{Process, find};
use crate::mounts;

/// About how many superblocks is asked at most: question and answer are messages with a limit.
const MOST_ASKED: usize = 256;

/// What the mounts are asked about, and what the kernel says of them.
pub type Question = Vec<Device>;

/// None for a superblock that is not mounted any more.
pub type Answer = Result<Vec<Option<SuperOptions>>, String>;

/// Where a process sees mounts: its mount namespace and root directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct View(u64, Vec<u8>);

/// What the parent sees.
#[derive(Debug, Default)]
pub struct Together {
    /// The view of each master that shares it with another one.
    views: HashMap<usize, View>,
    /// One of the masters with each view.
    targets: BTreeMap<View, Target>,
}

impl Together {
    /// Looks which of those masters see the same as others.
    pub fn look(segment: &Segment, masters: &[usize]) -> Self {
        let mut together = Self::default();
        if masters.len() < 2 {
            return together;
        }
        let mut count: BTreeMap<View, usize> = BTreeMap::new();
        for &master in masters {
            // Who cannot be seen is told of by the process that works on it.
            let Some(view) = find(&segment.masters()[master]).ok().and_then(|process| view(&process)) else {
                continue;
            };
            *count.entry(view.clone()).or_default() += 1;
            together.views.insert(master, view);
        }
        together.views.retain(|_, view| count[view] > 1);
        for (&master, view) in &together.views {
            if !together.targets.contains_key(view) {
                let target = find(&segment.masters()[master]).ok().and_then(|process| target(&process));
                together.targets.extend(target.map(|target| (view.clone(), target)));
            }
        }
        together
    }

    /// The view of a master, if others have it too.
    pub fn view(&self, master: usize) -> Option<&View> {
        self.views.get(&master)
    }

    /// A process with each view.
    pub fn targets(&self) -> impl Iterator<Item = (&View, &Target)> {
        self.targets.iter()
    }

    /// What the process that works on a master gets.
    pub fn of<'a>(
        &self,
        master: usize,
        prepared: Prepared,
        channel: &'a Channel,
        hears_steps: bool,
    ) -> Sight<'a> {
        let parent = self.views.contains_key(&master).then_some(channel);
        Sight { prepared, parent, listener: hears_steps.then_some(channel) }
    }

    /// Answers the questions of several masters, with one look for all that see the same.
    pub fn answer(&self, segment: &Segment, questions: &[(usize, Question)]) -> Vec<Answer> {
        let mut looks: BTreeMap<&View, Result<HashMap<Device, SuperOptions>, String>> = BTreeMap::new();
        let answer = |(master, question): &(usize, Question)| {
            let view = self.views.get(master).ok_or("its mounts are not known")?;
            let look = looks.entry(view).or_insert_with(|| {
                let same = questions.iter().filter(|(other, _)| self.views.get(other) == Some(view));
                let wanted = same.flat_map(|(_, question)| question).copied().collect();
                let process = find(&segment.masters()[*master]);
                let options = process.and_then(|process| mounts::options_of(process.dir(), &wanted));
                options.map_err(|error| format!("{error:#}"))
            });
            let found = look.as_ref().map_err(Clone::clone)?;
            Ok(question.iter().map(|device| found.get(device).cloned()).collect())
        };
        questions.iter().map(answer).collect()
    }
}

fn target(process: &Process) -> Option<Target> {
    let target = Target::open(process.pid()).ok()?;
    process.check_alive().ok()?;
    Some(target)
}

fn view(process: &Process) -> Option<View> {
    Some(View(process.dir().mount_namespace().ok()?, process.dir().root().ok()?))
}

/// What the process that works on one master sees.
#[derive(Debug, Default)]
pub struct Sight<'a> {
    /// What was done before for its master.
    pub prepared: Prepared,
    /// Who tells what is there now.
    parent: Option<&'a Channel>,
    /// Who wants to hear of every step.
    listener: Option<&'a Channel>,
}

/// What such a process says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said<T> {
    /// It asks.
    Question(Question),
    /// It has done so many steps since it said so last.
    Steps(usize),
    /// It is done.
    Done(T),
}

impl Sight<'_> {
    /// Tells that so many more superblocks are connected.
    pub fn step(&self, count: usize) {
        // Who does not listen any more is noticed later.
        let _ = self.listener.map(|listener| listener.send(&Said::<()>::Steps(count), &[]));
    }

    /// What the kernel says of superblocks now.
    pub fn now(
        &self,
        process: &ProcessDir,
        wanted: &HashSet<Device>,
    ) -> anyhow::Result<HashMap<Device, SuperOptions>> {
        let Some(parent) = self.parent.filter(|_| wanted.len() <= MOST_ASKED) else {
            return mounts::options_of(process, wanted);
        };
        let question: Question = wanted.iter().copied().collect();
        parent.send(&Said::<()>::Question(question.clone()), &[]).context("cannot ask about the mounts")?;
        let (answer, _) = parent.receive::<Answer>(None).context("no answer about the mounts")?;
        match answer {
            Ok(found) => Ok(question
                .into_iter()
                .zip(found)
                .filter_map(|(device, found)| Some((device, found?)))
                .collect()),
            // Who was asked about may have ended: then what this process sees is better than nothing.
            Err(_) => mounts::options_of(process, wanted),
        }
    }
}
