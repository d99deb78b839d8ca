//! The mounts in the order in which they have to be made.

use std::collections::HashMap;

use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::{image, report};
use autofs_cr_common::model::{Device, Propagation};

use super::Numbering;

/// The mounts of a report: a mount after the one that it is on, and what shows a part of a superblock
/// after what shows it all; among these the shallower first, then by path, so that the order is the
/// same whenever the state is.
pub fn ordered(report: &Report) -> Vec<image::Mount> {
    let mut order = Order::new(report);
    for at in order.by_place() {
        order.visit(at);
    }
    let mut groups = Numbering::default();
    order.done.iter().map(|&at| mount(&report.mounts[at], &mut groups)).collect()
}

struct Order<'a> {
    mounts: &'a [report::Mount],
    by_id: HashMap<u64, usize>,
    /// What the content is mounted on, by its id.
    content: HashMap<u64, u64>,
    /// The first mount by place that shows all of a superblock.
    whole: HashMap<Device, usize>,
    visited: Vec<bool>,
    done: Vec<usize>,
}

/// How deep a mount is, where, and how many mounts are below it on the same place.
type PlaceKey = (usize, Vec<u8>, usize);

impl<'a> Order<'a> {
    fn new(report: &'a Report) -> Self {
        let mounts = &report.mounts;
        Self {
            mounts,
            by_id: mounts.iter().enumerate().map(|(at, mount)| (mount.id, at)).collect(),
            content: report.content.iter().map(|content| (content.id, content.parent)).collect(),
            whole: HashMap::with_capacity(mounts.len()),
            visited: vec![false; mounts.len()],
            done: Vec::with_capacity(mounts.len()),
        }
    }

    /// All mounts by their place. Notes on the way what shows all of a superblock.
    fn by_place(&mut self) -> Vec<usize> {
        let mut by_place: Vec<usize> = (0..self.mounts.len()).collect();
        by_place.sort_by_cached_key(|&at| self.place(at));
        for &at in &by_place {
            if self.shows_all(at) {
                self.whole.entry(self.mounts[at].device).or_insert(at);
            }
        }
        by_place
    }

    fn shows_all(&self, at: usize) -> bool {
        self.mounts[at].root.as_bytes() == b"/"
    }

    fn place(&self, at: usize) -> PlaceKey {
        let path = self.mounts[at].mount_point.as_bytes();
        let depth = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).count();
        (depth, path.to_vec(), self.height(at))
    }

    /// How many mounts of the report are stacked below this one, on the same place.
    fn height(&self, at: usize) -> usize {
        let below = std::iter::successors(Some(at), |&at| self.parent(at)).take(self.mounts.len());
        below
            .skip(1)
            .take_while(|&below| self.mounts[below].mount_point == self.mounts[at].mount_point)
            .count()
    }

    /// The autofs mount that this one is on, with content between them or not.
    fn parent(&self, at: usize) -> Option<usize> {
        let parent = self.mounts[at].parent;
        let direct = self.by_id.get(&parent);
        direct.or_else(|| self.by_id.get(self.content.get(&parent)?)).copied().filter(|&parent| parent != at)
    }

    /// Takes a mount, and before it what it has to come after. Without recursion: a report decides how deep that goes.
    fn visit(&mut self, at: usize) {
        let mut open = vec![Step::Come(at)];
        while let Some(step) = open.pop() {
            match step {
                Step::Take(at) => self.done.push(at),
                Step::Come(at) if std::mem::replace(&mut self.visited[at], true) => {}
                Step::Come(at) => {
                    open.push(Step::Take(at));
                    let whole = self.whole.get(&self.mounts[at].device).filter(|_| !self.shows_all(at));
                    open.extend(whole.copied().map(Step::Come));
                    // The last one comes first.
                    open.extend(self.parent(at).map(Step::Come));
                }
            }
        }
    }
}

/// What is to be done with a mount.
enum Step {
    Come(usize),
    Take(usize),
}

fn mount(found: &report::Mount, groups: &mut Numbering) -> image::Mount {
    let Propagation { shared, slave_of, unbindable } = found.propagation;
    let propagation = Propagation {
        shared: shared.map(|group| groups.number(group)),
        slave_of: slave_of.map(|group| groups.number(group)),
        unbindable,
    };
    image::Mount {
        mount_point: found.mount_point.clone(),
        device: found.device,
        root: found.root.clone(),
        source: found.source.clone(),
        options: found.options.clone(),
        propagation,
        within: found.within,
        covers: found.covers,
    }
}
