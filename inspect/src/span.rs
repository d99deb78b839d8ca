//! Spans of time for people.

use std::fmt;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// A span of whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

impl Span {
    /// So many seconds.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds)
    }

    /// From one time to a later one, in seconds since 1970. Clocks may be set back: that is no time at all.
    pub fn between(since: u64, now: u64) -> Self {
        Self(now.saturating_sub(since))
    }

    /// The seconds.
    pub fn seconds(self) -> u64 {
        self.0
    }
}

/// The two largest units: `42s`, `5m 12s`, `3h 2m`, `12d 4h`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds < MINUTE => write!(f, "{seconds}s"),
            seconds if seconds < HOUR => write!(f, "{}m {}s", seconds / MINUTE, seconds % MINUTE),
            seconds if seconds < DAY => write!(f, "{}h {}m", seconds / HOUR, seconds % HOUR / MINUTE),
            seconds => write!(f, "{}d {}h", seconds / DAY, seconds % DAY / HOUR),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_units_are_enough() {
        let shown = |seconds| Span::from_seconds(seconds).to_string();
        assert_eq!([0, 59, 60, 312, 3599].map(shown), ["0s", "59s", "1m 0s", "5m 12s", "59m 59s"]);
        assert_eq!([3600, 10_920, 86_400, 1_051_200].map(shown), ["1h 0m", "3h 2m", "1d 0h", "12d 4h"]);
        assert_eq!(Span::between(9, 7).seconds(), 0);
    }
}
