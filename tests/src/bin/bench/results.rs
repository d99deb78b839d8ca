//! What was measured, stage by stage.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::aims::{AIMS, Aim, Floor, GROWTH_OF_TEN, Stage};

/// One run of a stage.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub time: Duration,
    /// Peak memory in KiB.
    pub memory: u64,
}

/// All that was measured with one number of mounts.
#[derive(Debug, Default)]
struct Measured {
    samples: Vec<(Stage, Sample)>,
    floors: Vec<(Floor, Duration)>,
    failures: Vec<(Stage, String)>,
}

/// All that was measured.
#[derive(Debug, Default)]
pub struct Results {
    by_mounts: BTreeMap<usize, Measured>,
    starts: Vec<Duration>,
}

impl Results {
    /// A program that does nothing but say its version.
    pub fn add_start(&mut self, time: Duration) {
        self.starts.push(time);
    }

    /// How long such a program takes.
    pub fn start(&self) -> Option<Spread> {
        Spread::new(self.starts.iter().copied())
    }

    /// A run of a stage.
    pub fn sample(&mut self, stage: Stage, mounts: usize, sample: Sample) {
        self.by_mounts.entry(mounts).or_default().samples.push((stage, sample));
    }

    /// A run of a floor.
    pub fn floor(&mut self, floor: Floor, mounts: usize, time: Duration) {
        self.by_mounts.entry(mounts).or_default().floors.push((floor, time));
    }

    /// A run that failed.
    pub fn failure(&mut self, stage: Stage, mounts: usize, why: String) {
        self.by_mounts.entry(mounts).or_default().failures.push((stage, why));
    }

    /// A row for each stage and number of mounts.
    pub fn rows(&self) -> Vec<Row> {
        let of_stage = |aim| self.by_mounts.iter().map(move |(&mounts, measured)| measured.row(aim, mounts));
        AIMS.iter().flat_map(of_stage).collect()
    }
}

impl Measured {
    fn row(&self, aim: &Aim, mounts: usize) -> Row {
        let samples: Vec<Sample> =
            self.samples.iter().filter(|(stage, _)| *stage == aim.stage).map(|(_, sample)| *sample).collect();
        let times = Spread::new(samples.iter().map(|sample| sample.time));
        let floors: Option<Vec<Spread>> = aim.floors.iter().map(|&floor| self.spread_of(floor)).collect();
        let floor = floors.map(|floors| floors.into_iter().fold(Spread::default(), Spread::plus));
        let memory = samples.iter().map(|sample| sample.memory).max().unwrap_or_default();
        let failures = self.failures.iter().filter(|(stage, _)| *stage == aim.stage);
        Row {
            stage: aim.name.to_owned(),
            mounts,
            times,
            floor,
            ratio: times.zip(floor).map(|(times, floor)| times.median / floor.median),
            aim: aim.ratio,
            memory: memory as f64 / 1024.0,
            memory_aim: aim.memory,
            failures: failures.map(|(_, why)| why.clone()).collect(),
        }
    }

    fn spread_of(&self, wanted: Floor) -> Option<Spread> {
        Spread::new(self.floors.iter().filter(|(floor, _)| *floor == wanted).map(|(_, time)| *time))
    }
}

/// What is told of one stage with one number of mounts. Times are in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    pub stage: String,
    pub mounts: usize,
    /// Absent if every run failed.
    pub times: Option<Spread>,
    pub floor: Option<Spread>,
    /// The median in floors.
    pub ratio: Option<f64>,
    pub aim: Option<f64>,
    /// The highest peak of memory, in MiB; 0 where it was not measured.
    pub memory: f64,
    pub memory_aim: Option<f64>,
    pub failures: Vec<String>,
}

impl Row {
    /// Whether all that was aimed at is reached; none if nothing was aimed at.
    pub fn is_met(&self) -> Option<bool> {
        let ratio = self.aim.map(|aim| self.ratio.is_some_and(|ratio| ratio <= aim));
        let memory = self.memory_aim.map(|aim| self.memory <= aim);
        ratio.into_iter().chain(memory).reduce(|one, other| one && other)
    }
}

/// Some times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
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

    fn plus(self, other: Self) -> Self {
        Self { median: self.median + other.median, min: self.min + other.min, max: self.max + other.max }
    }
}

/// How a stage grows from one number of mounts to the next.
#[derive(Debug, Serialize, Deserialize)]
pub struct Growth {
    pub stage: String,
    pub from: usize,
    pub to: usize,
    /// How many times as long it takes.
    pub grown: f64,
    pub floor_grown: f64,
    pub aim: f64,
}

/// The growth of each stage.
pub fn growth(rows: &[Row]) -> Vec<Growth> {
    rows.windows(2).filter_map(|pair| Growth::of(&pair[0], &pair[1])).collect()
}

impl Growth {
    fn of(from: &Row, to: &Row) -> Option<Self> {
        if from.stage != to.stage {
            return None;
        }
        let grown = to.times?.median / from.times?.median;
        let floor_grown = to.floor?.median / from.floor?.median;
        let aim = GROWTH_OF_TEN / 10.0 * to.mounts as f64 / from.mounts as f64;
        Some(Self { stage: to.stage.clone(), from: from.mounts, to: to.mounts, grown, floor_grown, aim })
    }
}
