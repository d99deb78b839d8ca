//! What is wrong with a mount. What repairs it is in `repair.rs`.

use autofs_cr_common::doc::report::{CopyFault, Halt, Process, RunsIn};
use autofs_cr_common::model::{State, TextPath};

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
    /// Something keeps its master from running, so that it reads no request.
    Halted(&'a Process, Halt),
    /// Its master has not read a request for so long.
    Unread(&'a Process, Span),
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
    halted(row).or(row.mount.copy.map(Trouble::Copy)).or_else(|| late(row, patience))
}

/// A tracer lets go of it most often at once, as autofs-fixup does.
fn halted<'a>(row: &Row<'a>) -> Option<Trouble<'a>> {
    let master = row.master()?;
    let halt = master.halt.filter(|halt| *halt != Halt::Traced)?;
    Some(Trouble::Halted(master, halt))
}

/// The longest wait that lasts for longer than it may.
fn late<'a>(row: &Row<'a>, patience: Span) -> Option<Trouble<'a>> {
    let late = row.waits().into_iter().filter(|waiting| waiting.span.is_some_and(|span| span >= patience));
    let longest =
        late.filter(|waiting| waiting.outlook.master().is_some()).max_by_key(|waiting| waiting.span)?;
    match (longest.outlook, longest.span?) {
        (Outlook::Unread(master), span) => Some(Trouble::Unread(master, span)),
        (Outlook::Read(master), span) => Some(Trouble::Unanswered(master, span)),
        (Outlook::MasterGone | Outlook::Unclear, _) => None,
    }
}

impl Trouble<'_> {
    /// All words for what can be wrong.
    pub const ALL: [&'static str; 8] =
        ["delegated", "orphaned", "catatonic", "unknown", "severed", "stale", "unread", "unanswered"];

    /// What is wrong, in a word of `ALL`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotServed(state) => state.as_str(),
            Self::Copy(fault) => fault.as_str(),
            Self::Halted(..) | Self::Unread(..) => "unread",
            Self::Unanswered(..) => "unanswered",
        }
    }

    /// What is wrong, for people.
    pub fn describe(self, row: &Row<'_>) -> String {
        match self {
            Self::NotServed(_) => row.superblock.reason.clone(),
            Self::Halted(master, halt) => {
                let master = waiting::name(&master.command, master.pid);
                format!("unread: {master} reads no request: {}", waiting::halt(halt))
            }
            Self::Unread(master, span) => {
                let halt = master.halt.map(|halt| format!(": {}", waiting::halt(halt))).unwrap_or_default();
                let master = waiting::name(&master.command, master.pid);
                format!("unread: {master} has not read a request for {span}{halt}")
            }
            Self::Copy(fault) => copy(fault, row),
            Self::Unanswered(master, span) => {
                let master = waiting::name(&master.command, master.pid);
                format!("unanswered: {master} has read a request and not answered for {span}")
            }
        }
    }
}

fn copy(fault: CopyFault, row: &Row<'_>) -> String {
    let what = match fault {
        CopyFault::Severed => {
            "severed: what its master mounts does not appear in this copy; an access fails with \"Too many levels of \
             symbolic links\""
                .to_owned()
        }
        CopyFault::Stale => {
            format!("stale: a copy of a mount that its master has no more; {}", row.superblock.reason)
        }
    };
    what + &remedy(row)
}

/// Whether a unit is one that can be started anew.
pub fn is_service(unit: Option<&TextPath>) -> bool {
    unit.is_some_and(|unit| unit.as_bytes().ends_with(b".service"))
}

/// What has to be done to a copy where no command does it.
pub fn remedy(row: &Row<'_>) -> String {
    match row.elsewhere().and(row.namespace()).map(|namespace| &namespace.runs_in) {
        Some(RunsIn { container: Some(container), unit }) if !is_service(unit.as_ref()) => {
            format!("; container {container} needs it bound with rslave propagation, and a new start")
        }
        Some(RunsIn { unit, .. }) if is_service(unit.as_ref()) => String::new(),
        _ => "; it has to be unmounted, and bound again with rslave propagation".to_owned(),
    }
}
