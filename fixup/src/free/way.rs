//! The ways to a superblock.

use std::os::fd::OwnedFd;

use autofs_cr_common::doc::report::Waiter;
use autofs_cr_common::model::Pid;
use nix::errno::Errno;

use super::hung::Hung;
use super::verify::name;

/// How a superblock is got at.
#[derive(Debug)]
pub enum Way {
    /// Not at all: it is catatonic, so nobody waits.
    Catatonic,
    /// Its master can be stopped, and makes the calls itself.
    Master,
    /// Its root is open.
    Root(OwnedFd),
    /// A process of its group can open it; only in a dry run, where that is not done.
    Member(Pid),
    /// A request is pending, and nobody can walk there before who asked first is gone.
    Kill,
    /// Its master lives, and somebody holds it, so that it cannot make the calls before that ends.
    Held(String),
    /// There is none.
    None(Errno),
}

impl Way {
    /// What would be done.
    pub fn describe(&self, one: &Hung<'_>) -> String {
        let waiters = one.waiters().count();
        let wait = if waiters == 1 { "1 waits".to_owned() } else { format!("{waiters} wait") };
        let master = one.master().map(|master| format!("{} (process {})", master.command, master.pid));
        let then = match (self, master) {
            (Self::Catatonic, _) => "it is catatonic already".to_owned(),
            (Self::Master, Some(master)) => format!("{master} is connected to it again"),
            (Self::Held(why), _) => format!("its master cannot make the calls now: {why}"),
            (Self::None(errno), _) => format!("it cannot be opened: {errno}"),
            (Self::Kill, _) => format!("{} has to be killed for that (--kill)", names(one.first())),
            (Self::Member(pid), _) => format!("process {pid} of its group opens it, as its master is gone"),
            (_, Some(master)) => format!("its master {master} is connected again, if it can be stopped then"),
            (_, None) => "its master is gone".to_owned(),
        };
        format!("free {}: {wait}; {then}", one.name())
    }

    /// Why nothing can be changed.
    pub fn refusal(&self, one: &Hung<'_>, may_kill: bool) -> Option<String> {
        match self {
            Self::Kill if !may_kill => Some(format!(
                "{}: nobody can open it while {} waits, who asked first: no living process of its group is able \
                 to; --kill kills that process",
                one.place(),
                names(one.first())
            )),
            Self::Held(why) => Some(format!("{}: its master cannot make the calls now: {why}", one.place())),
            Self::None(errno) => Some(match one.master() {
                Some(master) => format!(
                    "{}: it cannot be opened ({errno}) before its master {} (process {}) is ended",
                    one.place(),
                    master.command,
                    master.pid
                ),
                None => format!("{}: it cannot be opened: {errno}{}", one.place(), suspects(one, *errno)),
            }),
            _ => None,
        }
    }
}

fn names<'a>(waiters: impl Iterator<Item = &'a Waiter>) -> String {
    let names: Vec<String> = waiters.map(name).collect();
    names.join(" and ")
}

/// Who may be what makes a walk to a mount block.
fn suspects(one: &Hung<'_>, errno: Errno) -> String {
    match names(one.perhaps_first()) {
        names if names.is_empty() || errno != Errno::ETIMEDOUT => String::new(),
        names => format!(
            "; who asked first may be {names}, whose path does not tell on which mount it waits: if it is this one, \
             end it"
        ),
    }
}
