//! Show every autofs mount, its master and its state.
#![forbid(unsafe_code)]

mod check;
mod cli;
mod notes;
mod table;
mod waiting;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use autofs_cr_common::cli::{Voice, may_colour};
use autofs_cr_common::doc::{self, DocError, Output, Report};
use autofs_cr_common::exit::{Exit, conclude};
use autofs_cr_common::proc::Proc;
use autofs_cr_common::scan::{Needs, Scope, scan};
use clap::Parser;

use cli::{Cli, Format};

/// The name of this tool in messages.
const TOOL: &str = "autofs-inspect";

fn main() -> ExitCode {
    conclude(TOOL, run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<Exit> {
    let proc = Proc::open().context("cannot open /proc")?;
    let report = scan(&proc, scope(cli), needs(cli))?;
    let voice = Voice::new(TOOL, cli.verbosity);
    if cli.check {
        return check(cli, &report, voice);
    }
    notes::tell(&report, voice);
    if cli.format() == Format::Table {
        let own = proc.this().and_then(|dir| dir.mount_namespace()).ok();
        notes::tell_of_waiters(&report, own, voice);
    }
    let mut output = open_output(cli)?;
    write(cli, &report, &mut output)?;
    output.finish()?;
    Ok(Exit::Done)
}

fn scope(cli: &Cli) -> Scope {
    match (cli.all, cli.pid) {
        (true, _) => Scope::All,
        (false, Some(pid)) => Scope::Of(pid),
        (false, None) => Scope::Own,
    }
}

/// The table and the check tell of each mount who serves it; the documents tell of every process.
fn needs(cli: &Cli) -> Needs {
    match cli.format() {
        Format::Table => Needs::STATES,
        Format::Yaml | Format::Json => Needs::REPORT,
    }
}

/// Silent where all is healthy, so that it can run from cron.
fn check(cli: &Cli, report: &Report, voice: Voice) -> Result<Exit> {
    let unhealthy = check::unhealthy(report);
    if unhealthy.is_empty() {
        return Ok(Exit::Done);
    }
    notes::tell(report, voice);
    let mut output = open_output(cli)?;
    for line in &unhealthy {
        writeln!(output, "{line}").map_err(|source| write_error(cli, source))?;
    }
    output.finish()?;
    Ok(Exit::Attention)
}

fn open_output(cli: &Cli) -> Result<Output, DocError> {
    Output::open(cli.output.output.as_deref())
}

fn write(cli: &Cli, report: &Report, output: &mut Output) -> Result<(), DocError> {
    let written = match cli.format() {
        Format::Table => table::write(report, colour(cli), output),
        Format::Yaml => doc::write(report, output),
        Format::Json => doc::write_json(report, output),
    };
    written.map_err(|source| write_error(cli, source))
}

fn colour(cli: &Cli) -> bool {
    cli.output.output.is_none() && may_colour()
}

fn write_error(cli: &Cli, source: std::io::Error) -> DocError {
    let name = match &cli.output.output {
        Some(path) => path.display().to_string(),
        None => "standard output".to_owned(),
    };
    DocError::Write { name, source }
}
