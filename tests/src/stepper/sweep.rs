//! Trying one point after the other.

use anyhow::{Context, Result, ensure};

use super::{Calls, Point, Step};

/// Which points are tried: `all` system calls, all `changes`, or a sample of so many of the latter.
const WHICH: &str = "AUTOFS_CR_SWEEP";

/// How many points are left out before the first.
const OFFSET: &str = "AUTOFS_CR_SWEEP_OFFSET";

/// More failures than this are not looked for.
const MOST_FAILURES: usize = 25;

/// Runs `round` at one point after the other, until it ends by itself, and prints how many were tried. `scene` makes
/// what the rounds work on: a new one after each failure, as that may have left anything. Unless the environment says
/// otherwise it is a sample of so many points.
pub fn sweep<S>(
    name: &str,
    sample: u64,
    scene: impl Fn() -> Result<S>,
    round: impl Fn(&mut S, Point) -> Result<Step>,
) -> Result<()> {
    let (of, sample) = which(sample)?;
    let mut now = scene().context("make the scene")?;
    // How many there are, by a run that is not killed.
    let Step::Ended(last) = round(&mut now, Point { number: u64::MAX, of })? else {
        unreachable!("so many calls are never made")
    };
    let stride = sample.map_or(1, |sample| (last / sample).max(1));
    let (mut tried, mut failures) = (0, Vec::new());
    let offset = std::env::var(OFFSET).map_or(Ok(0), |text| text.parse::<u64>()).context(OFFSET)?;
    let mut next = 1 + offset % stride;
    loop {
        let point = Point { number: next, of };
        match round(&mut now, point) {
            Ok(Step::Ended(_)) => break,
            Ok(Step::Reached) => {}
            Err(error) => {
                eprintln!("{name}: killed at call {next}: {error:#}");
                failures.push(next);
                ensure!(failures.len() < MOST_FAILURES, "{name}: too many failures: {failures:?}");
                now = scene().context("make the scene")?;
            }
        }
        tried += 1;
        next += stride;
    }
    println!("{name}: killed at {tried} of {last} system calls ({of:?}), {} failed", failures.len());
    ensure!(failures.is_empty(), "{name}: failed when killed at {failures:?}");
    Ok(())
}

/// Which calls are counted, and how many of them are tried; none for all.
fn which(sample: u64) -> Result<(Calls, Option<u64>)> {
    Ok(match std::env::var(WHICH).as_deref() {
        Err(_) => (Calls::Changes, Some(sample)),
        Ok("all") => (Calls::All, None),
        Ok("changes") => (Calls::Changes, None),
        Ok(number) => (Calls::Changes, Some(number.parse::<u64>().context(WHICH)?.max(1))),
    })
}
