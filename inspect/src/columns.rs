//! The columns: the one table from which the table for people, raw output, JSON and `--list-columns` come.

use std::borrow::Cow;

use autofs_cr_common::doc::report::{Access, RunsIn, Within};
use autofs_cr_common::model::State;

use crate::repair;
use crate::span::Span;
use crate::trouble;
use crate::value::Value;
use crate::view::Row;
use crate::waiting;

/// A column.
pub struct Column {
    /// Its name: the head, the word for `-o`, and in small letters the key in JSON.
    pub name: &'static str,
    /// What it shows, in a few words.
    pub help: &'static str,
    /// Whether it tells of all processes that hold something, and not only of masters: then all are looked at.
    pub wants_all: bool,
    /// What it shows of a mount.
    pub value: for<'a> fn(&Row<'a>, &Settings) -> Value<'a>,
}

/// What columns need to know besides the mount.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long an answer may take.
    pub patience: Span,
}

/// The names of those that are shown where nothing else is asked for.
const DEFAULT: [&str; 7] = ["TARGET", "TYPE", "STATE", "MASTER", "UNIT", "CONTENT", "WAITERS"];

/// The names of those that come before them where several mount namespaces are shown.
const OF_ALL: [&str; 2] = ["NAMESPACE", "RUNS-IN"];

/// All columns, in the order in which they are listed.
pub const ALL: &[Column] = &[
    column("TARGET", "mount point", |row, _| Value::Path(&row.mount.mount_point)),
    column("TYPE", "what starts a request: direct, indirect or offset", |row, _| {
        Value::word(row.superblock.options.mount_type.as_str())
    }),
    column("STATE", "connected, delegated, orphaned, catatonic or unknown", |row, _| {
        Value::word(row.superblock.state.as_str())
    }),
    column("REASON", "why it is in that state", |row, _| Value::Text(Cow::Borrowed(&row.superblock.reason))),
    column("PROBLEM", "what is wrong with it", |row, settings| {
        Value::text(trouble::of(row, settings.patience).map(|trouble| trouble.describe(row)))
    }),
    column("REPAIR", "the command that repairs it", command),
    column("MASTER", "process that serves it", master),
    column("PID", "its process id", |row, _| {
        served(row, Value::number(row.superblock.master.map(u32::from)))
    }),
    column("PGRP", "process group that walks freely: that of the master", |row, _| {
        Value::number(row.superblock.pgrp.map(u32::from))
    }),
    column("UNIT", "systemd unit of the master", |row, _| {
        served(row, Value::path(row.master().and_then(|master| master.runs_in.unit.as_ref())))
    }),
    column("CONTAINER", "container of the master", |row, _| {
        served(row, Value::path(row.master().and_then(|master| master.runs_in.container.as_ref())))
    }),
    column("CONTENT", "what is mounted on it", |row, _| Value::List(content(row))),
    column("WAITERS", "how many processes wait on it", waiters),
    column("OLDEST", "how long the longest wait has lasted", |row, _| {
        seen_waits(row, row.longest_wait().map_or(Value::Nothing, Value::Span))
    }),
    column("WAITING", "who waits, for how long, for what", |row, _| {
        seen_waits(row, Value::List(row.waits().into_iter().map(|waiting| waiting.brief()).collect()))
    }),
    column("REQUESTS", "requests that nobody has read", |row, _| Value::List(requests(row))),
    column("STRANGERS", "processes that get ENOENT, as the master cannot see them", |row, _| {
        Value::List(row.strangers().map(|one| waiting::name(&one.command, one.pid)).collect())
    }),
    column("COPY", "what is wrong with a copy: severed or stale", |row, _| {
        row.mount.copy.map_or(Value::Nothing, |fault| Value::word(fault.as_str()))
    }),
    column("TIMEOUT", "seconds after which what is unused may expire; 0: never", |row, _| {
        Value::Number(row.superblock.options.timeout)
    }),
    column("PIPE", "inode of its pipe", |row, _| Value::number(row.superblock.pipe)),
    of_all("PIPE-ENDS", "who holds the ends of the pipe", |row, _| served(row, Value::List(pipe_ends(row)))),
    of_all("CONTROL-FDS", "descriptors of the master on its root", |row, _| Value::List(control_fds(row))),
    column("FD", "descriptor of the pipe when it was set", |row, _| {
        Value::number(row.superblock.fd.and_then(|fd| u32::try_from(fd).ok()))
    }),
    column("PROTO", "protocol versions of the master", |row, _| {
        let options = &row.superblock.options;
        Value::text(Some(format!("{}-{}", options.minproto, options.maxproto)))
    }),
    column("STRICTEXPIRE", "made with the option strictexpire", |row, _| {
        Value::Flag(row.superblock.options.strictexpire)
    }),
    column("IGNORE", "made with the option ignore", |row, _| Value::Flag(row.superblock.options.ignore)),
    column("UID", "owner of its root", |row, _| Value::Number(row.superblock.options.uid.into())),
    column("GID", "group of its root", |row, _| Value::Number(row.superblock.options.gid.into())),
    column("ROOT", "directory of the superblock that it shows", |row, _| Value::Path(&row.mount.root)),
    column("SOURCE", "source of the mount: the map", |row, _| Value::Path(&row.mount.source)),
    column("OPTIONS", "options of the mount", |row, _| Value::Text(Cow::Borrowed(&row.mount.options))),
    column("PROPAGATION", "propagation, with the peer groups", |row, _| {
        Value::text(Some(row.mount.propagation.to_string()))
    }),
    column("MAJ:MIN", "device number", |row, _| Value::text(Some(row.superblock.device.to_string()))),
    column("ID", "mount id", |row, _| Value::Number(row.mount.id)),
    column("PARENT", "id of the mount that it is on", |row, _| Value::Number(row.mount.parent)),
    column("WITHIN", "what it is mounted on: autofs, content or other", |row, _| {
        Value::word(match row.mount.within {
            Within::Autofs => "autofs",
            Within::Content => "content",
            Within::Other => "other",
        })
    }),
    column("COVERED", "a later autofs mount is on top of it", |row, _| Value::Flag(row.is_covered())),
    column("BURIED", "a mount on a directory above hides it", |row, _| Value::Flag(row.mount.buried)),
    column("NAMESPACE", "mount namespace", |row, _| Value::Number(row.mount.namespace)),
    column("NSPID", "process through which that was looked at", |row, _| {
        Value::number(row.namespace().map(|namespace| u32::from(namespace.process)))
    }),
    column("RUNS-IN", "container or unit of that process", |row, _| {
        let runs_in = row.namespace().map(|namespace| &namespace.runs_in);
        Value::path(runs_in.and_then(|RunsIn { container, unit }| container.as_ref().or(unit.as_ref())))
    }),
];

const fn column(
    name: &'static str,
    help: &'static str,
    value: for<'a> fn(&Row<'a>, &Settings) -> Value<'a>,
) -> Column {
    Column { name, help, wants_all: false, value }
}

/// One that tells of all processes.
const fn of_all(
    name: &'static str,
    help: &'static str,
    value: for<'a> fn(&Row<'a>, &Settings) -> Value<'a>,
) -> Column {
    Column { name, help, wants_all: true, value }
}

/// Where it is not known who serves a mount, nothing found does not mean that there is nothing.
fn served<'a>(row: &Row<'a>, value: Value<'a>) -> Value<'a> {
    if value.is_empty() && row.superblock.state == State::Unknown { Value::Hidden } else { value }
}

/// The same where it was not seen what everybody waits for.
fn seen_waits<'a>(row: &Row<'a>, value: Value<'a>) -> Value<'a> {
    if value.is_empty() && row.view.report.unseen_threads > 0 { Value::Hidden } else { value }
}

fn master<'a>(row: &Row<'a>, _: &Settings) -> Value<'a> {
    served(row, Value::text(row.master().map(|master| waiting::name(&master.command, master.pid))))
}

fn command<'a>(row: &Row<'a>, settings: &Settings) -> Value<'a> {
    let repair = trouble::of(row, settings.patience).and_then(|trouble| repair::of(trouble, row));
    Value::text(repair.map(|repair| repair.command(&[&row.mount.mount_point])))
}

fn waiters<'a>(row: &Row<'a>, _: &Settings) -> Value<'a> {
    let number = waiting::processes(&row.waits()).len();
    seen_waits(row, Value::number((number > 0).then_some(number as u64)))
}

fn content(row: &Row<'_>) -> Vec<String> {
    let shown = |content: &&autofs_cr_common::doc::report::Content| {
        format!("{} {}", content.fstype, content.mount_point)
    };
    row.content().iter().map(shown).collect()
}

fn requests(row: &Row<'_>) -> Vec<String> {
    row.requests().iter().map(|request| waiting::request(request)).collect()
}

/// Who holds the ends of the pipe of a mount: `automount[12]:5r`.
pub fn pipe_ends(row: &Row<'_>) -> Vec<String> {
    let ends = row.pipe_ends().map(|(process, end)| {
        let access = match end.access {
            Access::Read => "r",
            Access::Write => "w",
            Access::Both => "rw",
        };
        format!("{}:{}{access}", waiting::name(&process.command, process.pid), end.fd)
    });
    ends.collect()
}

fn control_fds(row: &Row<'_>) -> Vec<String> {
    let fds = row.master().into_iter().flat_map(|master| master.control_fds_on(row.superblock.device));
    fds.map(|control| control.fd.to_string()).collect()
}

/// Why a list of columns makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "there is no column '{0}' (--list-columns names them all; a file to write to is for the formats without columns)"
)]
pub struct NoColumn(String);

/// Which columns to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// In place of the usual ones.
    instead: Option<Vec<usize>>,
    /// After them.
    besides: Vec<usize>,
}

impl Choice {
    /// Reads `NAME,NAME`, or `+NAME,NAME` for these besides the usual ones, as findmnt(8) does. Small letters will do.
    pub fn parse(text: &str) -> Result<Self, NoColumn> {
        let names = text.strip_prefix('+').unwrap_or(text);
        let columns = names.split(',').map(find).collect::<Result<Vec<_>, _>>()?;
        Ok(match text.starts_with('+') {
            true => Self { instead: None, besides: columns },
            false => Self { instead: Some(columns), besides: Vec::new() },
        })
    }

    /// The columns, for a table of several namespaces or of one.
    pub fn columns(&self, several: bool) -> Vec<&'static Column> {
        let usual = || {
            let names = OF_ALL.iter().filter(|_| several).chain(&DEFAULT);
            names.filter_map(|name| find(name).ok()).collect()
        };
        let chosen = self.instead.clone().unwrap_or_else(usual);
        chosen.into_iter().chain(self.besides.iter().copied()).map(|at| &ALL[at]).collect()
    }

    /// The columns for programs: all, if none were named.
    pub fn columns_for_programs(&self) -> Vec<&'static Column> {
        match &self.instead {
            Some(_) => self.columns(false),
            None => ALL.iter().collect(),
        }
    }
}

fn find(name: &str) -> Result<usize, NoColumn> {
    let found = ALL.iter().position(|column| column.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| NoColumn(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(choice: &str, several: bool) -> Vec<&'static str> {
        let choice = Choice::parse(choice).expect("columns");
        choice.columns(several).iter().map(|column| column.name).collect()
    }

    #[test]
    fn columns_are_chosen_in_place_of_the_usual_ones_or_besides() {
        assert_eq!(names("state,TARGET,state", true), ["STATE", "TARGET", "STATE"]);
        let usual: Vec<_> = DEFAULT.into_iter().chain(["PIPE", "MAJ:MIN"]).collect();
        assert_eq!(names("+pipe,maj:min", false), usual);
        assert_eq!(names("+PIPE", true)[..3], ["NAMESPACE", "RUNS-IN", "TARGET"]);
        assert_eq!(Choice::default().columns(false).len(), DEFAULT.len());
        assert_eq!(Choice::default().columns_for_programs().len(), ALL.len());
    }

    #[test]
    fn what_is_no_column_is_named() {
        for (choice, wrong) in [("", ""), ("+", ""), ("TARGET,", ""), ("report.yaml", "report.yaml")] {
            assert_eq!(Choice::parse(choice), Err(NoColumn(wrong.into())), "{choice}");
        }
    }

    #[test]
    fn every_column_is_documented() {
        let docs = include_str!("../../docs/inspect.md");
        for Column { name, help, .. } in ALL {
            assert!(docs.contains(&format!("| `{name}` | {help} |\n")), "{name}");
        }
    }

    #[test]
    fn no_name_is_given_twice() {
        for (at, column) in ALL.iter().enumerate() {
            assert_eq!(find(column.name), Ok(at), "{}", column.name);
            assert_eq!(column.name, column.name.to_ascii_uppercase());
        }
    }
}
