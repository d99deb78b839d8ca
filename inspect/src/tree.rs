//! The tree: masters, their pipes, the mounts of each, what is on these, and who waits.

use std::collections::BTreeMap;
use std::io::{self, Write};

use autofs_cr_common::doc::report::{Process, RunsIn};
use autofs_cr_common::model::Pid;
use termtree::Tree;

use crate::columns::Settings;
use crate::trouble;
use crate::view::Row;
use crate::waiting;

/// By master, none first, and by pipe.
type Grouped<'a> = BTreeMap<Option<Pid>, BTreeMap<Option<u64>, Vec<Row<'a>>>>;

/// Writes a tree for each master, and one for the mounts that have none.
pub fn write<'a>(
    rows: impl Iterator<Item = Row<'a>>,
    settings: &Settings,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut grouped = Grouped::new();
    for row in rows {
        let pipes = grouped.entry(row.superblock.master).or_default();
        pipes.entry(row.superblock.pipe).or_default().push(row);
    }
    // What needs attention stands at the end, where it is seen.
    let served = grouped.iter().filter(|(master, _)| master.is_some());
    let unserved = grouped.iter().filter(|(master, _)| master.is_none());
    for (_, pipes) in served.chain(unserved) {
        write!(out, "{}", of_master(pipes, settings))?;
    }
    Ok(())
}

fn of_master(pipes: &BTreeMap<Option<u64>, Vec<Row<'_>>>, settings: &Settings) -> Tree<String> {
    let first = pipes.values().flatten().next();
    let master = first.and_then(Row::master).map_or_else(|| "no master".to_owned(), process);
    let pipes = pipes.iter().map(|(inode, rows)| of_pipe(*inode, rows, settings));
    Tree::new(master).with_leaves(pipes)
}

fn process(process: &Process) -> String {
    let RunsIn { container, unit } = &process.runs_in;
    let mut text = waiting::name(&process.command, process.pid);
    if let Some(unit) = unit {
        text += &format!(", unit {unit}");
    }
    if let Some(container) = container {
        text += &format!(", container {container}");
    }
    text
}

fn of_pipe(inode: Option<u64>, rows: &[Row<'_>], settings: &Settings) -> Tree<String> {
    let name = inode.map_or_else(|| "no pipe".to_owned(), |inode| format!("pipe {inode}"));
    let ends = rows.first().map(|row| crate::columns::pipe_ends(row)).unwrap_or_default();
    let text = if ends.is_empty() { name } else { format!("{name}: {}", ends.join(", ")) };
    Tree::new(text).with_leaves(rows.iter().map(|row| of_mount(row, settings)))
}

fn of_mount(row: &Row<'_>, settings: &Settings) -> Tree<String> {
    let (mount, superblock) = (row.mount, row.superblock);
    let kind = superblock.options.mount_type;
    let mut text = format!("{} ({kind}, {}", mount.mount_point, superblock.state);
    if let Some(fault) = mount.copy {
        text += &format!(", {}", fault.as_str());
    }
    if row.view.report.namespaces.len() > 1 {
        text += &format!(", mount namespace {}", mount.namespace);
    }
    text.push(')');
    let problem =
        trouble::of(row, settings.patience).map(|trouble| format!("problem: {}", trouble.describe(row)));
    let content = row.content().iter();
    let content = content
        .map(|content| format!("{} {}, source {}", content.fstype, content.mount_point, content.source));
    let requests = row.requests().iter().map(|request| format!("unread: {}", waiting::request(request)));
    let waits = row.waits().into_iter().map(|waiting| format!("waits: {}", waiting.brief()));
    let leaves = problem.into_iter().chain(content).chain(requests).chain(waits);
    Tree::new(text).with_leaves(leaves)
}
