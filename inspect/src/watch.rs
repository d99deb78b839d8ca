//! Again and again: on every change of the mount table, and after some time.
//!
//! It is for the moment in which something breaks. So what was asked about may go away, and come back: that is said, and
//! shown. Only what was there from the beginning has to be there then.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use autofs_cr_common::cli::may_colour;
use autofs_cr_common::doc::Report;
use autofs_cr_common::exit::Exit;
use autofs_cr_common::model::Pid;
use rustix::termios::tcgetwinsize;

use crate::mount_tables::MountTables;
use crate::screen::Screen;
use crate::select::NotThere;
use crate::{Inspection, notes, write_error};

/// The shortest time between two looks, however often the mount table changes.
const PAUSE: Duration = Duration::from_millis(200);

/// Looks and writes until this process is ended.
pub fn run(inspection: &Inspection<'_>, interval: Duration) -> Result<Exit> {
    let mut tables = MountTables::default();
    // Opened before the first look, so that no change is between them.
    tables.add(&inspection.proc, inspection.cli.pid.unwrap_or_else(Pid::this));
    let mut told = Vec::new();
    let mut is_first = true;
    loop {
        let begun = Instant::now();
        let (report, missing) = inspection.look()?;
        if is_first {
            NotThere::refuse(&missing)?;
        }
        is_first = false;
        write(inspection, &report, &missing, &told)?;
        told = missing;
        tables.follow(&inspection.proc, &report);
        drop(report);
        std::thread::sleep(PAUSE.min(interval));
        let left = interval.saturating_sub(begun.elapsed());
        tables.wait(&inspection.proc, left).context("cannot wait for a change of the mount table")?;
    }
}

/// Writes what there is, and what is not there any more: on a terminal each time, else once.
fn write(
    inspection: &Inspection<'_>,
    report: &Report,
    missing: &[NotThere],
    told: &[NotThere],
) -> Result<()> {
    if inspection.file().is_none() && io::stdout().is_terminal() {
        return Ok(show(inspection, report, missing).map_err(|source| write_error(None, source))?);
    }
    let new = missing.iter().filter(|path| !told.contains(path));
    inspection.note(new.map(ToString::to_string).collect());
    inspection.write_out(&inspection.view(report), &[])
}

/// Writes over what is on the terminal, as far as it has room.
fn show(inspection: &Inspection<'_>, report: &Report, missing: &[NotThere]) -> io::Result<()> {
    let view = inspection.view(report);
    let mut body = Vec::new();
    inspection.write(&view, may_colour(), &mut body)?;
    let mut below = notes::hidden(report);
    if inspection.is_for_people() && !inspection.cli.verbosity.quiet {
        below.extend(notes::waits(&view, &inspection.settings, inspection.cli.verbosity.verbose));
        below.extend(notes::conclusion(&view, &inspection.settings));
    }
    below.extend(missing.iter().map(ToString::to_string));
    let height = tcgetwinsize(io::stdout()).map_or(24, |size| usize::from(size.ws_row));
    let screen = Screen { body: &String::from_utf8_lossy(&body), below: &below }.draw(height);
    let mut out = io::stdout().lock();
    out.write_all(screen.as_bytes())?;
    out.flush()
}
