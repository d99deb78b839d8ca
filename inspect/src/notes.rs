//! What is said on standard error beside the output.

use std::collections::BTreeMap;

use autofs_cr_common::cli::count;
use autofs_cr_common::doc::Report;
use autofs_cr_common::model::State;
use autofs_cr_common::unfinished::describe;

use crate::columns::Settings;
use crate::repairs::Repairs;
use crate::view::View;
use crate::waiting;

/// How many of those who wait, and of the repairs, are shown.
const MOST: usize = 10;

/// What could not be seen.
pub fn hidden(report: &Report) -> Vec<String> {
    report.hidden.iter().map(|hidden| format!("not visible: {hidden}")).collect()
}

/// How much there is.
pub fn sizes(report: &Report) -> String {
    format!(
        "{} mounts of {} superblocks in {} mount namespaces, {} processes with a pipe or a control fd, {} requests unread, {} threads waiting",
        report.mounts.len(),
        report.superblocks.len(),
        report.namespaces.len(),
        report.processes.len(),
        report.requests.len(),
        report.waiters.len(),
    )
}

/// Who waits: those that nobody may answer; if all are asked for, also those whose master may read their request in a
/// moment. And whom no master sees.
pub fn waits(view: &View<'_>, settings: &Settings, all: bool) -> Vec<String> {
    let shown = view.waits.iter().filter(|waiting| all || !waiting.is_early(settings.patience));
    let strangers = view.report.strangers.iter().map(|stranger| {
        let master = view.report.process(stranger.master);
        let master = master.map_or_else(|| "the master".into(), |it| waiting::name(&it.command, it.pid));
        let stranger = waiting::name(&stranger.command, stranger.pid);
        format!("{stranger} is in a pid namespace that {master} cannot see: its requests fail with ENOENT")
    });
    first(shown.map(ToString::to_string).chain(strangers), "wait", "TARGET,WAITING,STRANGERS")
}

/// Which restore has not come to its end, what repairs what, and a line of counts at the end.
pub fn conclusion(view: &View<'_>, settings: &Settings) -> Vec<String> {
    let repairs = Repairs::of(view.rows(), settings.patience);
    let restores = view.unfinished().map(|(namespace, restore)| describe(namespace, restore));
    let mut lines: Vec<String> = restores.collect();
    lines.extend(first(repairs.lines(), "repair", "TARGET,REPAIR"));
    lines.extend(counts(view));
    lines
}

/// The first of some lines, and where the others are found.
fn first(lines: impl Iterator<Item = String>, what: &str, columns: &str) -> Vec<String> {
    let mut lines: Vec<String> = lines.collect();
    if lines.len() > MOST {
        let more = lines.len() - MOST;
        lines.truncate(MOST);
        lines.push(format!(
            "and {}: see autofs-inspect -r -o {columns}",
            count(more, &format!("more {what}"))
        ));
    }
    lines
}

/// `3 mounts: 2 connected, 1 orphaned; 1 process waits, the longest for 12s`; `None` where there is no mount.
fn counts(view: &View<'_>) -> Option<String> {
    let mut states: BTreeMap<State, usize> = BTreeMap::new();
    for row in view.rows() {
        *states.entry(row.superblock.state).or_default() += 1;
    }
    let mounts = states.values().sum();
    let states: Vec<String> = states.iter().map(|(state, number)| format!("{number} {state}")).collect();
    let mut text = format!("{}: {}", count(mounts, "mount"), states.join(", "));
    let waits: Vec<_> = view.waits.iter().collect();
    let processes = waiting::processes(&waits).len();
    if processes > 0 {
        let verb =
            if processes == 1 { "1 process waits".into() } else { format!("{processes} processes wait") };
        text += &format!("; {verb}");
    }
    if let Some(span) = waiting::longest(&view.waits) {
        text += &format!(", the longest for {span}");
    }
    (mounts > 0).then_some(text)
}
