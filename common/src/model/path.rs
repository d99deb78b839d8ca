//! Paths in documents and messages.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path, or a part of one, with a written form that can hold every byte: text stands as it is; a
/// backslash is written `\\`, and a control character or a byte that is not UTF-8 as `\xHH`.
///
/// Two are equal if they are the same bytes. In order they are as paths, part by part.
#[derive(Clone, Debug, Default)]
pub struct TextPath(PathBuf);

// By the bytes: as paths, part by part, they take several times as long, which the tables of thousands of mounts show.
impl PartialEq for TextPath {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for TextPath {}

impl Hash for TextPath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl Ord for TextPath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0).then_with(|| self.as_bytes().cmp(other.as_bytes()))
    }
}

impl PartialOrd for TextPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Why a written path cannot be read back.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParsePathError {
    /// A backslash is not followed by a known escape.
    #[error("'{0}' has a backslash that starts no escape (write a backslash as \\\\, a byte as \\xHH)")]
    Escape(String),
    /// No path has a NUL byte in it.
    #[error("'{0}' has a NUL byte, which no path can hold")]
    Nul(String),
}

impl TextPath {
    /// Reads the written form.
    pub fn parse(text: &str) -> Result<Self, ParsePathError> {
        if !text.contains(['\\', '\0']) {
            return Ok(Self(PathBuf::from(text)));
        }
        let bytes = unescape(text.as_bytes()).ok_or_else(|| ParsePathError::Escape(text.to_owned()))?;
        if bytes.contains(&0) {
            return Err(ParsePathError::Nul(text.escape_default().to_string()));
        }
        Ok(Self(OsString::from_vec(bytes).into()))
    }

    /// From the bytes of a path.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(OsString::from_vec(bytes).into())
    }

    /// The bytes of the path.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_os_str().as_bytes()
    }
}

fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match (byte, tail) {
            (b'\\', [b'\\', tail @ ..]) => {
                bytes.push(b'\\');
                tail
            }
            (b'\\', [b'x', high, low, tail @ ..]) => {
                bytes.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
                tail
            }
            (b'\\', _) => return None,
            _ => {
                bytes.push(byte);
                tail
            }
        };
    }
    Some(bytes)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

impl Deref for TextPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for TextPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl From<PathBuf> for TextPath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl From<&Path> for TextPath {
    fn from(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl fmt::Display for TextPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.as_bytes().utf8_chunks() {
            let mut plain = chunk.valid();
            while let Some(at) = plain.find(|c: char| c == '\\' || c.is_control()) {
                f.write_str(&plain[..at])?;
                let mut rest = plain[at..].chars();
                match rest.next() {
                    Some('\\') => f.write_str("\\\\")?,
                    Some(control) => write_bytes(f, control.encode_utf8(&mut [0; 4]).as_bytes())?,
                    None => {}
                }
                plain = rest.as_str();
            }
            f.write_str(plain)?;
            write_bytes(f, chunk.invalid())?;
        }
        Ok(())
    }
}

fn write_bytes(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

impl Serialize for TextPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TextPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_being_written_and_read() {
        let all: Vec<u8> = (1..=255).chain("äß€\u{85}".bytes()).chain(*b"\\x41\\\\").collect();
        let path = TextPath::from_bytes(all);
        assert_eq!(TextPath::parse(&path.to_string()), Ok(path));
    }

    #[test]
    fn text_stands_as_it_is() {
        assert_eq!(TextPath::from_bytes("/net/größe 1".into()).to_string(), "/net/größe 1");
        assert_eq!(TextPath::from_bytes(b"/a\nb\\\xff".to_vec()).to_string(), "/a\\x0ab\\\\\\xff");
    }

    #[test]
    fn wrong_escapes_and_nul_are_refused() {
        for text in ["\\", "\\n", "\\x", "\\x4", "\\xg0", "\\x00", "a\0b"] {
            assert!(TextPath::parse(text).is_err(), "{text:?} was taken");
        }
    }
}
