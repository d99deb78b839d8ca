//! The benchmark: what each stage costs for many direct mounts of one master, and beside it the floor:
//! the same system calls made by a plain loop in this program, in the same run. `scripts/bench` runs it.
//!
//! | file | role |
//! |---|---|
//! | `cli.rs` | its options |
//! | `world.rs` | the sandbox, its master, and the two floors that are timed in it |
//! | `stages.rs` | one round of every stage |
//! | `measure.rs` | one run of a tool: its time, its peak memory |
//! | `floor.rs` | the plain loops |
//! | `table.rs` | what is printed of the stages |
//! | `host.rs` | a look at a large host |
//! | `crowd.rs` | the processes of that host |
//!
//! Loops that must be inside the sandbox, and the process that runs a tool, are this program again,
//! called with a subcommand.
#![forbid(unsafe_code)]

mod cli;
mod crowd;
mod floor;
mod host;
mod measure;
mod stages;
mod table;
mod world;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use autofs_cr_tests::guard::Need;
use clap::Parser;

use cli::{Cli, Part, Subject};
use table::Results;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ran = match &cli.part {
        Some(Part::Measure(order)) => measure::run(order),
        Some(Part::Loop(order)) => floor::run(order),
        Some(Part::Crowd(order)) => crowd::run(order),
        None => benchmark(&cli),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn benchmark(cli: &Cli) -> Result<()> {
    for need in [Need::Root, Need::Autofs, Need::Ptrace, Need::PipeInode] {
        let missing = need.missing();
        ensure!(missing.is_none(), "it cannot run here: {}", missing.unwrap_or_default());
    }
    let mut stages = Results::default();
    let mut measured = Ok(());
    if cli.wants(Subject::Stages) {
        measured = cli.sizes.iter().try_for_each(|&mounts| stages::measure(mounts, cli.runs, &mut stages));
    }
    let host = cli.wants(Subject::Host).then(|| host::measure(cli.runs)).transpose();
    // What was measured before a failure is worth seeing too.
    print(cli, &stages, host.as_ref().ok().and_then(Option::as_ref))?;
    measured.and(host.map(drop))
}

fn print(cli: &Cli, stages: &Results, host: Option<&host::Figures>) -> Result<()> {
    if cli.json {
        let all = serde_json::json!({ "stages": stages.rows(), "host": host });
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let mut text = String::new();
    if cli.wants(Subject::Stages) {
        table::print(stages, &mut text)?;
    }
    if let Some(host) = host {
        let gap = if text.is_empty() { "" } else { "\n" };
        text.push_str(gap);
        host::print(host, &mut text)?;
    }
    print!("{text}");
    Ok(())
}
