//! Every format, for one report with a bit of everything, against the files in `golden/`. After a change that is meant,
//! `AUTOFS_CR_BLESS=1 cargo test -p autofs-inspect golden` writes them anew, and `git diff` shows what came of it.

use std::path::Path;

use autofs_cr_common::doc::{self, Report};

use crate::check;
use crate::columns::{ALL, Choice, Settings};
use crate::span::Span;
use crate::users::Users;
use crate::view::View;
use crate::{json, metrics, notes, table, tree};

const SETTINGS: Settings = Settings { patience: Span::from_seconds(60) };

fn compare(name: &str, write: impl FnOnce(&View<'_>, &mut Vec<u8>)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/golden");
    let text = std::fs::read(folder.join("report.yaml")).expect("read the report");
    let report: Report = doc::parse(&text, "report.yaml").expect("a valid report");
    let users = Users::known([(1000, "ada"), (33, "www-data")]);
    let view = View::with_users(&report, Some(4_026_531_841), 10_000, &users);
    let mut written = Vec::new();
    write(&view, &mut written);
    let written = String::from_utf8(written).expect("text");
    let file = folder.join(name);
    if std::env::var_os("AUTOFS_CR_BLESS").is_some() {
        std::fs::write(&file, &written).expect("write the golden file");
    }
    let golden = std::fs::read_to_string(&file).expect("read the golden file");
    assert!(golden == written, "{name} is another:\n{written}");
}

fn table(name: &str, columns: &str, style: table::Style) {
    let columns = Choice::parse(columns).expect("columns").columns(true);
    compare(name, |view, out| table::write(view.rows(), &columns, &SETTINGS, style, out).expect("written"));
}

const PLAIN: table::Style = table::Style { head: true, raw: false, colour: false };

#[test]
fn the_usual_table() {
    let columns = Choice::default().columns(true);
    compare("table.txt", |view, out| {
        table::write(view.rows(), &columns, &SETTINGS, PLAIN, out).expect("written");
    });
}

#[test]
fn every_column() {
    let names: Vec<&str> = ALL.iter().map(|column| column.name).collect();
    table("raw.txt", &names.join(","), table::Style { raw: true, ..PLAIN });
}

#[test]
fn colours_without_a_head() {
    table("colour.txt", "STATE,TARGET", table::Style { head: false, colour: true, ..PLAIN });
}

#[test]
fn json_for_programs() {
    let columns = Choice::default().columns_for_programs();
    compare("mounts.json", |view, out| json::write(view, &columns, &SETTINGS, out).expect("written"));
}

#[test]
fn the_tree() {
    compare("tree.txt", |view, out| tree::write(view.rows(), &SETTINGS, out).expect("written"));
}

#[test]
fn metrics_for_a_collector() {
    compare("metrics.txt", |view, out| metrics::write(view, &SETTINGS, out).expect("written"));
}

#[test]
fn every_metric_is_documented() {
    let docs = include_str!("../../docs/inspect.md");
    for line in include_str!("golden/metrics.txt").lines() {
        if let Some((name, _)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            assert!(docs.contains(&format!("| `{name}")), "{name}");
        }
    }
}

#[test]
fn what_is_not_well() {
    compare("check.txt", |view, out| add(check::unhealthy(view, &SETTINGS), out));
}

#[test]
fn what_is_said_besides() {
    compare("notes.txt", |view, out| {
        add(notes::hidden(view.report), out);
        add(notes::waits(view, &SETTINGS, true), out);
        add(notes::conclusion(view, &SETTINGS), out);
    });
}

fn add(lines: Vec<String>, out: &mut Vec<u8>) {
    lines.into_iter().for_each(|line| out.extend((line + "\n").bytes()));
}
