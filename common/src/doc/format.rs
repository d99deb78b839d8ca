//! The first key of a document: what it is, and of which version.

use std::fmt;
use std::marker::PhantomData;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A kind of document.
pub trait Kind {
    /// The name in the `format` key.
    const NAME: &'static str;
    /// The version that this build reads and writes.
    const VERSION: u32;
}

/// The `format` key of a document of kind `K`; it can only hold the right value.
pub struct Format<K>(PhantomData<fn() -> K>);

impl<K> Format<K> {
    /// The right value.
    pub const CURRENT: Self = Self(PhantomData);
}

impl<K: Kind> fmt::Display for Format<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "autofs-cr/{}/{}", K::NAME, K::VERSION)
    }
}

impl<K: Kind> Serialize for Format<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Format<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = String::deserialize(deserializer)?;
        check::<K>(&found).map_err(serde::de::Error::custom)?;
        Ok(Self::CURRENT)
    }
}

fn check<K: Kind>(found: &str) -> Result<(), String> {
    let expected = Format::<K>::CURRENT.to_string();
    if found == expected {
        return Ok(());
    }
    let parts: Vec<&str> = found.split('/').collect();
    Err(match parts.as_slice() {
        ["autofs-cr", kind, version] if *kind == K::NAME => {
            format!(
                "version {version} of the {kind} format is not known; this build reads version {}",
                K::VERSION
            )
        }
        ["autofs-cr", kind @ ("report" | "image" | "stage"), _] => {
            format!("this is the format of the {kind}; the {} is needed ({})", K::NAME, where_from(K::NAME))
        }
        _ => format!("unknown format '{found}', expected '{expected}'"),
    })
}

fn where_from(kind: &str) -> &'static str {
    match kind {
        "report" => "autofs-inspect -f yaml writes one",
        "image" => "autofs-dump writes one",
        _ => "autofs-restore writes one",
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl<'a, K> arbitrary::Arbitrary<'a> for Format<K> {
    fn arbitrary(_: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self::CURRENT)
    }
}

// Written out, as derive would ask the same of K, which is only a name here.
impl<K> Clone for Format<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Format<K> {}
impl<K> PartialEq for Format<K> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<K> Eq for Format<K> {}
impl<K> fmt::Debug for Format<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Format")
    }
}
