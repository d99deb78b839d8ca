//! Again and again: on every change of the mount table, and after some time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use autofs_cr_common::cli::may_colour;
use autofs_cr_common::doc::Report;
use autofs_cr_common::exit::Exit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::tcgetwinsize;

use crate::view::View;
use crate::{Inspection, notes, write_error};

/// The shortest time between two looks, however often the mount table changes.
const PAUSE: Duration = Duration::from_millis(200);

/// Looks and writes until this process is ended.
pub fn run(inspection: &Inspection<'_>, interval: Duration) -> Result<Exit> {
    let mut tables = MountTables::default();
    let in_place = inspection.file().is_none() && io::stdout().is_terminal();
    loop {
        let begun = Instant::now();
        let report = inspection.look()?;
        let view = inspection.view(&report);
        match in_place {
            true => show(inspection, &view).map_err(|source| write_error(None, source))?,
            false => inspection.write_out(&view, &[])?,
        }
        tables.follow(&report);
        std::thread::sleep(PAUSE.min(interval));
        let left = interval.saturating_sub(begun.elapsed());
        tables.wait(left).context("cannot wait for a change of the mount table")?;
    }
}

/// Writes over what is on the terminal, as far as it has room.
fn show(inspection: &Inspection<'_>, view: &View<'_>) -> io::Result<()> {
    let mut body = Vec::new();
    inspection.write(view, may_colour(), &mut body)?;
    let mut below = notes::hidden(view.report);
    if inspection.is_for_people() && !inspection.cli.verbosity.quiet {
        below.extend(notes::waits(view, inspection.cli.verbosity.verbose));
        below.extend(notes::conclusion(view, &inspection.settings));
    }
    let height = tcgetwinsize(io::stdout()).map_or(24, |size| usize::from(size.ws_row));
    let screen = Screen { body: &String::from_utf8_lossy(&body), below: &below }.draw(height);
    let mut out = io::stdout().lock();
    out.write_all(screen.as_bytes())?;
    out.flush()
}

/// What is shown at one time.
struct Screen<'a> {
    body: &'a str,
    below: &'a [String],
}

/// The sequences of ECMA-48 and the DEC terminals that every terminal understands.
mod sequence {
    /// To the upper left, and long lines are cut.
    pub const BEGIN: &str = "\x1b[H\x1b[?7l";
    /// Clears the rest of a line.
    pub const END_OF_LINE: &str = "\x1b[K\n";
    /// Clears what is below, and long lines go on in the next.
    pub const END: &str = "\x1b[J\x1b[?7h";
}

impl Screen<'_> {
    /// Fits into so many lines, the last of which is left free for the cursor. What is below the body is more wanted
    /// than its end.
    fn draw(&self, height: usize) -> String {
        let room = height.saturating_sub(1);
        let below = self.below.len().min(room / 2);
        let lines: Vec<&str> = self.body.lines().collect();
        let mut shown = lines.len().min(room - below);
        let mut text = sequence::BEGIN.to_owned();
        let mut add = |line: &str| text.extend([line, sequence::END_OF_LINE]);
        if shown < lines.len() {
            shown = shown.saturating_sub(1);
        }
        lines[..shown].iter().for_each(|line| add(line));
        if shown < lines.len() && room > 0 {
            add(&format!("({} more lines)", lines.len() - shown));
        }
        // The last ones have the counts.
        self.below[self.below.len() - below..].iter().for_each(|line| add(line));
        text + sequence::END
    }
}

/// The mount tables of the namespaces that are shown, each through an open mountinfo.
#[derive(Default)]
struct MountTables {
    /// By namespace.
    open: HashMap<u64, File>,
}

impl MountTables {
    /// Follows the namespaces of a report. One that cannot be opened is looked at when the time is over.
    fn follow(&mut self, report: &Report) {
        self.open.retain(|id, _| report.namespaces.iter().any(|namespace| namespace.id == *id));
        for namespace in &report.namespaces {
            if !self.open.contains_key(&namespace.id) {
                let file = File::open(format!("/proc/{}/mountinfo", namespace.process));
                self.open.extend(file.ok().map(|file| (namespace.id, file)));
            }
        }
    }

    /// Waits for a change since the last wait, at most for so long: proc_pid_mounts(5) says how.
    fn wait(&self, longest: Duration) -> io::Result<()> {
        let files = self.open.values();
        let mut polled: Vec<PollFd<'_>> = files.map(|file| PollFd::new(file, PollFlags::PRI)).collect();
        let timeout = Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(body: &str, below: &[&str], height: usize) -> Vec<String> {
        let below: Vec<String> = below.iter().map(|line| (*line).to_owned()).collect();
        let screen = Screen { body, below: &below }.draw(height);
        let inner = screen.strip_prefix(sequence::BEGIN).and_then(|rest| rest.strip_suffix(sequence::END));
        let inner = inner.expect("begun and ended");
        inner.split_terminator(sequence::END_OF_LINE).map(str::to_owned).collect()
    }

    #[test]
    fn what_has_no_room_is_counted() {
        assert_eq!(drawn("a\nb\n", &["x"], 9), ["a", "b", "x"]);
        assert_eq!(drawn("a\nb\nc\nd\n", &["x"], 4), ["a", "(3 more lines)", "x"]);
        assert_eq!(drawn("a\nb\n", &["x", "y", "z"], 4), ["a", "b", "z"]);
        assert_eq!(drawn("a\n", &["x"], 0), Vec::<String>::new());
    }
}
