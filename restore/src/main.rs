//! Recreate the autofs mounts of an image; see the library for the stages.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use autofs_restore::{TOOL, cli, run};
use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    // A descriptor is held for each mount, also by the children.
    autofs_cr_common::limits::raise_descriptors();
    autofs_cr_common::exit::conclude(TOOL, run::run(&arguments))
}
