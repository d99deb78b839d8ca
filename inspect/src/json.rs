//! The columns for programs.

use std::io::{self, Write};

use autofs_cr_common::doc::report::Life;
use serde::{Serialize, Serializer};

use crate::columns::{Column, Settings};
use crate::value::Value;
use crate::view::{Row, View};
use crate::waiting::Waiting;

/// Writes `{"mounts": [...], "waiting": [...], "unfinished": [...], "hidden": [...]}`: an object for each mount, whose keys are
/// the names of the columns in small letters; one for each thread that waits; one for each restore that has not come to its
/// end; and what could not be seen.
pub fn write(
    view: &View<'_>,
    columns: &[&Column],
    settings: &Settings,
    out: &mut impl Write,
) -> io::Result<()> {
    let keyed: Vec<_> = columns.iter().map(|column| (column.name.to_ascii_lowercase(), *column)).collect();
    let mounts = view.rows().map(|row| Object { row, columns: &keyed, settings }).collect();
    let waiting = view.waits.iter().map(Thread).collect();
    let unfinished = view.unfinished().map(|(namespace, unfinished)| Restore {
        namespace: namespace.id,
        work_place: Value::Path(&unfinished.work_place),
        restore: unfinished.restore,
    });
    let unfinished = unfinished.collect();
    let document = Document { mounts, waiting, unfinished, hidden: &view.report.hidden };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}

#[derive(Serialize)]
struct Document<'a> {
    mounts: Vec<Object<'a>>,
    waiting: Vec<Thread<'a>>,
    unfinished: Vec<Restore<'a>>,
    hidden: &'a [String],
}

/// A restore that has not come to its end.
#[derive(Serialize)]
struct Restore<'a> {
    /// The mount namespace that it is in.
    namespace: u64,
    work_place: Value<'a>,
    restore: Life,
}

/// A mount.
struct Object<'a> {
    row: Row<'a>,
    columns: &'a [(String, &'a Column)],
    settings: &'a Settings,
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = |column: &Column| (column.value)(&self.row, self.settings);
        serializer.collect_map(self.columns.iter().map(|(key, column)| (key, value(column))))
    }
}

/// A thread that waits.
struct Thread<'a>(&'a Waiting<'a>);

/// What is told of a thread that waits.
type Key = (&'static str, for<'a> fn(&'a Waiting<'_>) -> Value<'a>);

/// The keys of `waiting`. docs/inspect.md documents them.
const KEYS: &[Key] = &[
    ("pid", |it| Value::Number(u32::from(it.waiter.pid).into())),
    ("tid", |it| Value::Number(u32::from(it.waiter.tid).into())),
    ("command", |it| Value::Path(&it.waiter.command)),
    ("uid", |it| Value::Number(it.waiter.uid.into())),
    ("user", |it| Value::text(Some(it.user().to_owned()))),
    ("since", |it| Value::number(it.waiter.since)),
    ("seconds", |it| it.span.map_or(Value::Nothing, Value::Span)),
    ("target", |it| Value::path(it.mount.map(|mount| &mount.mount_point))),
    ("namespace", |it| Value::number(it.waiter.namespace)),
    ("path", |it| Value::path(it.waiter.path.as_ref())),
    ("role", |it| Value::word(it.role())),
    ("outlook", |it| Value::word(it.outlook.as_str())),
    ("unsent", |it| Value::Flag(it.waiter.unsent)),
];

impl Serialize for Thread<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(KEYS.iter().map(|(key, value)| (key, value(self.0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_thread_is_documented() {
        let docs = include_str!("../../docs/inspect.md");
        for (key, _) in KEYS {
            assert!(docs.contains(&format!("| `{key}` | ")), "{key}");
        }
    }
}
