//! /proc/PID/mountinfo, read without a copy: a line is parts of the file's bytes, and only the lines
//! that matter are looked at any further. Format: proc_pid_mountinfo(5).

use std::borrow::Cow;

use super::parse_number;
use crate::model::{Device, Propagation};

/// One mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its id.
    pub id: u64,
    /// The id of the mount that it is mounted on, which may not be listed.
    pub parent: u64,
    /// The device, as `major:minor`.
    pub device: &'a [u8],
    /// The directory of the file system that it shows; escaped.
    pub root: &'a [u8],
    /// Where it is, from the root of the process; escaped.
    pub mount_point: &'a [u8],
    /// The options of the mount.
    pub options: &'a [u8],
    /// The optional fields, with spaces between.
    pub optional: &'a [u8],
    /// The type of its file system; escaped.
    pub fstype: &'a [u8],
    /// Its source; escaped, can be empty.
    pub source: &'a [u8],
    /// The options of the superblock.
    pub super_options: &'a [u8],
}

/// A line is not written as the man page says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {0} of mountinfo is not written as proc_pid_mountinfo(5) says")]
pub struct MalformedLine(pub usize);

/// The lines of the file.
pub fn lines(text: &[u8]) -> impl Iterator<Item = Result<Line<'_>, MalformedLine>> {
    let mut start = 0;
    let ends = memchr::memchr_iter(b'\n', text).chain([text.len()]);
    let lines = ends.map(move |end| &text[std::mem::replace(&mut start, end + 1)..end]).enumerate();
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(at, line)| Line::parse(line).ok_or(MalformedLine(at + 1)))
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut rest = line;
        let id = parse_number(word(&mut rest)?)?;
        let parent = parse_number(word(&mut rest)?)?;
        let device = word(&mut rest)?;
        let root = word(&mut rest)?;
        let mount_point = word(&mut rest)?;
        let options = word(&mut rest)?;
        let optional = until_separator(&mut rest)?;
        let fstype = word(&mut rest)?;
        let source = word(&mut rest)?;
        Some(Self {
            id,
            parent,
            device,
            root,
            mount_point,
            options,
            optional,
            fstype,
            source,
            super_options: rest,
        })
    }

    /// It is an autofs mount.
    pub fn is_autofs(&self) -> bool {
        self.fstype == b"autofs"
    }

    /// The mount is read-only.
    pub fn is_read_only(&self) -> bool {
        self.options.split(|byte| *byte == b',').any(|option| option == b"ro")
    }

    /// It is mounted at this path.
    pub fn is_at(&self, path: &[u8]) -> bool {
        unescape(self.mount_point).as_ref() == path
    }

    /// The device, if it is written as one.
    pub fn device(&self) -> Option<Device> {
        std::str::from_utf8(self.device).ok()?.parse().ok()
    }

    /// The propagation; unknown optional fields are passed over, as the man page asks.
    pub fn propagation(&self) -> Propagation {
        let mut propagation = Propagation::PRIVATE;
        for field in self.optional.split(|&byte| byte == b' ') {
            let group = |name: &[u8]| u32::try_from(parse_number(field.strip_prefix(name)?)?).ok();
            if let Some(shared) = group(b"shared:") {
                propagation.shared = Some(shared);
            } else if let Some(master) = group(b"master:") {
                propagation.slave_of = Some(master);
            } else if field == b"unbindable" {
                propagation.unbindable = true;
            }
        }
        propagation
    }
}

/// Takes the next word off the front, with the space behind it.
fn word<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|&byte| byte == b' ')?;
    let (word, tail) = rest.split_at(end);
    *rest = &tail[1..];
    Some(word)
}

/// Takes everything up to the lone `-` off the front.
fn until_separator<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let start = *rest;
    loop {
        let before = start.len() - rest.len();
        if word(rest)? == b"-" {
            return Some(start[..before].trim_ascii_end());
        }
    }
}

/// Undoes the octal escapes (`\040`) in which the kernel writes white space, `#` and backslashes.
pub fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match (byte, octal(tail)) {
            (b'\\', Some((value, tail))) => {
                bytes.push(value);
                tail
            }
            _ => {
                bytes.push(byte);
                tail
            }
        };
    }
    Cow::Owned(bytes)
}

fn octal(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = text.split_at_checked(3)?;
    let value = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?;
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Line<'_> {
        Line::parse(line.as_bytes()).expect("valid line")
    }

    #[test]
    fn every_field_is_found() {
        let line = one(
            "43 41 0:36 / /net/a\\040b rw,relatime shared:7 master:3 propagate_from:2 - autofs auto.net rw,fd=5,pgrp=1",
        );
        assert_eq!((line.id, line.parent, line.device()), (43, 41, Some(Device::anonymous(36))));
        assert_eq!(line.options, b"rw,relatime");
        assert_eq!(line.propagation().to_string(), "shared:7,slave:3");
        assert_eq!((line.fstype, line.source), (&b"autofs"[..], &b"auto.net"[..]));
        assert_eq!(line.super_options, b"rw,fd=5,pgrp=1");
        assert_eq!(unescape(line.mount_point).as_ref(), b"/net/a b");
    }

    #[test]
    fn a_line_without_optional_fields_or_source_is_read() {
        let line = one("1 0 0:2 / /a rw - autofs  rw,fd=5");
        assert_eq!((line.optional, line.source, line.super_options), (&b""[..], &b""[..], &b"rw,fd=5"[..]));
        assert_eq!(line.propagation(), Propagation::PRIVATE);
        assert!(one("1 0 0:2 / /a rw unbindable - x y z").propagation().unbindable);
    }

    #[test]
    fn a_dash_as_a_name_is_no_separator() {
        assert_eq!(one("1 0 0:2 - - - shared:1 - tmpfs - rw").fstype, b"tmpfs");
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(b"/a\\011\\012\\134\\043b").as_ref(), b"/a\t\n\\#b");
        assert_eq!(unescape(b"/\xff\\040").as_ref(), b"/\xff ");
        assert_eq!(unescape(b"\\04").as_ref(), b"\\04");
        assert_eq!(unescape(b"\\999\\777").as_ref(), b"\\999\\777");
    }

    #[test]
    fn the_malformed_line_is_named() {
        let text = b"1 0 0:2 / /a rw - tmpfs x rw\n2 x 0:2 / /a rw - tmpfs x rw\n";
        let read: Vec<_> = lines(text).collect();
        assert_eq!((read.len(), read[0].is_ok()), (2, true));
        assert_eq!(read[1], Err(MalformedLine(2)));
        for bad in ["", "1", "1 0 0:2 / /a rw tmpfs x rw", "1 0 0:2 / /a rw - tmpfs"] {
            assert_eq!(Line::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
