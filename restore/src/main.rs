//! Recreate the autofs mounts of an image; see the library for the stages.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use autofs_cr_common::{cli::arguments, exit};
use autofs_restore::{TOOL, cli::Arguments, run};

fn main() -> ExitCode {
    let arguments: Arguments = arguments();
    exit::run(TOOL, &arguments.roles(), || run::run(&arguments))
}
