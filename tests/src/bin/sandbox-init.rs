//! Makes the namespaces of a sandbox, and runs processes in them. Started by the tests only.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use autofs_cr_tests::init::{Cli, run};
use clap::Parser;

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|error| {
        eprintln!("sandbox-init: {error:#}");
        ExitCode::FAILURE
    })
}
