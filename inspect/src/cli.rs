//! The command line.

use autofs_cr_common::cli::{OutputArg, Verbosity};
use autofs_cr_common::model::Pid;
use clap::{Parser, ValueEnum};

/// Show every autofs mount, its master and its state, without touching any of them
#[derive(Debug, Parser)]
#[command(name = "autofs-inspect", version, after_help = EXIT_CODES)]
pub struct Cli {
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

    /// Write a line for each mount that is not connected, with those who wait on it, and nothing else
    #[arg(long, conflicts_with_all = ["format", "json"])]
    pub check: bool,

    #[command(flatten)]
    pub output: OutputArg,

    #[command(flatten)]
    pub verbosity: Verbosity,
}

/// How to write a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// The report that autofs-dump reads
    Yaml,
    /// The same fields, for other programs
    Json,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; with --check: every mount is connected
  1  failed
  2  wrong usage
  3  --check found a mount that is not connected";

impl Cli {
    /// The format that was asked for.
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_defined() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_that_exclude_each_other_are_refused() {
        for line in ["-p 1 -A", "-J -f yaml", "--check -J", "-q -v", "-p 0", "-p x"] {
            let words = ["autofs-inspect"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line} was taken");
        }
    }
}
