//! Connect masters to their restored autofs mounts; see the library for the stages.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use autofs_fixup::{TOOL, cli, run};
use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    autofs_cr_common::exit::conclude(TOOL, run::run(&arguments))
}
