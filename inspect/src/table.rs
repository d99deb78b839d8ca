//! The table, aligned for people or raw for scripts.

use std::io::{self, Write};

use autofs_cr_common::model::State;
use unicode_width::UnicodeWidthStr;

use crate::columns::{Column, Settings};
use crate::view::Row;

/// Up to this width a cell has the others of its column aligned behind it. A longer one pushes aside what is in its own
/// line alone: nothing is cut off, and one long path does not make every line as long.
const WIDEST: usize = 64;

/// How a table is written.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// With a first line that names the columns.
    pub head: bool,
    /// One space between the cells, and none in them.
    pub raw: bool,
    /// With colours.
    pub colour: bool,
}

/// Writes the table. Nothing at all where there is no mount.
pub fn write<'a>(
    rows: impl Iterator<Item = Row<'a>>,
    columns: &[&Column],
    settings: &Settings,
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut cells = Cells::default();
    let mut states = Vec::new();
    for row in rows {
        states.push(row.superblock.state);
        for column in columns {
            let value = (column.value)(&row, settings);
            match style.raw {
                true => cells.add(&value.as_word()),
                false => cells.add(&value),
            }
        }
    }
    if states.is_empty() {
        return Ok(());
    }
    let widths: Vec<usize> = (0..columns.len()).map(|at| cells.width(at, columns, style)).collect();
    if style.head {
        let heads = columns.iter().map(|column| (column.name, ""));
        write_line(heads, &widths, style, out)?;
    }
    for (line, state) in states.into_iter().enumerate() {
        let cells = columns.iter().enumerate().map(|(at, column)| {
            let is_coloured = style.colour && column.name == "STATE";
            (cells.get(line * columns.len() + at), if is_coloured { colour_of(state) } else { "" })
        });
        write_line(cells, &widths, style, out)?;
    }
    Ok(())
}

/// The texts of all cells, in one piece of memory: a large table has hundreds of thousands.
#[derive(Default)]
struct Cells {
    text: String,
    ends: Vec<usize>,
}

impl Cells {
    fn add(&mut self, value: &impl std::fmt::Display) {
        use std::fmt::Write;
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{value}");
        self.ends.push(self.text.len());
    }

    fn get(&self, at: usize) -> &str {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.text[start..self.ends[at]]
    }

    /// How wide a column is; the last one of a line needs no width.
    fn width(&self, column: usize, columns: &[&Column], style: Style) -> usize {
        if style.raw || column + 1 == columns.len() {
            return 0;
        }
        let head = if style.head { columns[column].name.len() } else { 0 };
        let cells = (column..self.ends.len()).step_by(columns.len()).map(|at| self.get(at));
        cells.map(width).filter(|width| *width <= WIDEST).fold(head, usize::max)
    }
}

/// How many places a text takes on a terminal.
fn width(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.width() }
}

/// Writes cells, each with its colour.
fn write_line<'a>(
    cells: impl Iterator<Item = (&'a str, &'a str)>,
    widths: &[usize],
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    let gap = if style.raw { 1 } else { 2 };
    for (at, (cell, colour)) in cells.enumerate() {
        let off = if colour.is_empty() { "" } else { "\x1b[0m" };
        write!(out, "{colour}{cell}{off}")?;
        if at + 1 < widths.len() {
            write!(out, "{:1$}", "", widths[at].saturating_sub(width(cell)) + gap)?;
        }
    }
    writeln!(out)
}

fn colour_of(state: State) -> &'static str {
    match state {
        State::Connected => "\x1b[32m",
        State::Delegated | State::Unknown => "\x1b[33m",
        State::Orphaned | State::Catatonic => "\x1b[31m",
    }
}

/// Writes the names of all columns, and what they show.
pub fn list(columns: &[Column], out: &mut impl Write) -> io::Result<()> {
    let widest = columns.iter().map(|column| column.name.len()).max().unwrap_or(0);
    columns.iter().try_for_each(|column| writeln!(out, "{:>widest$}  {}", column.name, column.help))
}
