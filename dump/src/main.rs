//! Write the autofs mounts of a mount namespace to an image; see the library for the stages.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use autofs_cr_common::{cli::arguments, exit};
use autofs_dump::{TOOL, cli::Cli, run};

fn main() -> ExitCode {
    let cli: Cli = arguments();
    exit::run(TOOL, &cli.roles(), || run(&cli))
}
