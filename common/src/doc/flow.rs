//! Writing a document: its top level in YAML's block style, each list entry on one line in flow style.
//!
//! JSON is a subset of YAML's flow style, so this is serde_json with another formatter.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;

/// Writes `document`, which must be a struct whose fields are strings, lists or structs.
pub fn write(document: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    document.serialize(&mut serde_json::Serializer::with_formatter(&mut *out, Flow::default()))?;
    out.write_all(b"\n")
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
    fn begin_string<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        match (self.in_key, self.depth) {
            (true, _) => Ok(()),
            (false, 1) => out.write_all(b" \""),
            (false, _) => out.write_all(b"\""),
        }
    }

    fn end_string<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        if self.in_key { Ok(()) } else { out.write_all(b"\"") }
    }
}
