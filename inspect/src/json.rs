//! The columns for programs.

use std::io::{self, Write};

use serde::{Serialize, Serializer};

use crate::columns::{Column, Settings};
use crate::view::Row;

/// Writes `{"mounts": [...]}`, with an object for each mount whose keys are the names of the columns in small letters.
pub fn write<'a>(
    rows: impl Iterator<Item = Row<'a>>,
    columns: &[&Column],
    settings: &Settings,
    out: &mut impl Write,
) -> io::Result<()> {
    let keyed: Vec<_> = columns.iter().map(|column| (column.name.to_ascii_lowercase(), *column)).collect();
    let mounts = rows.map(|row| Object { row, columns: &keyed, settings }).collect();
    serde_json::to_writer_pretty(&mut *out, &Document { mounts })?;
    writeln!(out)
}

#[derive(Serialize)]
struct Document<'a> {
    mounts: Vec<Object<'a>>,
}

/// A mount.
struct Object<'a> {
    row: Row<'a>,
    columns: &'a [(String, &'a Column)],
    settings: &'a Settings,
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = |column: &Column| (column.value)(&self.row, self.settings);
        serializer.collect_map(self.columns.iter().map(|(key, column)| (key, value(column))))
    }
}
