//! The reference master: a small autofs daemon for the tests, the demo and the benchmark.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use autofs_cr_tests::master::{Cli, run};
use clap::Parser;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reference-master: {error:#}");
            ExitCode::FAILURE
        }
    }
}
