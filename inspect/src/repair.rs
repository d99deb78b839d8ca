//! The command that repairs a mount. Each is one that a shell takes as it is shown: its steps are joined by `&&`, so that
//! nothing goes on after a step that failed.

use std::path::PathBuf;

use autofs_cr_common::advice::{self, Force, shell_word};
use autofs_cr_common::doc::report::{CopyFault, Halt, Process, WaiterRole};
use autofs_cr_common::masters::MasterKind;
use autofs_cr_common::model::{MountType, Pid, State, TextPath};

use crate::frozen;
use crate::repairs::MOST_NAMED;
use crate::trouble::{self, Trouble};
use crate::view::Row;

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
    Orphans(Force),
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
    /// Having the unit that has a copy start anew, as that gives it a new one.
    RestartUnit(TextPath),
    /// The same, after it was told to have what its master mounts propagated to it.
    LinkUnit(TextPath),
    /// Having the master go on that a signal stopped.
    Continue(Pid),
    /// Having a frozen control group go on.
    Thaw(PathBuf),
}

/// What repairs what is wrong with a mount; `None` where nothing has to be repaired, or no command does it.
pub fn of(trouble: Trouble<'_>, row: &Row<'_>) -> Option<Repair> {
    let (free, then) = match trouble {
        Trouble::NotServed(state @ (State::Orphaned | State::Catatonic)) => {
            let free = if row.has_waits() { Free::Orphans(force(row)) } else { Free::No };
            (free, without_master(row, state))
        }
        Trouble::NotServed(_) => return None,
        Trouble::Halted(master, halt) => (Free::No, go_on(master, halt)?),
        Trouble::Unread(master, _) => match master.halt {
            Some(halt) => (Free::No, go_on(master, halt)?),
            None => (Free::Named, restart_if_possible(master)),
        },
        Trouble::Copy(fault) => (Free::No, renew_copy(fault, row)?),
        Trouble::Unanswered(..) => (Free::Named, Then::Nothing),
    };
    let place = match then {
        // A unit of this machine, whatever mount namespace it has.
        Then::RestartUnit(_) | Then::LinkUnit(_) if !is_in_container(row) => None,
        _ => row.elsewhere(),
    };
    Some(Repair { place, free, then })
}

fn is_in_container(row: &Row<'_>) -> bool {
    row.namespace().is_some_and(|namespace| namespace.runs_in.container.is_some())
}

fn without_master(row: &Row<'_>, state: State) -> Then {
    let kind = MasterKind::of_source(&row.mount.source);
    match state {
        _ if kind.restart(&[]).is_some() => Then::Restart(kind),
        State::Orphaned => Then::Replace,
        _ => Then::Adopt,
    }
}

/// Nobody can walk to a direct mount while who asked first waits there, but a process of the mount's group: where its
/// master is not process 1, there is most often none any more.
fn force(row: &Row<'_>) -> Force {
    let is_indirect = row.superblock.options.mount_type == MountType::Indirect;
    let has_member = MasterKind::of_source(&row.mount.source) == MasterKind::Systemd;
    let asked = |role| matches!(role, WaiterRole::First | WaiterRole::Unknown);
    let is_blocked = row.all_waits().any(|waiting| asked(waiting.waiter.role));
    if is_blocked && !is_indirect && !has_member { Force::Kill } else { Force::No }
}

fn go_on(master: &Process, halt: Halt) -> Option<Then> {
    match halt {
        Halt::Stopped => Some(Then::Continue(master.pid)),
        Halt::Frozen => frozen::group(master.pid).map(Then::Thaw),
        // Only the tracer knows why.
        Halt::Traced => None,
    }
}

/// One that does not read may have come to an end of its own.
fn restart_if_possible(master: &Process) -> Then {
    let can_be = master.kind.can_be_started() && master.kind.restart(&[]).is_some();
    if can_be { Then::Restart(master.kind) } else { Then::Nothing }
}

fn renew_copy(fault: CopyFault, row: &Row<'_>) -> Option<Then> {
    let runs_in = &row.elsewhere().and(row.namespace())?.runs_in;
    let unit = runs_in.unit.clone().filter(|unit| trouble::is_service(Some(unit)))?;
    Some(match fault {
        CopyFault::Severed => Then::LinkUnit(unit),
        CopyFault::Stale => Then::RestartUnit(unit),
    })
}

impl Repair {
    /// What to type for these mounts, of which a command takes all.
    pub fn command(&self, mount_points: &[&TextPath]) -> String {
        let free = |place| match self.free {
            Free::No => None,
            Free::Orphans(force) if mount_points.len() > MOST_NAMED => Some(advice::free(place, force, &[])),
            Free::Orphans(force) => Some(advice::free(place, force, mount_points)),
            Free::Named => Some(advice::free(place, Force::No, mount_points)),
        };
        match self.then {
            // A new master has to live where the mounts are.
            Then::Replace => advice::shell_at(self.place, &replace(mount_points, free(None))),
            Then::Adopt => advice::shell_at(self.place, &adopt()),
            _ => {
                let steps = free(self.place).into_iter().chain(self.then.command(self.place, mount_points));
                steps.collect::<Vec<_>>().join(" && ")
            }
        }
    }
}

/// A step that fails where a variable is not set, and says what is to be in it. It is exported, as the commands can be for
/// another shell.
fn wants(variable: &str, what: &str) -> String {
    format!(": \"${{{variable}:?export it first: {what}}}\"")
}

/// Becomes the master of mounts.
const BECOME_MASTER: &str = "autofs-fixup -i - --exec -- $DAEMON";

fn wants_daemon() -> String {
    wants("DAEMON", "the command that starts the master")
}

/// Gives mounts to a new master. What is freed is catatonic, and an image of it would say so: the image is made before.
fn replace(mount_points: &[&TextPath], free: Option<String>) -> String {
    let paths = mount_points.iter().map(|path| format!(" {}", shell_word(path.as_bytes())));
    let dump = format!("autofs-dump{}", paths.collect::<String>());
    let daemon = wants_daemon();
    match free {
        None => format!("{daemon} && {dump} | autofs-restore | {BECOME_MASTER}"),
        Some(free) => format!(
            "{daemon} && image=$({dump}) && {free} && printf '%s\\n' \"$image\" | autofs-restore | {BECOME_MASTER}"
        ),
    }
}

fn adopt() -> String {
    let image = wants("IMAGE", "a file that autofs-dump wrote before");
    format!("{image} && {} && autofs-restore -i \"$IMAGE\" | {BECOME_MASTER}", wants_daemon())
}

impl Then {
    /// The command for where the mounts are.
    fn command(&self, place: Option<Pid>, mount_points: &[&TextPath]) -> Option<String> {
        match self {
            Self::Nothing | Self::Replace | Self::Adopt => None,
            Self::Restart(kind) => kind.restart(mount_points).map(|command| advice::at(place, &command)),
            Self::RestartUnit(unit) => Some(advice::at(place, &restart_unit(unit))),
            Self::LinkUnit(unit) => Some(advice::shell_at(place, &link_unit(unit))),
            Self::Continue(pid) => Some(format!("kill -CONT {pid}")),
            Self::Thaw(file) => Some(format!("echo 0 >{}", shell_word(TextPath::from(&**file).as_bytes()))),
        }
    }
}

fn restart_unit(unit: &TextPath) -> String {
    format!("systemctl restart {}", shell_word(unit.as_bytes()))
}

/// A file besides that of the unit, as in systemd.unit(5).
fn link_unit(unit: &TextPath) -> String {
    let directory = [b"/etc/systemd/system/", unit.as_bytes(), b".d"].concat();
    let directory = shell_word(&directory);
    format!(
        "mkdir -p {directory} && printf '[Service]\\nMountFlags=slave\\n' >{directory}/autofs.conf && \
         systemctl daemon-reload && {}",
        restart_unit(unit)
    )
}
