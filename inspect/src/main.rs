//! Show every autofs mount, who serves it, who waits on it and what repairs it.
//!
//! | stage | file |
//! |---|---|
//! | look | `autofs_cr_common::scan` |
//! | keep what was asked for | `select.rs` |
//! | bring together what belongs together | `view.rs`, `waiting.rs`, `users.rs` |
//! | say what is wrong, and what repairs it | `trouble.rs`, `repair.rs`, `repairs.rs`, `frozen.rs` |
//! | write | `columns.rs` and `value.rs` for `table.rs` and `json.rs`; `tree.rs`, `metrics.rs`, `check.rs` |
//! | tell people the rest | `notes.rs` |
//! | do it again | `watch.rs`, `mount_tables.rs`, `screen.rs` |
#![forbid(unsafe_code)]

mod check;
mod cli;
mod columns;
mod frozen;
#[cfg(test)]
mod golden;
mod json;
mod metrics;
mod mount_tables;
mod notes;
mod repair;
mod repairs;
mod screen;
mod select;
mod span;
mod table;
mod tree;
mod trouble;
mod users;
mod value;
mod view;
mod waiting;
mod watch;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use autofs_cr_common::cli::{Voice, arguments, may_colour};
use autofs_cr_common::doc::{self, DocError, Output, Report};
use autofs_cr_common::exit::{self, Exit};
use autofs_cr_common::power::Role;
use autofs_cr_common::proc::Proc;
use autofs_cr_common::scan::{Needs, Scope, scan};

use cli::{Cli, Document, Form};
use columns::{Column, Settings};
use select::NotThere;
use span::Span;
use view::View;

/// The name of this tool in messages.
const TOOL: &str = "autofs-inspect";

fn main() -> ExitCode {
    let cli: Cli = arguments();
    let form = cli.form();
    exit::run(TOOL, &roles(&form), || run(&cli, form))
}

/// What it does, as far as it takes power.
fn roles(form: &Form) -> Vec<Role> {
    let writes_file = matches!(form, Form::Document(_, Some(_)));
    std::iter::once(Role::Look).chain(writes_file.then_some(Role::Files)).collect()
}

fn run(cli: &Cli, form: Form) -> Result<Exit> {
    if cli.list_columns {
        return list_columns();
    }
    let inspection = Inspection::new(cli, form)?;
    match cli.watch {
        Some(interval) => watch::run(&inspection, interval),
        None => inspection.once(),
    }
}

fn list_columns() -> Result<Exit> {
    let mut output = Output::open(None)?;
    table::list(columns::ALL, &mut output).map_err(|source| write_error(None, source))?;
    output.finish()?;
    Ok(Exit::Done)
}

/// What was asked for.
struct Inspection<'a> {
    cli: &'a Cli,
    form: Form,
    paths: Vec<PathBuf>,
    settings: Settings,
    voice: Voice,
    proc: Proc,
}

impl<'a> Inspection<'a> {
    fn new(cli: &'a Cli, form: Form) -> Result<Self> {
        Ok(Self {
            cli,
            form,
            paths: paths(cli)?,
            settings: Settings { patience: Span::from_seconds(cli.patience.as_secs()) },
            voice: Voice::new(TOOL, cli.verbosity),
            proc: Proc::open().context("cannot open /proc")?,
        })
    }

    /// Looks, and writes what was found.
    fn once(&self) -> Result<Exit> {
        let (report, missing) = self.look()?;
        NotThere::refuse(&missing)?;
        let view = self.view(&report);
        let is_check = matches!(self.form, Form::Document(Document::Check, _));
        let unhealthy = if is_check { check::unhealthy(&view, &self.settings) } else { Vec::new() };
        // Silent where all is well, so that it can run from cron.
        if is_check && unhealthy.is_empty() {
            return Ok(Exit::Done);
        }
        self.note(notes::hidden(&report));
        self.voice.detail(notes::sizes(&report));
        if self.is_for_people() {
            self.note(notes::waits(&view, &self.settings, self.cli.verbosity.verbose));
        }
        self.write_out(&view, &unhealthy)?;
        if self.is_for_people() {
            self.note(notes::conclusion(&view, &self.settings));
        }
        Ok(if is_check { Exit::Attention } else { Exit::Done })
    }

    /// What there is, and the paths that were asked about and are none of it.
    fn look(&self) -> Result<(Report, Vec<NotThere>)> {
        let scope = match (self.cli.all, self.cli.pid) {
            (true, _) => Scope::All,
            (false, Some(pid)) => Scope::Of(pid),
            (false, None) => Scope::Own,
        };
        let mut report = scan(&self.proc, scope, self.needs())?;
        let missing = select::narrow(&mut report, &self.paths);
        Ok((report, missing))
    }

    /// What has to be looked at for what is written.
    fn needs(&self) -> Needs {
        let of_columns = |columns: Vec<&Column>| match columns.iter().any(|column| column.wants_all) {
            true => Needs::REPORT,
            false => Needs::STATES,
        };
        match &self.form {
            Form::Table(choice) => of_columns(choice.columns(false)),
            Form::Json(choice) => of_columns(choice.columns_for_programs()),
            Form::Document(Document::Metrics | Document::Check, _) => Needs::STATES,
            Form::Document(Document::Tree | Document::Yaml, _) => Needs::REPORT,
        }
    }

    fn view<'r>(&self, report: &'r Report) -> View<'r> {
        let own = self.proc.this().and_then(|dir| dir.mount_namespace()).ok();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        View::new(report, own, now)
    }

    /// Whether a person reads it, who wants to know more than what is in it.
    fn is_for_people(&self) -> bool {
        matches!(self.form, Form::Table(_) | Form::Document(Document::Tree, _))
    }

    fn note(&self, lines: Vec<String>) {
        lines.into_iter().for_each(|line| self.voice.note(line));
    }

    /// Writes to where it shall go.
    fn write_out(&self, view: &View<'_>, unhealthy: &[String]) -> Result<()> {
        let mut output = Output::open(self.file())?;
        let written = match self.form {
            Form::Document(Document::Check, _) => {
                unhealthy.iter().try_for_each(|line| writeln!(output, "{line}"))
            }
            _ => self.write(view, self.file().is_none() && may_colour(), &mut output),
        };
        written.map_err(|source| write_error(self.file(), source))?;
        Ok(output.finish()?)
    }

    fn write(&self, view: &View<'_>, colour: bool, out: &mut impl Write) -> io::Result<()> {
        let several = view.report.namespaces.len() > 1;
        match &self.form {
            Form::Table(choice) => {
                let style = table::Style { head: !self.cli.noheadings, raw: self.cli.raw, colour };
                table::write(view.rows(), &choice.columns(several), &self.settings, style, out)
            }
            Form::Json(choice) => json::write(view, &choice.columns_for_programs(), &self.settings, out),
            Form::Document(Document::Tree, _) => tree::write(view.rows(), &self.settings, out),
            Form::Document(Document::Yaml, _) => doc::write(view.report, out),
            Form::Document(Document::Metrics, _) => metrics::write(view, &self.settings, out),
            Form::Document(Document::Check, _) => Ok(()),
        }
    }

    /// The file that is written, if it is not standard output.
    fn file(&self) -> Option<&Path> {
        match &self.form {
            Form::Document(_, file) => file.as_deref().filter(|file| *file != Path::new("-")),
            Form::Table(_) | Form::Json(_) => None,
        }
    }
}

/// The paths that were asked about. Where they are of another namespace, this process's directory means nothing.
fn paths(cli: &Cli) -> Result<Vec<PathBuf>> {
    let is_own = cli.pid.is_none() && !cli.all;
    let absolute = |path: &PathBuf| {
        ensure!(is_own || path.is_absolute(), "{}: with -p and -A a path has to be absolute", path.display());
        std::path::absolute(path).with_context(|| format!("cannot make {} absolute", path.display()))
    };
    cli.paths.iter().map(absolute).collect()
}

fn write_error(file: Option<&Path>, source: io::Error) -> DocError {
    let name = file.map_or_else(|| "standard output".to_owned(), |path| path.display().to_string());
    DocError::Write { name, source }
}
