//! The blackout: what fails for those who use the mounts while they are replaced.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cli::Loop;
use crate::results::Spread;
use crate::stages::{Documents, replace_with};
use crate::touch::Seen;
use crate::world::World;

/// The mounts, each with something mounted on it.
const MOUNTS: usize = 1000;

/// The threads that read a file on them.
pub const THREADS: usize = 2;

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figures {
    mounts: usize,
    threads: usize,
    rows: Vec<Row>,
    /// Unmounting one mount and making another with its number, in a plain loop; in microseconds.
    shortest: f64,
}

/// One way of replacing. Times are in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    what: String,
    /// How long the restores took.
    restore: Spread,
    accesses: u64,
    failed: u64,
    errors: String,
    /// The mounts that were replaced, in all rounds.
    replaced: usize,
    blackouts: usize,
    blackout: Option<Spread>,
    /// The longest access that did not fail.
    slowest: f64,
}

/// What is asked of restore, and how it is named.
const WAYS: [(&str, &[&str]); 2] =
    [("device number kept", &["--identity=device"]), ("any device number", &["--identity=none"])];

/// Replaces all mounts under load, in each way.
pub fn measure(runs: usize) -> Result<Figures> {
    let rows = WAYS.iter().map(|(what, options)| row(what, options, runs)).collect::<Result<_>>()?;
    let world = World::new(MOUNTS)?;
    let floors = (0..runs).map(|_| Ok(world.run_loop(Loop::Replace)?.into_iter().sum()));
    let floors = floors.collect::<Result<Vec<Duration>>>()?;
    world.close()?;
    let floor = Spread::new(floors).context("nothing was measured")?;
    Ok(Figures { mounts: MOUNTS, threads: THREADS, rows, shortest: floor.median * 1e3 / MOUNTS as f64 })
}

fn row(what: &str, options: &[&str], runs: usize) -> Result<Row> {
    let mut times = Vec::new();
    let mut all = Seen::default();
    for round in 1..=runs {
        eprintln!("bench: replacing under load, {what}, round {round} of {runs}");
        let world = World::new(MOUNTS)?;
        let documents = Documents::new(&world);
        let load = world.load(THREADS)?;
        documents.make_image(&world)?;
        let replaced = replace_with(&world, &documents, options);
        let seen = load.end()?;
        times.push(replaced?.time());
        world.check_connected()?;
        world.close()?;
        all.add(seen);
    }
    let failed: u64 = all.failed.values().sum();
    ensure!(all.accesses > failed, "no access worked");
    let errors: Vec<String> = all.failed.iter().map(|(error, count)| format!("{count} {error}")).collect();
    Ok(Row {
        what: what.to_owned(),
        restore: Spread::new(times).context("nothing was measured")?,
        accesses: all.accesses,
        failed,
        errors: errors.join(", "),
        replaced: MOUNTS * runs,
        blackouts: all.blackouts.len(),
        blackout: Spread::new(all.blackouts.iter().map(|&time| Duration::from_nanos(time))),
        slowest: all.slowest as f64 / 1e6,
    })
}

/// What people read.
pub fn print(figures: &Figures, text: &mut String) -> Result<()> {
    let Figures { mounts, threads, rows, shortest } = figures;
    writeln!(
        text,
        "replacing {mounts} mounts while {threads} threads read a file on each all the time; one cannot be replaced\nunder its number in less than {shortest:.0} us\n"
    )?;
    writeln!(
        text,
        "{:<20} {:>10} {:>9} {:>7} {:>15} {:>10} {:>18} {:>9}",
        "", "restore", "accesses", "failed", "failed per mount", "blackout", "min..max", "slowest"
    )?;
    for row in rows {
        let per_mount = row.failed as f64 / row.replaced as f64;
        let (median, range) = row.blackout.map_or_else(Default::default, |blackout| {
            (format!("{:.3} ms", blackout.median), format!("{:.3}..{:.3}", blackout.min, blackout.max))
        });
        writeln!(
            text,
            "{:<20} {:>7.1} ms {:>9} {:>7} {per_mount:>15.3} {median:>10} {range:>18} {:>6.1} ms",
            row.what, row.restore.median, row.accesses, row.failed, row.slowest
        )?;
    }
    for row in rows.iter().filter(|row| row.failed > 0) {
        writeln!(text, "{}: {} mounts failed for a time: {}", row.what, row.blackouts, row.errors)?;
    }
    Ok(())
}
