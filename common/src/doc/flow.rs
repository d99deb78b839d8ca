//! Writing a document: its top level in YAML's block style, each list entry on one line in flow style.
//!
//! JSON is a subset of YAML's flow style, so this is serde_json with another formatter. What is written this
//! way is also read this way, some ten times faster than by a YAML parser: see [`to_json`].

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;

/// Writes `document`, which must be a struct whose fields are strings, lists, structs or of type `u64`.
pub fn write(document: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    document.serialize(&mut serde_json::Serializer::with_formatter(&mut *out, Flow::default()))?;
    out.write_all(b"\n")
}

/// Turns a text as [`write`] writes it into JSON of the same meaning. `None` for any other text, which may
/// still be valid YAML: this knows no more of YAML than what is written here.
pub fn to_json(text: &str) -> Option<Vec<u8>> {
    let mut json = Vec::with_capacity(text.len() + text.len() / 4);
    let mut list = List::None;
    json.push(b'{');
    for line in text.lines() {
        if let Some(entry) = line.strip_prefix("- ") {
            match list {
                List::None => return None,
                List::Begun => json.push(b'['),
                List::Filled => json.push(b','),
            }
            list = List::Filled;
            value_to_json(entry, &mut json)?;
        } else if line == super::END {
            break;
        } else {
            end_list(&mut json, list)?;
            if json.len() > 1 {
                json.push(b',');
            }
            list = field_to_json(line, &mut json)?;
        }
    }
    end_list(&mut json, list)?;
    json.push(b'}');
    Some(json)
}

/// How far a list at the top level has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    /// There is none.
    None,
    /// Its name was read.
    Begun,
    /// It has entries.
    Filled,
}

fn end_list(json: &mut Vec<u8>, list: List) -> Option<()> {
    match list {
        List::None => {}
        // A list without entries is written as `[]`.
        List::Begun => return None,
        List::Filled => json.push(b']'),
    }
    Some(())
}

/// A line of the top level: `name: value`, or `name:` before the entries of a list.
fn field_to_json(line: &str, json: &mut Vec<u8>) -> Option<List> {
    let (name, value) = line.split_once(':')?;
    is_name(name).then(|| write_name(name, json))?;
    match value.strip_prefix(' ') {
        Some(value) => value_to_json(value, json).map(|()| List::None),
        None if value.is_empty() => Some(List::Begun),
        None => None,
    }
}

/// Copies a value, and puts names of fields into quotes.
fn value_to_json(value: &str, json: &mut Vec<u8>) -> Option<()> {
    let mut rest = value;
    while let Some(first) = rest.bytes().next() {
        let length = match first {
            b'"' => string_length(rest.as_bytes())?,
            b'a'..=b'z' => {
                let length = rest.bytes().position(|byte| !is_name_byte(byte)).unwrap_or(rest.len());
                let (name, after) = rest.split_at(length);
                match (name, after.strip_prefix(": ")) {
                    (_, Some(after)) => {
                        write_name(name, json);
                        rest = after;
                        continue;
                    }
                    ("true" | "false", None) => length,
                    _ => return None,
                }
            }
            b'{' | b'}' | b'[' | b']' | b',' | b' ' | b'-' | b'0'..=b'9' => 1,
            _ => return None,
        };
        json.extend_from_slice(&rest.as_bytes()[..length]);
        rest = rest.get(length..)?;
    }
    Some(())
}

/// The length of the string that `text` begins with, with its quotes.
fn string_length(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_name_byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

fn write_name(name: &str, json: &mut Vec<u8>) {
    json.push(b'"');
    json.extend_from_slice(name.as_bytes());
    json.extend_from_slice(b"\":");
}

/// What JSON takes in a string and YAML does not take, or takes for the end of a line or for the mark of an encoding.
pub(super) fn needs_escape(c: char) -> bool {
    matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Where in the document the writer is. Depth 1 is inside the document itself.
#[derive(Default)]
struct Flow {
    depth: usize,
    in_key: bool,
    list_has_entries: bool,
}

impl Flow {
    fn open<W: Write + ?Sized>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        match self.depth {
            1 => Ok(()),
            2 => out.write_all(b" ").and_then(|()| out.write_all(bracket)),
            _ => out.write_all(bracket),
        }
    }
}

impl Formatter for Flow {
    fn begin_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if self.depth == 0 { Ok(()) } else { out.write_all(b"}") }
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.in_key = true;
        match (first, self.depth) {
            (true, _) => Ok(()),
            (false, 1) => out.write_all(b"\n"),
            (false, _) => out.write_all(b", "),
        }
    }

    fn end_object_key<W: Write + ?Sized>(&mut self, _out: &mut W) -> io::Result<()> {
        self.in_key = false;
        Ok(())
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        // At the top level the value writes the space, as a list goes on in the next line.
        out.write_all(if self.depth == 1 { b":" } else { b": " })
    }

    fn begin_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth += 1;
        if self.depth == 2 {
            self.list_has_entries = false;
            return Ok(());
        }
        out.write_all(b"[")
    }

    fn end_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        match (self.depth, self.list_has_entries) {
            (1, true) => Ok(()),
            (1, false) => out.write_all(b" []"),
            _ => out.write_all(b"]"),
        }
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if self.depth == 2 {
            // The entry itself is depth 3, so that its brackets are written without a space.
            self.list_has_entries = true;
            return out.write_all(b"\n- ");
        }
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    // Keys are the names of struct fields, which need no quotes; all other strings have them.
    fn write_u64<W: Write + ?Sized>(&mut self, out: &mut W, value: u64) -> io::Result<()> {
        let space = if self.depth == 1 { " " } else { "" };
        write!(out, "{space}{value}")
    }

    fn begin_string<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        match (self.in_key, self.depth) {
            (true, _) => Ok(()),
            (false, 1) => out.write_all(b" \""),
            (false, _) => out.write_all(b"\""),
        }
    }

    fn write_string_fragment<W: Write + ?Sized>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        if rest.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return out.write_all(rest.as_bytes());
        }
        while let Some(at) = rest.find(needs_escape) {
            out.write_all(&rest.as_bytes()[..at])?;
            let mut behind = rest[at..].chars();
            if let Some(escaped) = behind.next() {
                write!(out, "\\u{:04x}", u32::from(escaped))?;
            }
            rest = behind.as_str();
        }
        out.write_all(rest.as_bytes())
    }

    fn end_string<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        if self.in_key { Ok(()) } else { out.write_all(b"\"") }
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::{to_json, write};

    fn json(text: &str) -> Option<String> {
        to_json(text).map(|json| String::from_utf8(json).expect("UTF-8"))
    }

    #[test]
    fn every_kind_of_field_stands_on_its_line() {
        #[derive(Serialize)]
        struct Document {
            text: &'static str,
            number: u64,
            list: [u64; 2],
            empty: [u64; 0],
        }
        let mut written = Vec::new();
        write(&Document { text: "a", number: 7, list: [1, 2], empty: [] }, &mut written).expect("written");
        assert_eq!(written, b"text: \"a\"\nnumber: 7\nlist:\n- 1\n- 2\nempty: []\n");
    }

    #[test]
    fn what_is_written_becomes_json() {
        let text = "format: \"a/1\"\nx: {b: 1}\nl:\n- {k_1: \"a, b: \\\" {\", n: [1, -2], t: true}\n- {}\ne: []\n...\n";
        let expected =
            r#"{"format":"a/1","x":{"b":1},"l":[{"k_1":"a, b: \" {", "n":[1, -2], "t":true},{}],"e":[]}"#;
        assert_eq!(json(text).as_deref(), Some(expected));
    }

    #[test]
    fn other_yaml_is_left_to_the_parser() {
        for text in
            ["a: b", "a:\n  b: 1", "a: 'x'", "- 1", "a:\n...", "a: {b: c}", "a: \"x", "a:1", "# a", "a: !x 1"]
        {
            assert_eq!(json(text), None, "{text}");
        }
    }
}
