//! Connect masters to their restored autofs mounts; see the library for the stages.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use autofs_cr_common::exit::conclude;
use autofs_cr_common::limits::ensure_enough_descriptors;
use autofs_fixup::{TOOL, cli, run};
use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    conclude(TOOL, ensure_enough_descriptors().and_then(|()| run::run(&arguments)))
}
