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
//! | `aims.rs` | the stages, their floors and what is aimed at |
//! | `results.rs`, `table.rs` | what was measured of the stages, and what is printed of it |
//! | `baseline.rs` | figures that are kept, to be compared with |
//! | `masters.rs` | many masters beside one |
//! | `load.rs`, `touch.rs` | what fails for those who use mounts while they are replaced |
//! | `host.rs` | a look at a large host |
//! | `crowd.rs` | the processes of that host |
//!
//! Loops that must be inside the sandbox, and the process that runs a tool, are this program again,
//! called with a subcommand.
#![forbid(unsafe_code)]

mod aims;
mod baseline;
mod cli;
mod crowd;
mod floor;
mod host;
mod load;
mod masters;
mod measure;
mod results;
mod stages;
mod table;
mod touch;
mod world;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use autofs_cr_tests::guard::{Need, alone};
use clap::Parser;

use cli::{Cli, Part, Subject};
use results::Results;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ran = match &cli.part {
        Some(Part::Measure(order)) => measure::run(order),
        Some(Part::Loop(order)) => floor::run(order),
        Some(Part::Crowd(order)) => crowd::run(order),
        Some(Part::Touch(order)) => touch::run(order),
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
    // Tests take device numbers too, and a restore wants its own again.
    let alone = alone();
    let figures = measure(cli);
    drop(alone);
    if cli.json {
        println!("{}", serde_json::to_string_pretty(&figures.json())?);
    } else {
        print!("{}", figures.text(cli)?);
    }
    figures.failure.map_or(Ok(()), Err)
}

/// All that was measured.
#[derive(Default)]
struct Figures {
    stages: Option<Results>,
    masters: Option<masters::Figures>,
    load: Option<load::Figures>,
    host: Option<host::Figures>,
    /// What ended it: what was measured before is worth seeing too.
    failure: Option<anyhow::Error>,
}

fn measure(cli: &Cli) -> Figures {
    let mut figures = Figures::default();
    let mut measured = || -> Result<()> {
        if cli.wants(Subject::Stages) {
            let stages = figures.stages.insert(Results::default());
            cli.sizes.iter().try_for_each(|&mounts| stages::measure(mounts, cli.runs, stages))?;
        }
        figures.masters = cli.wants(Subject::Masters).then(|| masters::measure(cli.runs)).transpose()?;
        figures.load = cli.wants(Subject::Load).then(|| load::measure(cli.runs)).transpose()?;
        figures.host = cli.wants(Subject::Host).then(|| host::measure(cli.runs)).transpose()?;
        Ok(())
    };
    figures.failure = measured().err();
    figures
}

impl Figures {
    /// What programs read.
    fn json(&self) -> serde_json::Value {
        let rows = self.stages.as_ref().map(Results::rows);
        serde_json::json!({
            "kernel": baseline::kernel(),
            "growth": rows.as_deref().map(results::growth),
            "stages": rows,
            "masters": self.masters,
            "load": self.load,
            "host": self.host,
        })
    }

    /// What people read.
    fn text(&self, cli: &Cli) -> Result<String> {
        let mut parts = Vec::new();
        let mut part = |print: &dyn Fn(&mut String) -> Result<()>| -> Result<()> {
            let mut text = String::new();
            print(&mut text)?;
            parts.push(text);
            Ok(())
        };
        if let Some(stages) = &self.stages {
            part(&|text| table::print(stages, text))?;
        }
        if let Some((path, stages)) = cli.baseline.as_ref().zip(self.stages.as_ref()) {
            part(&|text| baseline::compare(path, stages.rows(), text))?;
        }
        if let Some(masters) = &self.masters {
            part(&|text| masters::print(masters, text))?;
        }
        if let Some(load) = &self.load {
            part(&|text| load::print(load, text))?;
        }
        if let Some(host) = &self.host {
            part(&|text| host::print(host, text))?;
        }
        Ok(parts.join("\n"))
    }
}
