//! Write the autofs mounts of a mount namespace to an image; see the library for the stages.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use autofs_cr_common::cli::arguments;
use autofs_cr_common::exit::{Exit, conclude};
use autofs_cr_common::limits::ensure_enough_descriptors;
use autofs_cr_common::power;
use autofs_dump::{TOOL, cli::Cli, run};

fn main() -> ExitCode {
    let cli: Cli = arguments();
    conclude(TOOL, settled(&cli))
}

/// With no more power than it takes, and room for its descriptors.
fn settled(cli: &Cli) -> anyhow::Result<Exit> {
    ensure_enough_descriptors()?;
    power::settle(&cli.roles())?;
    run(cli)
}
