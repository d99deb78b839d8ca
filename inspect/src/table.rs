//! The table for people.

use std::collections::HashMap;
use std::io::{self, Write};

use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::{Mount, Superblock, Waiter};
use autofs_cr_common::model::{Device, State};

use crate::waiting;

/// A row of the table.
struct Row<'a> {
    report: &'a Report,
    mount: &'a Mount,
    superblock: &'a Superblock,
    /// What is mounted on it.
    content: &'a [String],
    /// How many processes wait on its superblock.
    waiters: usize,
}

/// A column: its head, and what it shows of a row.
struct Column {
    head: &'static str,
    show: fn(&Row<'_>) -> String,
}

const NAMESPACE: Column = Column { head: "NAMESPACE", show: |row| row.mount.namespace.to_string() };

const COLUMNS: [Column; 7] = [
    Column { head: "MOUNT POINT", show: |row| row.mount.mount_point.to_string() },
    Column { head: "TYPE", show: |row| row.superblock.options.mount_type.to_string() },
    STATE,
    Column { head: "MASTER", show: master },
    Column { head: "CONTENT", show: |row| content(row.content) },
    Column { head: "WAITERS", show: |row| or_dash((row.waiters > 0).then(|| row.waiters.to_string())) },
    Column { head: "PIPE", show: |row| or_dash(row.superblock.pipe.map(|pipe| pipe.to_string())) },
];

const STATE: Column = Column { head: STATE_HEAD, show: |row| row.superblock.state.to_string() };
const STATE_HEAD: &str = "STATE";

/// Writes the table. Nothing at all where there is no autofs mount.
pub fn write(report: &Report, colour: bool, out: &mut impl Write) -> io::Result<()> {
    let columns = columns(report);
    let content = content_by_parent(report);
    let waiters = waiting::by_device(report);
    let rows: Vec<Row<'_>> =
        report.mounts.iter().filter_map(|mount| row(report, mount, &content, &waiters)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let mut cells: Vec<Vec<String>> = vec![columns.iter().map(|column| column.head.to_owned()).collect()];
    cells.extend(rows.iter().map(|row| columns.iter().map(|column| (column.show)(row)).collect()));
    let widths: Vec<usize> = (0..columns.len()).map(|at| widest(&cells, at)).collect();
    let states = std::iter::once(None).chain(rows.iter().map(|row| Some(row.superblock.state)));
    for (line, state) in cells.iter().zip(states) {
        write_line(line, &columns, &widths, state.filter(|_| colour), out)?;
    }
    Ok(())
}

fn columns(report: &Report) -> Vec<&'static Column> {
    let namespace = (report.namespaces.len() > 1).then_some(&NAMESPACE);
    namespace.into_iter().chain(&COLUMNS).collect()
}

type ContentOf = HashMap<u64, Vec<String>>;

fn content_by_parent(report: &Report) -> ContentOf {
    let mut by_parent = ContentOf::new();
    for content in &report.content {
        let shown = format!("{} {}", content.fstype, content.mount_point);
        by_parent.entry(content.parent).or_default().push(shown);
    }
    by_parent
}

fn row<'a>(
    report: &'a Report,
    mount: &'a Mount,
    content: &'a ContentOf,
    waiters: &HashMap<Device, Vec<&Waiter>>,
) -> Option<Row<'a>> {
    let superblock = report.superblock(mount.device)?;
    let content = content.get(&mount.id).map_or(&[][..], Vec::as_slice);
    let waiters = waiters.get(&mount.device).map_or(0, Vec::len);
    Some(Row { report, mount, superblock, content, waiters })
}

fn master(row: &Row<'_>) -> String {
    let process = row.superblock.master.and_then(|pid| row.report.process(pid));
    or_dash(process.map(|process| format!("{}[{}]", process.command, process.pid)))
}

/// The first one, and how many more there are.
fn content(mounted: &[String]) -> String {
    match mounted {
        [] => or_dash(None),
        [one] => one.clone(),
        [first, more @ ..] => format!("{first} (+{})", more.len()),
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn widest(cells: &[Vec<String>], column: usize) -> usize {
    cells.iter().map(|line| width(&line[column])).max().unwrap_or(0)
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn write_line(
    cells: &[String],
    columns: &[&Column],
    widths: &[usize],
    state: Option<State>,
    out: &mut impl Write,
) -> io::Result<()> {
    for (at, cell) in cells.iter().enumerate() {
        let colour = state.filter(|_| columns[at].head == STATE_HEAD).map(colour_of);
        let (on, off) = colour.map_or(("", ""), |on| (on, "\x1b[0m"));
        write!(out, "{on}{cell}{off}")?;
        if at + 1 < cells.len() {
            write!(out, "{:1$}", "", widths[at] - width(cell) + 2)?;
        }
    }
    writeln!(out)
}

fn colour_of(state: State) -> &'static str {
    match state {
        State::Connected => "\x1b[32m",
        State::Delegated | State::Unknown => "\x1b[33m",
        State::Orphaned | State::Catatonic => "\x1b[31m",
    }
}
