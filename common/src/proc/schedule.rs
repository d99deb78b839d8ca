//! When a thread ran last, by the clock of the scheduler.
//!
//! `se.exec_start` in /proc/PID/task/TID/sched is when the scheduler last looked at a thread that ran (kernel/sched; always
//! there since Linux 6.15, before with CONFIG_SCHED_DEBUG, which distributions set; for every reader). Each processor has a
//! clock of its own for that, which stands still while it serves interrupts or the host of a virtual machine has it,
//! where the kernel counts that. So the clock is read on the very processor where the thread ran.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use super::{Proc, ProcessDir, malformed, parse_number};

/// How long the machine may have been suspended since it was started for the clocks to be of use: most stand still
/// meanwhile.
const MOST_SUSPENDED: Duration = Duration::from_secs(1);

/// The clocks of the processors.
#[derive(Debug, Default)]
pub struct SchedulerClocks {
    by_processor: HashMap<u32, Option<Clock>>,
}

/// What a processor's clock says at a time.
#[derive(Clone, Copy, Debug)]
struct Clock {
    reads: Duration,
    /// Since 1970.
    at: Duration,
}

impl SchedulerClocks {
    /// When a thread that sleeps ran last, on this processor, since 1970; `None` if that cannot be told. It can have been
    /// a little earlier than this says: by what the clock of the processor left out since then.
    pub fn last_ran(&mut self, proc: &Proc, thread: &ProcessDir, processor: u32) -> Option<Duration> {
        let ran = thread.exec_start().ok()??;
        let clock = *self.by_processor.entry(processor).or_insert_with(|| Clock::read(proc, processor));
        clock?.time_of(ran)
    }
}

impl Clock {
    fn read(proc: &Proc, processor: u32) -> Option<Self> {
        if suspended() > MOST_SUSPENDED {
            return None;
        }
        let here = on_processor(processor, || {
            let reads = proc.this_thread()?.exec_start()?;
            io::Result::Ok((reads, SystemTime::now()))
        });
        let (reads, at) = here.ok()?.ok()?;
        Some(Self { reads: reads?, at: at.duration_since(UNIX_EPOCH).ok()? })
    }

    /// The time at which it read so.
    fn time_of(self, reads: Duration) -> Option<Duration> {
        (self.at + reads).checked_sub(self.reads)
    }
}

impl ProcessDir {
    /// The time of the scheduler's clock when a thread ran last; `None` if it never ran.
    fn exec_start(&self) -> io::Result<Option<Duration>> {
        parse(&self.read("sched", 2048)?).ok_or_else(|| malformed("sched"))
    }
}

/// Reads the line `se.exec_start : MILLISECONDS.NANOSECONDS`.
pub(super) fn parse(text: &[u8]) -> Option<Option<Duration>> {
    let line = text.split(|&byte| byte == b'\n').find(|line| line.starts_with(b"se.exec_start"))?;
    let (_, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
    let (milliseconds, rest) = value.trim().split_once('.')?;
    let number = |digits: &str| parse_number(digits.as_bytes());
    let nanoseconds = Some(rest).filter(|rest| rest.len() == 6).and_then(number)?;
    let ran = Duration::from_millis(number(milliseconds)?) + Duration::from_nanos(nanoseconds);
    Some((!ran.is_zero()).then_some(ran))
}

/// How long the machine was suspended since it was started.
fn suspended() -> Duration {
    let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    let awake = read(ClockId::Monotonic);
    read(ClockId::Boottime).saturating_sub(awake)
}

/// Runs `what` on this processor, if it is one that this thread may run on anyway: on another, that is kept for
/// something else, it could wait for its turn for ever.
fn on_processor<T>(processor: u32, what: impl FnOnce() -> T) -> io::Result<T> {
    let processor = usize::try_from(processor).ok().filter(|number| *number < CpuSet::MAX_CPU);
    let processor = processor.ok_or(io::ErrorKind::Unsupported)?;
    let before = sched_getaffinity(None)?;
    if !before.is_set(processor) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only)?;
    let done = what();
    sched_setaffinity(None, &before)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read_to_the_nanosecond() {
        let text = b"cat (8097, #threads: 1)\n---\nse.exec_start                                :       5768895.895193\nse.vruntime : 1.2\n";
        let time = Duration::from_millis(5_768_895) + Duration::from_nanos(895_193);
        assert_eq!(parse(text), Some(Some(time)));
        assert_eq!(parse(b"se.exec_start : 0.000000\n"), Some(None));
        for strange in
            ["", "se.exec_start", "se.exec_start : x", "se.exec_start : 5", "se.exec_start : 5.0000000"]
        {
            assert_eq!(parse(strange.as_bytes()), None, "{strange}");
        }
        for strange in ["se.exec_start : -5.000000", "se.exec_start : 5.-00001", "se.exec_start : 5.+00001"] {
            assert_eq!(parse(strange.as_bytes()), None, "{strange}");
        }
    }

    #[test]
    fn a_clock_tells_times_before_and_after_it_was_read() {
        let seconds = Duration::from_secs;
        let clock = Clock { reads: seconds(100), at: seconds(1000) };
        assert_eq!(clock.time_of(seconds(40)), Some(seconds(940)));
        assert_eq!(clock.time_of(seconds(102)), Some(seconds(1002)));
        assert_eq!(Clock { reads: seconds(2000), ..clock }.time_of(seconds(1)), None);
    }
}
