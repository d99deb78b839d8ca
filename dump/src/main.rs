//! Write the autofs mounts of a mount namespace to an image; see the library for the stages.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use autofs_cr_common::exit::conclude;
use autofs_cr_common::limits::ensure_enough_descriptors;
use autofs_dump::{TOOL, cli::Cli, run};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    conclude(TOOL, ensure_enough_descriptors().and_then(|()| run(&cli)))
}
