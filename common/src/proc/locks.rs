//! /proc/locks.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{Mode, OFlags, openat};

use super::Proc;
use crate::model::Device;

impl Proc {
    /// The devices with files that are locked through an open file description (F_OFD_SETLK in fcntl(2)), by whomever.
    pub fn locked(&self) -> io::Result<HashSet<Device>> {
        let file = openat(&self.dir, "locks", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text)?;
        Ok(text.lines().filter_map(parse).collect())
    }
}

/// Reads a line like `1: OFDLCK ADVISORY  READ  -1 00:2a:5 0 EOF` (locks_show in fs/locks.c), where the device is in
/// hexadecimal. One who waits for a lock has `->` before the kind.
fn parse(line: &str) -> Option<Device> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    fields.next().filter(|kind| *kind == "OFDLCK")?;
    let mut file = fields.nth(3)?.split(':');
    let mut number = || u32::from_str_radix(file.next()?, 16).ok();
    Some(Device { major: number()?, minor: number()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_device_in_hexadecimal() {
        let device = |line: &str| parse(line).map(|device| device.to_string());
        assert_eq!(device("1: OFDLCK ADVISORY  READ  -1 00:2a:5 0 EOF").as_deref(), Some("0:42"));
        assert_eq!(device("3: POSIX  ADVISORY  WRITE 412 fe:00:901 0 EOF"), None);
        assert_eq!(device("3: -> OFDLCK ADVISORY  WRITE -1 fe:00:901 0 EOF"), None);
        assert_eq!(device("1: OFDLCK"), None);
        assert_eq!(device(""), None);
    }
}
