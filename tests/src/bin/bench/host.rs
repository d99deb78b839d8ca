//! A large host: many direct mounts, many processes, many descriptors. What a look at it costs beside
//! reading mountinfo, and beside findmnt(8).

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use autofs_cr_tests::sandbox::program;
use serde::Serialize;

use crate::floor;
use crate::measure::{Measured, Run};
use crate::results::Spread;
use crate::world::World;

/// The host of the aims.
const MOUNTS: usize = 20_000;
const PROCESSES: usize = 2_000;
const DESCRIPTORS: usize = 100_000;

/// How many floors each may take.
const TABLE_AIM: f64 = 3.0;
const DOCUMENT_AIM: f64 = 5.0;

/// How many times faster than findmnt the table has to be.
const FINDMNT_AIM: f64 = 20.0;

/// The peak memory of the table, in MiB.
const MEMORY_AIM: f64 = 64.0;

/// findmnt takes seconds, so it is run less often.
const FINDMNT_RUNS: usize = 2;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Figures {
    mounts: usize,
    processes: usize,
    descriptors: usize,
    /// One read of mountinfo to its end.
    floor: Spread,
    /// Times of the tools, the table first.
    rows: Vec<Row>,
    aims: Vec<Aim>,
}

/// One program. Times are in milliseconds, memory in MiB.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    times: Spread,
    /// The median in floors.
    ratio: f64,
    memory: f64,
}

/// What was aimed at.
#[derive(Debug, Serialize)]
struct Aim {
    what: &'static str,
    reached: f64,
    aim: f64,
    met: bool,
}

/// Builds the host and measures in rounds, so that all meet the same moments.
pub fn measure(runs: usize) -> Result<Figures> {
    eprintln!("bench: a host with {MOUNTS} mounts, {PROCESSES} processes and {DESCRIPTORS} descriptors");
    let world = World::large(MOUNTS)?;
    world.crowd(PROCESSES, DESCRIPTORS / PROCESSES)?;
    check_table(&world)?;
    let mut samples = Samples::default();
    for round in 1..=runs {
        eprintln!("bench: host, round {round} of {runs}");
        samples.round(&world, round <= FINDMNT_RUNS)?;
    }
    world.close()?;
    samples.figures()
}

/// The table that is timed later must be the right one.
fn check_table(world: &World) -> Result<()> {
    let path = world.scratch().join("table");
    inspect(world, &[]).output(&path).finish()?;
    let table = std::fs::read_to_string(&path)?;
    let connected = table.lines().filter(|line| line.contains(" connected ")).count();
    ensure!(connected == MOUNTS, "the table has {connected} connected mounts in place of {MOUNTS}");
    Ok(())
}

fn inspect(world: &World, more: &[&str]) -> Run {
    run(world, program("autofs-inspect"), &[&["-p", &world.pid().to_string()], more].concat())
}

fn run(world: &World, program: PathBuf, arguments: &[&str]) -> Run {
    let words = std::iter::once(program.into_os_string()).chain(arguments.iter().map(Into::into));
    Run::new(world.scratch(), words)
}

/// Runs of everything.
#[derive(Default)]
struct Samples {
    floor: Vec<Duration>,
    table: Vec<Measured>,
    yaml: Vec<Measured>,
    dump: Vec<Measured>,
    findmnt: Vec<Measured>,
}

impl Samples {
    fn round(&mut self, world: &World, with_findmnt: bool) -> Result<()> {
        let pid = world.pid().to_string();
        self.floor.push(floor::read_mountinfo(world.pid())?);
        self.table.push(inspect(world, &[]).finish()?);
        self.yaml.push(inspect(world, &["-f", "yaml"]).finish()?);
        self.floor.push(floor::read_mountinfo(world.pid())?);
        self.table.push(inspect(world, &[]).finish()?);
        self.dump.push(run(world, program("autofs-dump"), &["-p", &pid]).finish()?);
        if with_findmnt {
            self.findmnt.push(run(world, "findmnt".into(), &["--task", &pid, "-t", "autofs"]).finish()?);
        }
        Ok(())
    }

    fn figures(&self) -> Result<Figures> {
        let floor = Spread::new(self.floor.iter().copied());
        let floor = floor.ok_or_else(|| anyhow::anyhow!("nothing was measured"))?;
        let named = [
            ("inspect", &self.table),
            ("inspect -f yaml", &self.yaml),
            ("dump", &self.dump),
            ("findmnt -t autofs", &self.findmnt),
        ];
        let rows: Vec<Row> = named.iter().filter_map(|(name, runs)| Row::new(name, runs, floor)).collect();
        let aims = aims(&rows);
        Ok(Figures { mounts: MOUNTS, processes: PROCESSES, descriptors: DESCRIPTORS, floor, rows, aims })
    }
}

impl Row {
    fn new(name: &'static str, runs: &[Measured], floor: Spread) -> Option<Self> {
        let times = Spread::new(runs.iter().map(Measured::time))?;
        let memory = runs.iter().map(|run| run.memory).max()?;
        Some(Self { name, times, ratio: times.median / floor.median, memory: memory as f64 / 1024.0 })
    }
}

fn aims(rows: &[Row]) -> Vec<Aim> {
    let row = |name| rows.iter().find(|row| row.name == name);
    let at_most = |what, reached, aim| Aim { what, reached, aim, met: reached <= aim };
    let mut aims = Vec::new();
    if let Some(table) = row("inspect") {
        aims.push(at_most("inspect, in times of reading mountinfo", table.ratio, TABLE_AIM));
        if let Some(findmnt) = row("findmnt -t autofs") {
            let reached = findmnt.times.median / table.times.median;
            let what = "findmnt, in times of inspect, at least";
            aims.push(Aim { what, reached, aim: FINDMNT_AIM, met: reached >= FINDMNT_AIM });
        }
        aims.push(at_most("inspect, peak memory in MiB", table.memory, MEMORY_AIM));
    }
    for (name, what) in [
        ("inspect -f yaml", "inspect -f yaml, in times of reading mountinfo"),
        ("dump", "dump, in times of reading mountinfo"),
    ] {
        aims.extend(row(name).map(|row| at_most(what, row.ratio, DOCUMENT_AIM)));
    }
    aims
}

/// What people read.
pub fn print(figures: &Figures, text: &mut String) -> Result<()> {
    let Figures { mounts, processes, descriptors, floor, .. } = figures;
    writeln!(
        text,
        "a host with {mounts} direct mounts, {processes} processes and {descriptors} descriptors; the floor, one read of\nmountinfo: {:.1} ms ({:.1}..{:.1})\n",
        floor.median, floor.min, floor.max
    )?;
    writeln!(text, "{:<18} {:>11} {:>19} {:>7} {:>10}", "program", "median", "min..max", "floors", "memory")?;
    for Row { name, times, ratio, memory } in &figures.rows {
        let spread = format!("{:.1}..{:.1} ms", times.min, times.max);
        writeln!(text, "{name:<18} {:>8.1} ms {spread:>19} {ratio:>7.1} {memory:>6.1} MiB", times.median)?;
    }
    writeln!(text, "\n{:<48} {:>7} {:>5}", "aim", "reached", "aim")?;
    for Aim { what, reached, aim, met } in &figures.aims {
        writeln!(text, "{what:<48} {reached:>7.1} {aim:>5}  {}", if *met { "met" } else { "not met" })?;
    }
    Ok(())
}
