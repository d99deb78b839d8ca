//! Metrics for a textfile collector, in the text format of OpenMetrics. docs/inspect.md documents the names, which stay.
//!
//! All are gauges without units of their own, and no label holds a text of a user, so that there is nothing to escape.

use std::io::{self, Write};

use autofs_cr_common::doc::report::{CopyFault, Life, RequestKind};
use autofs_cr_common::model::State;

use crate::columns::Settings;
use crate::trouble::{self, Trouble};
use crate::view::View;
use crate::waiting::{self, Outlook};

/// A gauge.
struct Metric {
    name: &'static str,
    help: &'static str,
    samples: Vec<Sample>,
}

/// A value, and which it is of several: a label with its value.
struct Sample {
    label: Option<(&'static str, &'static str)>,
    value: usize,
}

/// Writes what a report comes to.
pub fn write(view: &View<'_>, settings: &Settings, out: &mut impl Write) -> io::Result<()> {
    for Metric { name, help, samples } in metrics(view, settings) {
        writeln!(out, "# TYPE autofs_{name} gauge\n# HELP autofs_{name} {help}")?;
        for Sample { label, value } in samples {
            match label {
                Some((label, of)) => writeln!(out, "autofs_{name}{{{label}=\"{of}\"}} {value}")?,
                None => writeln!(out, "autofs_{name} {value}")?,
            }
        }
    }
    writeln!(out, "# EOF")
}

fn metrics(view: &View<'_>, settings: &Settings) -> [Metric; 10] {
    let report = view.report;
    let oldest = waiting::longest(&view.waits).map_or(0, |span| span.seconds() as usize);
    [
        Metric { name: "mounts", help: "Autofs mounts, by state.", samples: mounts(view) },
        Metric {
            name: "unhealthy_mounts",
            help: "Mounts that --check names, by what is wrong.",
            samples: unhealthy(view, settings),
        },
        Metric { name: "faulty_copies", help: "Mounts that are copies which fail.", samples: copies(view) },
        single("content_mounts", "What is mounted on autofs mounts.", report.content.len()),
        Metric {
            name: "waiting_threads",
            help: "Threads that wait on an autofs mount, by what is known of the answer.",
            samples: waits(view),
        },
        single("oldest_wait_seconds", "How long the longest wait has lasted.", oldest),
        Metric {
            name: "unread_requests",
            help: "Requests that no master has read.",
            samples: requests(view),
        },
        single(
            "strangers",
            "Processes whose requests fail, as the master cannot see them.",
            report.strangers.len(),
        ),
        Metric {
            name: "unfinished_restores",
            help: "Mount namespaces with a restore that has not come to its end, by what is known of it.",
            samples: unfinished(view),
        },
        single("not_visible", "Kinds of things that could not be seen; 0 if all was.", report.hidden.len()),
    ]
}

fn single(name: &'static str, help: &'static str, value: usize) -> Metric {
    Metric { name, help, samples: vec![Sample { label: None, value }] }
}

fn mounts(view: &View<'_>) -> Vec<Sample> {
    let samples = State::ALL.map(|state| Sample {
        label: Some(("state", state.as_str())),
        value: view.rows().filter(|row| row.superblock.state == state).count(),
    });
    samples.into()
}

fn unhealthy(view: &View<'_>, settings: &Settings) -> Vec<Sample> {
    let troubles = view.rows().filter_map(|row| trouble::of(&row, settings.patience));
    let troubles: Vec<&str> = troubles.map(Trouble::as_str).collect();
    let samples = Trouble::ALL.map(|problem| Sample {
        label: Some(("problem", problem)),
        value: troubles.iter().filter(|trouble| **trouble == problem).count(),
    });
    samples.into()
}

fn copies(view: &View<'_>) -> Vec<Sample> {
    let samples = [CopyFault::Severed, CopyFault::Stale].map(|fault| Sample {
        label: Some(("fault", fault.as_str())),
        value: view.rows().filter(|row| row.mount.copy == Some(fault)).count(),
    });
    samples.into()
}

fn waits(view: &View<'_>) -> Vec<Sample> {
    let samples = Outlook::ALL.map(|outlook| Sample {
        label: Some(("outlook", outlook)),
        value: view.waits.iter().filter(|waiting| waiting.outlook.as_str() == outlook).count(),
    });
    samples.into()
}

fn unfinished(view: &View<'_>) -> Vec<Sample> {
    let lives: Vec<Life> = view.unfinished().map(|(_, unfinished)| unfinished.restore).collect();
    let samples = Life::ALL.map(|life| Sample {
        label: Some(("restore", life.as_str())),
        value: lives.iter().filter(|other| **other == life).count(),
    });
    samples.into()
}

fn requests(view: &View<'_>) -> Vec<Sample> {
    let samples = [RequestKind::Mount, RequestKind::Expire].map(|kind| Sample {
        label: Some(("kind", waiting::kind(kind))),
        value: view.report.requests.iter().filter(|request| request.kind == kind).count(),
    });
    samples.into()
}
