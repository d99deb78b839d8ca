//! How mounts and unmounts spread between mounts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The propagation of a mount, written as `private`, `unbindable`, `shared:N`, `slave:N` or
/// `shared:N,slave:M`; the numbers tell peer groups apart (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Propagation {
    /// The peer group that the mount is a member of.
    pub shared: Option<u32>,
    /// The peer group that the mount receives from.
    pub slave_of: Option<u32>,
    /// The mount cannot be bind mounted.
    pub unbindable: bool,
}

/// The text is no propagation.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is no propagation (expected private, unbindable, shared:N, slave:N or shared:N,slave:N)")]
pub struct ParsePropagationError(String);

impl Propagation {
    /// Neither sends nor receives.
    pub const PRIVATE: Self = Self { shared: None, slave_of: None, unbindable: false };
}

impl fmt::Display for Propagation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.shared, self.slave_of) {
            (Some(shared), Some(master)) => write!(f, "shared:{shared},slave:{master}"),
            (Some(shared), None) => write!(f, "shared:{shared}"),
            (None, Some(master)) => write!(f, "slave:{master}"),
            (None, None) => f.write_str(if self.unbindable { "unbindable" } else { "private" }),
        }
    }
}

impl FromStr for Propagation {
    type Err = ParsePropagationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let group = |part: &str, name: &str| part.strip_prefix(name)?.parse::<u32>().ok();
        let shared = |part: &str| group(part, "shared:");
        let slave = |part: &str| group(part, "slave:");
        let parsed = match text.split_once(',') {
            Some((first, second)) => shared(first).zip(slave(second)).map(|(shared, slave)| Self {
                shared: Some(shared),
                slave_of: Some(slave),
                unbindable: false,
            }),
            None => match text {
                "private" => Some(Self::PRIVATE),
                "unbindable" => Some(Self { unbindable: true, ..Self::PRIVATE }),
                _ => shared(text)
                    .map(|shared| Self { shared: Some(shared), ..Self::PRIVATE })
                    .or_else(|| slave(text).map(|slave| Self { slave_of: Some(slave), ..Self::PRIVATE })),
            },
        };
        parsed.ok_or_else(|| ParsePropagationError(text.to_owned()))
    }
}

impl Serialize for Propagation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Propagation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_survives_being_written_and_read() {
        for text in ["private", "unbindable", "shared:1", "slave:2", "shared:3,slave:4"] {
            assert_eq!(text.parse::<Propagation>().map(|parsed| parsed.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "shared", "shared:", "slave:x", "slave:1,shared:2", "private,slave:1"] {
            assert!(text.parse::<Propagation>().is_err(), "{text:?} was taken");
        }
    }
}
