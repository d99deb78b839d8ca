//! What was measured, and how it is printed.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

/// How much more than the number of mounts a time may grow, for what varies from run to run.
const TOLERANCE: f64 = 1.1;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    InspectTable,
    InspectYaml,
    Dump,
    Replace,
    Connect,
    Create,
    Fixup,
}

impl Stage {
    const ALL: [Self; 7] = [
        Self::InspectTable,
        Self::InspectYaml,
        Self::Dump,
        Self::Connect,
        Self::Replace,
        Self::Create,
        Self::Fixup,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::InspectTable => "inspect",
            Self::InspectYaml => "inspect -f yaml",
            Self::Dump => "dump",
            Self::Connect => "restore, connect",
            Self::Replace => "restore --replace",
            Self::Create => "restore, create",
            Self::Fixup => "fixup --pid",
        }
    }

    /// What the floor does for each mount.
    fn floor(self) -> &'static str {
        match self {
            Self::InspectTable | Self::InspectYaml | Self::Dump => "read mountinfo",
            Self::Connect => "make a connected superblock, set its timeout, mount it",
            Self::Replace => "unmount the old one; as for connect",
            Self::Create => "as for connect, and read its device number, make it catatonic",
            Self::Fixup => "OPENMOUNT, SETPIPEFD, close",
        }
    }

    /// How many times the floor it may take.
    fn aim(self) -> f64 {
        match self {
            Self::InspectTable | Self::InspectYaml | Self::Dump => 5.0,
            Self::Connect | Self::Replace | Self::Create => 2.0,
            Self::Fixup => 10.0,
        }
    }
}

/// One run of a stage.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub time: Duration,
    /// Peak memory in KiB.
    pub memory: u64,
}

/// All runs of one stage with one number of mounts.
#[derive(Debug)]
struct Entry {
    stage: Stage,
    mounts: usize,
    samples: Vec<Sample>,
    floor: Vec<Duration>,
    failures: Vec<String>,
}

/// All that was measured.
#[derive(Debug, Default)]
pub struct Results {
    entries: Vec<Entry>,
    starts: Vec<Duration>,
}

impl Results {
    /// A program that does nothing but say its version.
    pub fn add_start(&mut self, time: Duration) {
        self.starts.push(time);
    }

    /// A run of a stage.
    pub fn sample(&mut self, stage: Stage, mounts: usize, sample: Sample) {
        self.entry(stage, mounts).samples.push(sample);
    }

    /// Runs of its floor.
    pub fn floor(&mut self, stage: Stage, mounts: usize, times: Vec<Duration>) {
        self.entry(stage, mounts).floor.extend(times);
    }

    /// A run that failed.
    pub fn failure(&mut self, stage: Stage, mounts: usize, why: String) {
        self.entry(stage, mounts).failures.push(why);
    }

    fn entry(&mut self, stage: Stage, mounts: usize) -> &mut Entry {
        let found = self.entries.iter().position(|entry| (entry.stage, entry.mounts) == (stage, mounts));
        let at = found.unwrap_or_else(|| {
            let (samples, floor, failures) = Default::default();
            self.entries.push(Entry { stage, mounts, samples, floor, failures });
            self.entries.len() - 1
        });
        &mut self.entries[at]
    }

    /// A row for each stage and number of mounts.
    pub fn rows(&self) -> Vec<Row> {
        let of_stage = |stage| self.entries.iter().filter(move |entry| entry.stage == stage);
        Stage::ALL.into_iter().flat_map(of_stage).map(Row::new).collect()
    }
}

/// What is told of one stage with one number of mounts. Times are in milliseconds.
#[derive(Debug, Serialize)]
pub struct Row {
    stage: &'static str,
    mounts: usize,
    /// Absent if every run failed.
    times: Option<Spread>,
    floor: Option<Spread>,
    /// The median in floors.
    ratio: Option<f64>,
    aim: f64,
    /// The highest peak of memory, in MiB.
    memory: f64,
    failures: Vec<String>,
}

/// Some times, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` where there is no time.
    pub fn new(times: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut times: Vec<f64> = times.into_iter().map(|time| time.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        let (low, high) = (times.get(times.len().checked_sub(1)? / 2)?, times.get(times.len() / 2)?);
        Some(Self { median: (low + high) / 2.0, min: *times.first()?, max: *times.last()? })
    }
}

impl Row {
    fn new(entry: &Entry) -> Self {
        let times = Spread::new(entry.samples.iter().map(|sample| sample.time));
        let floor = Spread::new(entry.floor.iter().copied());
        let memory = entry.samples.iter().map(|sample| sample.memory).max().unwrap_or_default();
        Self {
            stage: entry.stage.name(),
            mounts: entry.mounts,
            times,
            floor,
            ratio: times.zip(floor).map(|(times, floor)| times.median / floor.median),
            aim: entry.stage.aim(),
            memory: memory as f64 / 1024.0,
            failures: entry.failures.clone(),
        }
    }

    fn is_met(&self) -> bool {
        self.ratio.is_some_and(|ratio| ratio <= self.aim)
    }
}

/// What people read.
pub fn print(results: &Results, text: &mut String) -> Result<()> {
    let rows = results.rows();
    table(&rows, text)?;
    growth(&rows, text)?;
    notes(results, &rows, text)
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
        let met = if row.is_met() { "met" } else { "not met" };
        let each = times.median * 1e3 / row.mounts as f64;
        writeln!(
            text,
            "{:>7.1} ms {spread:>19} {each:>6.1} us {:>7.1} ms {ratio:>6.1} {:>4}  {met:<8} {:>5.1} MiB",
            times.median, floor.median, row.aim, row.memory
        )?;
    }
    Ok(())
}

/// How each stage grows from one number of mounts to the next.
fn growth(rows: &[Row], text: &mut String) -> Result<()> {
    let steps = rows.windows(2).filter(|pair| pair[0].stage == pair[1].stage);
    let mut steps = steps.filter(|pair| pair[0].mounts < pair[1].mounts).peekable();
    if steps.peek().is_some() {
        writeln!(text, "\ngrowth of the median, and of its floor, with the number of mounts:")?;
    }
    for pair in steps {
        let (Some(from), Some(to)) = (pair[0].times, pair[1].times) else { continue };
        let (Some(floor_from), Some(floor_to)) = (pair[0].floor, pair[1].floor) else { continue };
        let mounts = pair[1].mounts as f64 / pair[0].mounts as f64;
        let grown = to.median / from.median;
        let floor_grown = floor_to.median / floor_from.median;
        let verdict = match grown {
            _ if grown <= mounts * TOLERANCE => "no faster",
            _ if grown <= floor_grown => "as its floor",
            _ => "FASTER",
        };
        writeln!(
            text,
            "{:<18} {:>6} to {:>6} (x{mounts:.1}): x{grown:<5.1} floor x{:<5.1} {verdict}",
            pair[0].stage, pair[0].mounts, pair[1].mounts, floor_grown
        )?;
    }
    Ok(())
}

fn notes(results: &Results, rows: &[Row], text: &mut String) -> Result<()> {
    writeln!(text, "\nthe floor of each stage:")?;
    for stage in Stage::ALL {
        writeln!(text, "{:<18} {}", stage.name(), stage.floor())?;
    }
    if let Some(start) = Spread::new(results.starts.iter().copied()) {
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
