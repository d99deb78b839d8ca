//! Many masters with few mounts each, beside one master with as many.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::aims::MANY_MASTERS;
use crate::results::Spread;
use crate::stages::{Documents, create_and_fix};
use crate::table::verdict;
use crate::world::World;

/// The masters, and the mounts of each.
const MASTERS: usize = 200;
const EACH: usize = 100;

/// Device numbers are the machine's: something else can take one that the restore needs.
const ATTEMPTS: usize = 3;

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figures {
    masters: usize,
    each: usize,
    rows: Vec<Row>,
}

/// One stage. Times are in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    stage: String,
    /// With many masters.
    many: Spread,
    /// With one.
    one: Spread,
    ratio: f64,
    aim: f64,
}

/// Builds one world after the other, and measures in each.
pub fn measure(runs: usize) -> Result<Figures> {
    let one = times(1, MASTERS * EACH, runs)?;
    let many = times(MASTERS, EACH, runs)?;
    let row = |stage: &str, part: fn(&[Duration; 2]) -> Duration| -> Result<Row> {
        let spread =
            |times: &[[Duration; 2]]| Spread::new(times.iter().map(part)).context("nothing was measured");
        let (many, one) = (spread(&many)?, spread(&one)?);
        Ok(Row { stage: stage.to_owned(), many, one, ratio: many.median / one.median, aim: MANY_MASTERS })
    };
    let rows = vec![row("restore, create", |times| times[0])?, row("fixup", |times| times[1])?];
    Ok(Figures { masters: MASTERS, each: EACH, rows })
}

fn times(masters: usize, each: usize, runs: usize) -> Result<Vec<[Duration; 2]>> {
    let world = World::of_masters(masters, each)?;
    let documents = Documents::new(&world);
    documents.make_image(&world)?;
    let mut times = Vec::new();
    for round in 1..=runs {
        eprintln!("bench: {masters} masters with {each} mounts, round {round} of {runs}");
        times.push(once(&world, &documents)?);
    }
    world.close()?;
    Ok(times)
}

fn once(world: &World, documents: &Documents) -> Result<[Duration; 2]> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match create_and_fix(world, documents).and_then(|samples| world.check_connected().map(|()| samples)) {
            Ok(samples) => return Ok(samples.map(|sample| sample.time)),
            Err(error) => last = Some(error),
        }
        world.reset().context("put the mounts back")?;
        documents.make_image(world)?;
    }
    Err(last.context("it was not tried")?)
}

/// What people read.
pub fn print(figures: &Figures, text: &mut String) -> Result<()> {
    let Figures { masters, each, rows } = figures;
    writeln!(
        text,
        "{masters} masters with {each} mounts each, and one master with as many as all of them\n"
    )?;
    writeln!(
        text,
        "{:<18} {:>11} {:>19} {:>14} {:>19} {:>6} {:>4}",
        "stage", "many", "min..max", "one", "min..max", "ratio", "aim"
    )?;
    for Row { stage, many, one, ratio, aim } in rows {
        let range = |spread: &Spread| format!("{:.1}..{:.1} ms", spread.min, spread.max);
        writeln!(
            text,
            "{stage:<18} {:>8.1} ms {:>19} {:>11.1} ms {:>19} {ratio:>6.2} {aim:>4}  {}",
            many.median,
            range(many),
            one.median,
            range(one),
            verdict(Some(ratio <= aim))
        )?;
    }
    Ok(())
}
