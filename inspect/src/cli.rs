//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use autofs_cr_common::cli::{Verbosity, parse_seconds, refuse};
use autofs_cr_common::model::Pid;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

use crate::columns::Choice;

/// Show every autofs mount, who serves it, who waits on it and what repairs it, without touching any of them
#[derive(Debug, Parser)]
#[command(name = "autofs-inspect", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Only the autofs mounts at or below these paths, and those that they lead through [default: all]
    #[arg(value_name = "PATH", conflicts_with = "list_columns")]
    pub paths: Vec<PathBuf>,

    /// Look at the mount namespace of this process, as from its root directory [default: the own one]
    #[arg(short, long, value_name = "PID", conflicts_with = "all")]
    pub pid: Option<Pid>,

    /// Look at every mount namespace that a visible process is in
    #[arg(short = 'A', long)]
    pub all: bool,

    /// How to write what was found
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    format: Format,

    /// The same as `--format json`
    #[arg(short = 'J', long, conflicts_with = "format")]
    json: bool,

    /// The same as `--format tree`
    #[arg(short = 'T', long, conflicts_with_all = ["format", "json"])]
    tree: bool,

    /// For the table and JSON: show these columns, or with `+LIST` these besides the usual ones. For all else: write to
    /// FILE, which appears whole or not at all (`-`: standard output)
    #[arg(short, long, value_name = "LIST|FILE")]
    output: Option<OsString>,

    /// Write no line with the names of the columns
    #[arg(short, long)]
    pub noheadings: bool,

    /// Write the table raw: one space between the columns, and none in them
    #[arg(short, long)]
    pub raw: bool,

    /// List the columns and what they show
    #[arg(short = 'H', long)]
    pub list_columns: bool,

    /// Write it again whenever the mount table changes, and every SECONDS; in place on a terminal
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, num_args = 0..=1, require_equals = true,
          default_missing_value = "2")]
    pub watch: Option<Duration>,

    /// Write a line for each mount that is not well, with who waits on it and what repairs it, and nothing else
    #[arg(long, conflicts_with_all = ["format", "json", "tree", "watch"])]
    pub check: bool,

    /// How long a master may take to answer before a wait counts as unanswered
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "60")]
    pub patience: Duration,

    #[command(flatten)]
    pub verbosity: Verbosity,
}

/// How to write what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// Masters, their pipes, the mounts of these, and what is on them
    Tree,
    /// The columns, for programs
    Json,
    /// The report that autofs-dump reads
    Yaml,
    /// Metrics, for the textfile collector of Prometheus' node exporter
    Openmetrics,
}

/// What is written, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// The table, on standard output.
    Table(Choice),
    /// JSON, on standard output.
    Json(Choice),
    /// Something without columns, there or to a file.
    Document(Document, Option<PathBuf>),
}

/// What has no columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// Masters with all that hangs on them.
    Tree,
    /// The report.
    Yaml,
    /// Metrics.
    Metrics,
    /// What is not well.
    Check,
}

const AFTER_HELP: &str = "\
Exit codes:
  0  done; with --check: every mount is well
  1  failed
  2  wrong usage
  3  --check found a mount that is not well";

impl Cli {
    /// What the command line means; ends the program where it means nothing.
    pub fn form(&self) -> Form {
        let columns = |make: fn(Choice) -> Form| match &self.output {
            None => Ok(make(Choice::default())),
            Some(list) => Choice::parse(&list.to_string_lossy()).map(make),
        };
        let document = |document| Ok(Form::Document(document, self.output.as_ref().map(PathBuf::from)));
        let form = match self.format {
            _ if self.check => document(Document::Check),
            _ if self.json => columns(Form::Json),
            _ if self.tree => document(Document::Tree),
            Format::Table => columns(Form::Table),
            Format::Json => columns(Form::Json),
            Format::Tree => document(Document::Tree),
            Format::Yaml => document(Document::Yaml),
            Format::Openmetrics => document(Document::Metrics),
        };
        form.unwrap_or_else(|error| refuse(&Self::command().error(ErrorKind::InvalidValue, error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["autofs-inspect"].into_iter().chain(line.split(' ')))
    }

    #[test]
    fn the_command_line_is_well_defined() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_that_exclude_each_other_are_refused() {
        for line in [
            "-p 1 -A",
            "-J -f yaml",
            "-T -J",
            "--check -J",
            "--check --watch",
            "-q -v",
            "-p 0",
            "-p x",
            "-H /net",
        ] {
            assert!(parse(line).is_err(), "{line} was taken");
        }
    }

    #[test]
    fn output_names_columns_where_there_are_any_and_else_a_file() {
        let form = |line| parse(line).expect("valid").form();
        let choice = Choice::parse("+PIPE").expect("a column");
        assert_eq!(form("-o +PIPE"), Form::Table(choice.clone()));
        assert_eq!(form("-J -o +PIPE"), Form::Json(choice));
        let file = Some(PathBuf::from("x"));
        assert_eq!(form("-f yaml -o x"), Form::Document(Document::Yaml, file.clone()));
        assert_eq!(form("-f openmetrics -o x"), Form::Document(Document::Metrics, file.clone()));
        assert_eq!(form("--check -o x"), Form::Document(Document::Check, file));
        assert_eq!(form("--tree"), Form::Document(Document::Tree, None));
    }

    #[test]
    fn watch_has_a_usual_time_and_leaves_paths_alone() {
        let cli = parse("--watch /net").expect("valid");
        assert_eq!((cli.watch, cli.paths), (Some(Duration::from_secs(2)), vec!["/net".into()]));
        assert_eq!(parse("--watch=0.5").expect("valid").watch, Some(Duration::from_millis(500)));
    }
}
