//! The flags of a descriptor that a master needs to find again.

use serde::{Deserialize, Serialize};

/// Flags of an open descriptor, written as a list of the names that are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(from = "Vec<Name>", into = "Vec<Name>")]
pub struct FdFlags {
    /// O_NONBLOCK: a read that finds nothing fails with EAGAIN.
    pub nonblock: bool,
    /// O_CLOEXEC: closed by execve.
    pub cloexec: bool,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    Nonblock,
    Cloexec,
}

impl FdFlags {
    /// From the octal `flags` of /proc/PID/fdinfo/N.
    pub fn from_bits(bits: i32) -> Self {
        Self { nonblock: bits & libc::O_NONBLOCK != 0, cloexec: bits & libc::O_CLOEXEC != 0 }
    }

    /// As open(2) takes them.
    pub fn bits(self) -> i32 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.nonblock, libc::O_NONBLOCK) | bit(self.cloexec, libc::O_CLOEXEC)
    }

    /// None is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Vec<Name>> for FdFlags {
    fn from(names: Vec<Name>) -> Self {
        Self {
            nonblock: names.iter().any(|name| matches!(name, Name::Nonblock)),
            cloexec: names.iter().any(|name| matches!(name, Name::Cloexec)),
        }
    }
}

impl From<FdFlags> for Vec<Name> {
    fn from(flags: FdFlags) -> Self {
        let nonblock = flags.nonblock.then_some(Name::Nonblock);
        nonblock.into_iter().chain(flags.cloexec.then_some(Name::Cloexec)).collect()
    }
}
