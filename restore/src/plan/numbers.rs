//! Which device numbers are free, or become so when old superblocks are unmounted.

use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use autofs_cr_common::advice::{self, shell_word};
use autofs_cr_common::doc::image::Image;
use autofs_cr_common::masters::MasterKind;
use autofs_cr_common::model::{Device, Pid, TextPath};

use super::there::There;
use super::{Item, Old, PlanError};

/// The device numbers that mounts anywhere on the host have.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Those that any mount has, with a word on where.
    pub taken: HashMap<Device, Seen>,
    /// The autofs mounts in other mount namespaces than the target's.
    pub copies: Vec<Elsewhere>,
}

/// An autofs mount in another mount namespace than the target's.
#[derive(Debug)]
pub struct Elsewhere {
    /// Its superblock.
    pub device: Device,
    /// Where, and by whom it is seen.
    pub seen: Seen,
    /// It goes with the target's mount when that is unmounted, if nothing is inside it by then.
    pub is_reached: bool,
    /// What is mounted on it.
    pub on_it: Vec<OnIt>,
}

/// What is mounted on a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnIt {
    /// Another one of the copies, by index.
    Copy(usize),
    /// Something else, at its root.
    Over,
    /// Something else, at another place inside.
    Inside,
}

/// Where a mount is seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Where it is, for who sees it.
    pub place: TextPath,
    /// Who sees it.
    pub who: Rc<Who>,
}

/// A process, for a message.
#[derive(Clone, Debug)]
pub struct Who {
    /// Its name and id.
    pub process: String,
    /// The unit of systemd that it is in.
    pub unit: Option<String>,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, who } = self;
        let Who { process, unit } = &**who;
        let of = unit.as_ref().map(|unit| format!(" of {unit}")).unwrap_or_default();
        write!(f, "{place} (seen by {process}{of})")
    }
}

impl Numbers {
    /// A copy of a superblock that has to go and stays, although the `old` ones are unmounted in the target's
    /// mount namespace.
    fn staying(&self, device: Device, old: &HashMap<Device, &Old>) -> Option<&Elsewhere> {
        self.copies.iter().find(|copy| copy.device == device && !self.goes(copy, old))
    }

    fn goes(&self, copy: &Elsewhere, old: &HashMap<Device, &Old>) -> bool {
        let Some(of) = old.get(&copy.device) else { return false };
        let is_no_hindrance = |on_it: &OnIt| match on_it {
            OnIt::Copy(at) => self.copies.get(*at).is_some_and(|inner| self.goes(inner, old)),
            // The kernel puts it onto what the copy was on, and the new mount below it. A copy of the content
            // would stay there for ever, as content is moved over in the target's namespace only.
            OnIt::Over => of.content.is_empty(),
            OnIt::Inside => false,
        };
        copy.is_reached && copy.on_it.iter().all(is_no_hindrance)
    }
}

/// Whether the device numbers of new superblocks are free, or become so.
pub(super) fn check(
    image: &Image,
    items: &[Item],
    everywhere: &Numbers,
    there: &There<'_>,
) -> Result<(), PlanError> {
    let old = items.iter().filter_map(|item| item.old.as_ref());
    let freed: HashMap<Device, &Old> = old.map(|old| (old.device, old)).collect();
    for (superblock, item) in image.superblocks.iter().zip(items) {
        let device = superblock.device;
        let staying = item.old.as_ref().and_then(|old| Some((old, everywhere.staying(old.device, &freed)?)));
        if let Some((old, copy)) = staying {
            let kind = superblock.master.as_deref().and_then(|id| image.master(id)).map(|master| master.kind);
            let target = there.report.namespaces.first().map(|namespace| namespace.process);
            let advice = let_go(old, copy, kind.unwrap_or(MasterKind::Unknown), target);
            return Err(PlanError::Elsewhere { device: old.device, what: copy.seen.to_string(), advice });
        }
        let wanted = item.action.makes() && item.keeps_device && !freed.contains_key(&device);
        if let Some(what) = everywhere.taken.get(&device).filter(|_| wanted) {
            return Err(PlanError::DeviceTaken { device, what: what.to_string() });
        }
    }
    Ok(())
}

/// How many places a command in a message names at most. Who has unmounted these is told of the next.
const MOST_PLACES: usize = 4;

/// What the user can do, so that a copy of an old superblock does not stay.
fn let_go(old: &Old, copy: &Elsewhere, kind: MasterKind, target: Option<Pid>) -> String {
    let stop = match &copy.seen.who.unit {
        Some(unit) => format!("stop {unit}"),
        None => "end that process".to_owned(),
    };
    if old.content.is_empty() || !copy.is_reached {
        return stop;
    }
    let command = if kind == MasterKind::Systemd { "systemctl stop" } else { "umount" };
    // What was mounted later may be on what was mounted before.
    let places = old.content.iter().rev().take(MOST_PLACES);
    let words = places.map(|content| format!(" {}", shell_word(content.mount_point.as_bytes())));
    let unmount = advice::at(target, &format!("{command}{}", words.collect::<String>()));
    format!("unmount what is on it first, which unmounts it there too ({unmount}), or {stop}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Content;

    const OUTER: Device = Device::anonymous(50);
    const INNER: Device = Device::anonymous(51);

    fn copy(device: Device, is_reached: bool, on_it: &[OnIt]) -> Elsewhere {
        let who = Who { process: "sleep[2]".to_owned(), unit: Some("a.service".to_owned()) };
        let seen = Seen { place: TextPath::from_bytes(b"/data".to_vec()), who: Rc::new(who) };
        Elsewhere { device, seen, is_reached, on_it: on_it.to_vec() }
    }

    fn old(device: Device, content: &[&str]) -> Old {
        let content = content
            .iter()
            .zip(1..)
            .map(|(place, id)| Content { id, mount_point: TextPath::from_bytes(place.as_bytes().to_vec()) });
        Old { device, mounts: Vec::new(), content: content.collect() }
    }

    /// Whether a copy of the outer superblock stays.
    fn stays(copies: Vec<Elsewhere>, old: &[Old]) -> bool {
        let numbers = Numbers { taken: HashMap::new(), copies };
        let old = old.iter().map(|old| (old.device, old)).collect();
        numbers.staying(OUTER, &old).is_some()
    }

    #[test]
    fn a_copy_stays_where_it_is_not_reached_or_something_is_inside() {
        let idle = [old(OUTER, &[])];
        assert!(!stays(vec![copy(OUTER, true, &[])], &idle));
        assert!(stays(vec![copy(OUTER, true, &[]), copy(OUTER, false, &[])], &idle));
        assert!(stays(vec![copy(OUTER, true, &[OnIt::Inside])], &idle));
        assert!(!stays(vec![copy(INNER, false, &[])], &idle));
    }

    #[test]
    fn what_is_over_a_copy_keeps_it_only_if_it_may_be_the_content() {
        assert!(!stays(vec![copy(OUTER, true, &[OnIt::Over])], &[old(OUTER, &[])]));
        assert!(stays(vec![copy(OUTER, true, &[OnIt::Over])], &[old(OUTER, &["/data"])]));
    }

    #[test]
    fn a_copy_goes_after_the_copies_inside_that_go() {
        let copies = |inner| vec![copy(OUTER, true, &[OnIt::Copy(1)]), copy(INNER, inner, &[])];
        assert!(!stays(copies(true), &[old(OUTER, &[]), old(INNER, &[])]));
        assert!(stays(copies(false), &[old(OUTER, &[]), old(INNER, &[])]));
        assert!(stays(copies(true), &[old(OUTER, &[])]), "the inner one is not replaced");
    }

    #[test]
    fn the_user_is_told_what_to_unmount_or_to_stop() {
        let advice = |content: &[&str], is_reached, kind| {
            let target = Some(Pid::this());
            let_go(&old(OUTER, content), &copy(OUTER, is_reached, &[]), kind, target)
        };
        assert_eq!(advice(&[], true, MasterKind::Systemd), "stop a.service");
        assert_eq!(advice(&["/data"], false, MasterKind::Systemd), "stop a.service");
        assert!(
            advice(&["/data", "/data/b c"], true, MasterKind::Systemd)
                .contains("(systemctl stop '/data/b c' /data), or stop a.service")
        );
        assert!(advice(&["/ind/a"], true, MasterKind::Automount).contains("(umount /ind/a), or stop"));
    }
}
