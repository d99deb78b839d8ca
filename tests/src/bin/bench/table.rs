//! What is printed of the stages.

use std::fmt::Write;

use anyhow::Result;

use crate::aims::AIMS;
use crate::results::{Growth, Results, Row, growth};

/// What people read.
pub fn print(results: &Results, text: &mut String) -> Result<()> {
    let rows = results.rows();
    table(&rows, text)?;
    grown(&growth(&rows), text)?;
    notes(results, &rows, text)
}

/// Whether an aim is reached, in a word; nothing where there is no aim.
pub fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "not met",
        None => "",
    }
}

fn table(rows: &[Row], text: &mut String) -> Result<()> {
    writeln!(
        text,
        "{:<18} {:>6} {:>10} {:>19} {:>9} {:>10} {:>6} {:>4}  {:<8} {:>9}",
        "stage", "mounts", "median", "min..max", "each", "floor", "ratio", "aim", "", "memory"
    )?;
    for row in rows {
        write!(text, "{:<18} {:>6} ", row.stage, row.mounts)?;
        let (Some(times), Some(floor), Some(ratio)) = (row.times, row.floor, row.ratio) else {
            writeln!(text, "failed: {}", row.failures.first().map_or("no run", String::as_str))?;
            continue;
        };
        let spread = format!("{:.1}..{:.1} ms", times.min, times.max);
        let aim = row.aim.map(|aim| aim.to_string()).unwrap_or_default();
        let each = times.median * 1e3 / row.mounts as f64;
        let memory = if row.memory > 0.0 { format!("{:.1} MiB", row.memory) } else { String::new() };
        let line = format!(
            "{:>7.1} ms {spread:>19} {each:>6.1} us {:>7.1} ms {ratio:>6.1} {aim:>4}  {:<8} {memory:>9}",
            times.median,
            floor.median,
            verdict(row.is_met())
        );
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(())
}

fn grown(all: &[Growth], text: &mut String) -> Result<()> {
    if !all.is_empty() {
        writeln!(text, "\ngrowth of the median, and of its floor, with the number of mounts:")?;
    }
    for Growth { stage, from, to, grown, floor_grown, aim } in all {
        let met = verdict(Some(grown <= aim));
        writeln!(
            text,
            "{stage:<18} {from:>6} to {to:>6}: x{grown:<5.1} floor x{floor_grown:<5.1} aim x{aim:<5.1} {met}"
        )?;
    }
    Ok(())
}

fn notes(results: &Results, rows: &[Row], text: &mut String) -> Result<()> {
    writeln!(text, "\nthe floor of each stage, for each mount:")?;
    for aim in &AIMS {
        let floors: Vec<&str> = aim.floors.iter().map(|floor| floor.name()).collect();
        writeln!(text, "{:<18} {}", aim.name, floors.join("; "))?;
    }
    if let Some(start) = results.start() {
        writeln!(
            text,
            "\nstarting and ending a program is part of every time but those of the floors: {:.1} ms ({:.1}..{:.1})",
            start.median, start.min, start.max
        )?;
    }
    for row in rows {
        if let Some(last) = row.failures.last() {
            let count = row.failures.len();
            writeln!(text, "{} with {} mounts failed in {count} rounds: {last}", row.stage, row.mounts)?;
        }
    }
    Ok(())
}
