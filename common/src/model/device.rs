//! Device numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The device number of a superblock, written `major:minor` as in mountinfo. An autofs superblock
/// has an anonymous one: major 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// The major number, 12 bits.
    pub major: u32,
    /// The minor number, 20 bits.
    pub minor: u32,
}

/// The text is no device number.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is no device number (expected MAJOR:MINOR, as in 0:45)")]
pub struct ParseDeviceError(String);

impl Device {
    /// The largest minor number the kernel hands out (MINORMASK in linux/kdev_t.h).
    pub const MAX_MINOR: u32 = (1 << 20) - 1;
    const MAX_MAJOR: u32 = (1 << 12) - 1;

    /// The anonymous device with this minor number.
    pub const fn anonymous(minor: u32) -> Self {
        Self { major: 0, minor }
    }

    /// From `st_dev` as stat gives it to user space.
    pub fn from_stat(dev: u64) -> Self {
        Self { major: nix::sys::stat::major(dev) as u32, minor: nix::sys::stat::minor(dev) as u32 }
    }

    /// The 32-bit form that the autofs ioctls and packets use (`new_encode_dev` in linux/kdev_t.h).
    pub const fn encode(self) -> u32 {
        (self.minor & 0xff) | (self.major << 8) | ((self.minor & !0xff) << 12)
    }

    /// The reverse of [`Device::encode`].
    pub const fn decode(dev: u32) -> Self {
        Self { major: (dev & 0xfff00) >> 8, minor: (dev & 0xff) | ((dev >> 12) & 0xfff00) }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: &str, max: u32| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse().ok().filter(|number| digits && *number <= max)
        };
        text.split_once(':')
            .and_then(|(major, minor)| {
                Some(Self { major: number(major, Self::MAX_MAJOR)?, minor: number(minor, Self::MAX_MINOR)? })
            })
            .ok_or_else(|| ParseDeviceError(text.to_owned()))
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoded_form_keeps_all_bits() {
        for device in
            [Device::anonymous(45), Device::anonymous(0xabcde), Device { major: 0xfff, minor: 0xfffff }]
        {
            assert_eq!(Device::decode(device.encode()), device);
        }
        assert_eq!(Device { major: 8, minor: 0x123 }.encode(), 0x0010_0823);
    }

    #[test]
    fn text_that_is_no_device_is_refused() {
        for text in ["", ":", "0", "0:", ":1", "0:x", "-1:2", "+0:1", "0:1048576", "4096:0", "0:1:2", " 0:1"]
        {
            assert!(text.parse::<Device>().is_err(), "{text:?} was taken");
        }
        assert_eq!("0:45".parse(), Ok(Device::anonymous(45)));
    }
}
