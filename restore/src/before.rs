//! What was there before the first change, which a restore writes down in its work place: when it is killed, the next one
//! can still go back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use autofs_cr_common::model::Device;

/// What was there, of the superblocks of the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Those in whose places nothing was.
    pub free: BTreeSet<Device>,
    /// Those that were there without anybody who serves them.
    pub cut_off: BTreeSet<Device>,
    /// The timeouts of those that were adopted.
    pub timeouts: BTreeMap<Device, Duration>,
}

/// The text is not what [`Before::write`] writes.
#[derive(Debug, thiserror::Error)]
#[error("line '{0}' is not as autofs-restore writes it")]
pub struct BadLine(String);

impl Before {
    /// Writes a line for each.
    pub fn write(&self) -> String {
        let free = self.free.iter().map(|device| format!("free {device}\n"));
        let cut_off = self.cut_off.iter().map(|device| format!("cut_off {device}\n"));
        let timeouts = self.timeouts.iter();
        let timeouts = timeouts.map(|(device, timeout)| format!("timeout {device} {}\n", timeout.as_secs()));
        free.chain(cut_off).chain(timeouts).collect()
    }

    /// Reads them.
    pub fn read(text: &str) -> Result<Self, BadLine> {
        let mut before = Self::default();
        for line in text.lines() {
            before.read_line(line).ok_or_else(|| BadLine(line.chars().take(80).collect()))?;
        }
        Ok(before)
    }

    fn read_line(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match *words {
            ["free", device] => drop(self.free.insert(device.parse().ok()?)),
            ["cut_off", device] => drop(self.cut_off.insert(device.parse().ok()?)),
            ["timeout", device, seconds] => {
                let timeout = Duration::from_secs(seconds.parse::<u32>().ok()?.into());
                self.timeouts.insert(device.parse().ok()?, timeout);
            }
            _ => return None,
        }
        Some(())
    }

    /// Adds what an earlier restore found: what came after it is its work.
    pub fn after(&mut self, earlier: &Self) {
        self.free.extend(&earlier.free);
        self.cut_off.extend(&earlier.cut_off);
        self.timeouts.extend(&earlier.timeouts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let device = |text: &str| text.parse::<Device>().expect(text);
        let before = Before {
            free: [device("0:51"), device("0:7")].into(),
            cut_off: [device("0:52")].into(),
            timeouts: [(device("0:52"), Duration::from_secs(300))].into(),
        };
        assert_eq!(Before::read(&before.write()).expect("it was written"), before);
        assert_eq!(Before::read("").expect("nothing"), Before::default());
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [
            "free",
            "free x",
            "cut_off",
            "timeout 0:1",
            "timeout 0:1 -1",
            "timeout 0:1 99999999999",
            "what 0:1",
        ] {
            assert!(Before::read(line).is_err(), "{line}");
        }
    }
}
