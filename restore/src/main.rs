//! Recreate the autofs mounts of an image; see the library for the stages.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use autofs_cr_common::exit::{Exit, conclude};
use autofs_cr_common::limits::ensure_enough_descriptors;
use autofs_cr_common::power;
use autofs_restore::{TOOL, cli, run};

fn main() -> ExitCode {
    let arguments: cli::Arguments = autofs_cr_common::cli::arguments();
    conclude(TOOL, settled(&arguments))
}

/// With no more power than it takes, and room for its descriptors.
fn settled(arguments: &cli::Arguments) -> anyhow::Result<Exit> {
    ensure_enough_descriptors()?;
    power::settle(&arguments.roles())?;
    run::run(arguments)
}
