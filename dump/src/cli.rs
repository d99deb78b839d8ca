//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use autofs_cr_common::cli::{Input, OutputArg, Verbosity, parse_seconds};
use autofs_cr_common::model::Pid;
use autofs_cr_common::power::Role;
use clap::Parser;
use clap::builder::{PathBufValueParser, TypedValueParser};

/// Write the autofs mounts of a mount namespace to an image, from which autofs-restore makes them again
///
/// What cannot be restored is refused by name, and then nothing is written.
#[derive(Debug, Parser)]
#[command(name = "autofs-dump", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Only the autofs mounts at or below these paths [default: all]
    #[arg(value_name = "PATH", value_parser = PathBufValueParser::new().try_map(absolute))]
    pub chosen: Vec<PathBuf>,

    /// All but the autofs mounts at or below this path; can be given several times
    #[arg(long, value_name = "PATH", value_parser = PathBufValueParser::new().try_map(absolute))]
    pub exclude: Vec<PathBuf>,

    /// Dump the mount namespace of this process, as from its root directory [default: the own one, or
    /// the only one of the report]
    #[arg(short, long, value_name = "PID")]
    pub pid: Option<Pid>,

    /// Where the report comes from.
    #[command(flatten)]
    pub input: Input,

    /// Where the image goes.
    #[command(flatten)]
    pub output: OutputArg,

    /// How long to wait where a request that is pending keeps the contents of a mount from being read
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "2")]
    pub timeout: Duration,

    /// How much is said.
    #[command(flatten)]
    pub verbosity: Verbosity,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, and nothing was written
  2  wrong usage";

/// Paths are those of the mount namespace that is dumped, where this process's directory means nothing.
fn absolute(path: PathBuf) -> Result<PathBuf, &'static str> {
    if path.is_absolute() { Ok(path) } else { Err("not absolute") }
}

impl Cli {
    /// What it does, as far as it takes power.
    pub fn roles(&self) -> Vec<Role> {
        let has_files = self.input.input.is_some() || self.output.output.is_some();
        std::iter::once(Role::Dump).chain(has_files.then_some(Role::Files)).collect()
    }

    /// Where the image goes, for messages.
    pub fn output_name(&self) -> String {
        match &self.output.output {
            Some(path) => path.display().to_string(),
            None => "standard output".to_owned(),
        }
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
}
