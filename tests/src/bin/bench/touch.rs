//! Threads that read a file on every mount all the time, until they are told to stop.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::cli::TouchOrder;
use crate::measure::say;

/// The file that the reference master has on everything that it mounts.
const FILE: &str = "served-by";

/// A mount that fails for so long will not come again.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the threads saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// How often a file was read, or tried to be.
    pub accesses: u64,
    /// How often that failed, by the error.
    pub failed: BTreeMap<String, u64>,
    /// From the start of the first failed access to the end of the one that worked, once for each time that a mount
    /// failed; in nanoseconds.
    pub blackouts: Vec<u64>,
    /// The longest access that worked, in nanoseconds.
    pub slowest: u64,
}

/// The subcommand.
pub fn run(order: &TouchOrder) -> Result<()> {
    // So that something is mounted everywhere.
    let mut first = Reader::new(order, 0);
    for _ in 0..order.count {
        first.touch()?;
        first.next += 1;
    }
    let stop = AtomicBool::new(false);
    let all = thread::scope(|scope| {
        let readers: Vec<_> = (0..order.threads)
            .map(|number| {
                let stop = &stop;
                scope.spawn(move || Reader::new(order, number).run(stop))
            })
            .collect();
        // Who opens the other end waits until this is reached.
        let told = wait_for_end(order);
        stop.store(true, Ordering::Relaxed);
        let seen =
            readers.into_iter().map(|reader| reader.join().map_err(|_| anyhow!("a thread panicked"))?);
        let seen = seen.collect::<Result<Vec<_>>>();
        told.and(seen)
    })?;
    let mut sum = Seen::default();
    all.into_iter().for_each(|seen| sum.add(seen));
    say(&serde_json::to_string(&sum)?)
}

/// Waits until nobody has the other end of a FIFO open any more.
fn wait_for_end(order: &TouchOrder) -> Result<()> {
    let mut fifo = File::open(&order.fifo).context("open the FIFO")?;
    fifo.read_to_end(&mut Vec::new()).context("wait for the end").map(drop)
}

struct Reader<'a> {
    order: &'a TouchOrder,
    next: usize,
    seen: Seen,
}

impl<'a> Reader<'a> {
    /// Each begins at another place.
    fn new(order: &'a TouchOrder, number: usize) -> Self {
        Self { order, next: number * order.count / order.threads, seen: Seen::default() }
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Seen> {
        while !stop.load(Ordering::Relaxed) {
            self.touch()?;
            self.next = (self.next + 1) % self.order.count;
        }
        Ok(self.seen)
    }

    /// Reads the file on one mount, until that works.
    fn touch(&mut self) -> Result<()> {
        let path = self.order.prefix.join(format!("{:06}", self.next)).join(FILE);
        let begun = Instant::now();
        let mut has_failed = false;
        loop {
            let started = Instant::now();
            let read = fs::read(&path);
            let ended = Instant::now();
            self.seen.accesses += 1;
            match read {
                Ok(_) if has_failed => {
                    self.seen.blackouts.push(nanoseconds(ended - begun));
                    return Ok(());
                }
                Ok(_) => {
                    self.seen.slowest = self.seen.slowest.max(nanoseconds(ended - started));
                    return Ok(());
                }
                Err(error) if begun.elapsed() < PATIENCE => {
                    *self.seen.failed.entry(error.kind().to_string()).or_default() += 1;
                    has_failed = true;
                }
                Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
            }
        }
    }
}

impl Seen {
    /// Adds what others saw.
    pub fn add(&mut self, other: Self) {
        self.accesses += other.accesses;
        for (error, count) in other.failed {
            *self.failed.entry(error).or_default() += count;
        }
        self.blackouts.extend(other.blackouts);
        self.slowest = self.slowest.max(other.slowest);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
