//! What is wrong with a mount, and what repairs it.

use std::collections::BTreeMap;
use std::fmt;

use autofs_cr_common::advice::{self, shell_word};
use autofs_cr_common::doc::report::{CopyFault, Process, RunsIn};
use autofs_cr_common::masters::MasterKind;
use autofs_cr_common::model::{Pid, State, TextPath};

use crate::span::Span;
use crate::view::Row;
use crate::waiting::{self, Outlook};

/// What is wrong with a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble<'a> {
    /// Requests do not come to its master, or that cannot be told.
    NotServed(State),
    /// It is a copy, and what its master mounts does not come here.
    Copy(CopyFault),
    /// Its master has read a request, and not answered for so long.
    Unanswered(&'a Process, Span),
}

/// Says what is wrong with a mount, if anything is. An answer may take a while: only one that is not there after
/// `patience` is missed. What a later autofs mount covers is not asked any more: automount(8) mounts a new trigger over one
/// that it cannot use.
pub fn of<'a>(row: &Row<'a>, patience: Span) -> Option<Trouble<'a>> {
    let state = row.superblock.state;
    if row.is_covered() && row.waits().is_empty() {
        return None;
    }
    if state != State::Connected {
        // The state of a copy that nobody serves is told by what it is a copy of.
        let stale = row.mount.copy.filter(|fault| *fault == CopyFault::Stale);
        return Some(stale.map_or(Trouble::NotServed(state), Trouble::Copy));
    }
    row.mount.copy.map(Trouble::Copy).or_else(|| unanswered(row, patience))
}

fn unanswered<'a>(row: &Row<'a>, patience: Span) -> Option<Trouble<'a>> {
    let read = row.waits().into_iter().filter_map(|waiting| match (waiting.outlook, waiting.span) {
        (Outlook::Read(master), Some(span)) if span >= patience => Some((master, span)),
        _ => None,
    });
    read.max_by_key(|(_, span)| *span).map(|(master, span)| Trouble::Unanswered(master, span))
}

impl Trouble<'_> {
    /// What is wrong, in a few words.
    fn brief(self) -> &'static str {
        match self {
            Self::NotServed(state) => state.as_str(),
            Self::Copy(CopyFault::Severed) => {
                "severed (accesses fail with \"Too many levels of symbolic links\")"
            }
            Self::Copy(CopyFault::Stale) => "stale",
            Self::Unanswered(..) => "unanswered",
        }
    }

    /// What is wrong, for people.
    pub fn describe(self, row: &Row<'_>) -> String {
        match self {
            Self::NotServed(_) => row.superblock.reason.clone(),
            Self::Copy(CopyFault::Severed) => {
                "severed: what its master mounts does not appear in this copy; an access fails with \
                 \"Too many levels of symbolic links\""
                    .to_owned()
            }
            Self::Copy(CopyFault::Stale) => {
                format!("stale: a copy of a mount that its master has no more; {}", row.superblock.reason)
            }
            Self::Unanswered(master, span) => {
                let master = waiting::name(&master.command, master.pid);
                format!("unanswered: {master} has read a request and not answered for {span}")
            }
        }
    }

    /// What repairs it; `None` where nothing has to be repaired, or nobody can say what.
    pub fn repair(self, row: &Row<'_>) -> Option<Repair> {
        let place = row.elsewhere();
        match self {
            Self::NotServed(state @ (State::Orphaned | State::Catatonic)) => {
                let free = if !row.has_waits() { Free::No } else { Free::Orphans };
                let kind = MasterKind::of_source(&row.mount.source);
                let is_known = kind.restart(&[]).is_some();
                let then = match state {
                    _ if is_known => Then::Restart(kind),
                    State::Orphaned => Then::Replace,
                    _ => Then::Adopt,
                };
                Some(Repair { place, free, then })
            }
            Self::NotServed(_) => None,
            Self::Copy(_) => {
                let namespace = row.namespace().filter(|_| place.is_some());
                Some(Repair {
                    place,
                    free: Free::No,
                    then: Then::RenewCopy(namespace.map(|it| it.runs_in.clone())),
                })
            }
            Self::Unanswered(..) => Some(Repair { place, free: Free::Named, then: Then::Nothing }),
        }
    }
}

/// What repairs a mount.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repair {
    /// A process in the mount namespace of the mount, if that is another one.
    place: Option<Pid>,
    free: Free,
    then: Then,
}

/// Whether those who wait have to be freed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Free {
    /// Nobody waits.
    No,
    /// On mounts whose master is gone: what `autofs-fixup --free` finds by itself.
    Orphans,
    /// On mounts whose master lives, which have to be named.
    Named,
}

/// What is to be done when nobody waits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Then {
    /// Nothing: the mount is connected again.
    Nothing,
    /// Starting the master anew, by the command for its kind.
    Restart(MasterKind),
    /// Giving the mounts to a new master, as nobody knows how theirs is started.
    Replace,
    /// Connecting the mounts from an older image: that they are catatonic is all that a new one would tell.
    Adopt,
    /// Giving a copy of the mount that works to what runs in the namespace.
    RenewCopy(Option<RunsIn>),
}

/// How many mounts are named before the command is given without names.
const MOST_NAMED: usize = 8;

impl Repair {
    /// What to type for these mounts, of which a command takes all.
    pub fn command(&self, mount_points: &[&TextPath]) -> String {
        let free = |place| match self.free {
            Free::No => None,
            Free::Orphans if mount_points.len() > MOST_NAMED => Some(advice::free(place, &[])),
            Free::Orphans | Free::Named => Some(advice::free(place, mount_points)),
        };
        if self.then == Then::Replace {
            return in_place(self.place, &replace(mount_points, free(None)));
        }
        let steps = free(self.place).into_iter().chain(self.then.command(self.place, mount_points));
        steps.collect::<Vec<_>>().join("; ")
    }
}

/// Gives mounts to a new master. What is freed is catatonic, and an image of it would say so: the image is made before.
fn replace(mount_points: &[&TextPath], free: Option<String>) -> String {
    let paths = mount_points.iter().map(|path| format!(" {}", shell_word(path.as_bytes())));
    let dump = format!("autofs-dump{}", paths.collect::<String>());
    let fixup = "autofs-fixup -i - --exec -- DAEMON";
    match free {
        None => format!("{dump} | autofs-restore | {fixup}"),
        Some(free) => format!("{dump} > IMAGE; {free}; autofs-restore -i IMAGE | {fixup}"),
    }
}

/// Commands for a shell where a process is: a new master has to live there.
fn in_place(place: Option<Pid>, commands: &str) -> String {
    match place {
        None => commands.to_owned(),
        Some(_) => advice::at(place, &format!("sh -c {}", shell_word(commands.as_bytes()))),
    }
}

impl Then {
    fn command(&self, place: Option<Pid>, mount_points: &[&TextPath]) -> Option<String> {
        match self {
            Self::Nothing | Self::Replace => None,
            Self::Restart(kind) => kind.restart(mount_points).map(|command| advice::at(place, &command)),
            Self::Adopt => {
                let target = place.map(|pid| format!(" -p {pid}")).unwrap_or_default();
                Some(format!(
                    "autofs-restore{target} -i IMAGE | autofs-fixup (IMAGE: an autofs-dump from before)"
                ))
            }
            Self::RenewCopy(runs_in) => Some(renew_copy(runs_in.as_ref())),
        }
    }
}

/// What gives another mount namespace a copy that works.
fn renew_copy(runs_in: Option<&RunsIn>) -> String {
    match runs_in.map(|runs_in| (&runs_in.container, &runs_in.unit)) {
        Some((Some(container), _)) => {
            format!("bind it into container {container} with rslave propagation, and start that anew")
        }
        Some((None, Some(unit))) => format!("systemctl restart {}", shell_word(unit.as_bytes())),
        _ => "unmount it, and bind it again with rslave propagation".to_owned(),
    }
}

/// What repairs several mounts, by what is wrong with them.
pub struct Repairs<'a>(BTreeMap<(&'static str, Repair), Vec<&'a TextPath>>);

impl<'a> Repairs<'a> {
    /// Collects what repairs the mounts that are not well.
    pub fn of(rows: impl Iterator<Item = Row<'a>>, patience: Span) -> Self {
        let mut repairs = Self(BTreeMap::new());
        for row in rows {
            let Some(trouble) = of(&row, patience) else { continue };
            let Some(repair) = trouble.repair(&row) else { continue };
            repairs.0.entry((trouble.brief(), repair)).or_default().push(&row.mount.mount_point);
        }
        repairs
    }

    /// A line for each command, with the mounts that it is for. A command that would name too many names the first, and
    /// ends with dots.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|((brief, repair), mount_points)| {
            let named = Named(mount_points);
            let whole = repair.command(mount_points);
            match mount_points.len() > MOST_NAMED && whole != repair.command(&[]) {
                false => format!("{named}: {brief}; to repair: {whole}"),
                true => {
                    let some = repair.command(&mount_points[..MOST_NAMED]);
                    format!("{named}: {brief}; to repair: {some} ...")
                }
            }
        })
    }
}

/// Some mounts, the first by name.
struct Named<'a>(&'a [&'a TextPath]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if self.0.len() > MOST_NAMED { 3 } else { self.0.len() };
        for (at, mount_point) in self.0.iter().take(shown).enumerate() {
            write!(f, "{}{mount_point}", if at == 0 { "" } else { ", " })?;
        }
        match self.0.len() - shown {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
