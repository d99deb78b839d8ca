//! The command-line dialect that the four tools share.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};

use crate::progress::Progress;

/// How much a tool says on standard error.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Verbosity {
    /// Say what is done, step by step
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// Where a document comes from.
#[derive(Args, Clone, Debug, Default)]
pub struct Input {
    /// Read the document of the stage before from FILE (`-`: standard input)
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
}

/// Where the output goes.
#[derive(Args, Clone, Debug, Default)]
pub struct OutputArg {
    /// Write to FILE, which appears whole or not at all (`-`: standard output)
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// The arguments of this process; ends it when they are wrong.
pub fn arguments<P: Parser>() -> P {
    P::try_parse().unwrap_or_else(|error| refuse(&error))
}

/// Ends with what the parser says. A wrong argument can be a name that somebody else chose: nothing in it reaches a terminal that
/// could steer it.
pub fn refuse(error: &clap::Error) -> ! {
    if !error.use_stderr() {
        // Help and the like.
        error.exit();
    }
    // Without the colours, which cannot be told from those of a name.
    let _ = io::stderr().write_all(harmless(&error.render().to_string()).as_bytes());
    std::process::exit(error.exit_code())
}

/// Parses a number of seconds, with or without a fraction.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("'{text}' is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| *duration <= Duration::from_secs(86_400 * 365))
        .ok_or_else(|| format!("'{text}' is no possible number of seconds"))
}

/// What a tool says to people: on standard error, as `tool: what`.
#[derive(Clone, Copy, Debug)]
pub struct Voice {
    tool: &'static str,
    verbosity: Verbosity,
}

impl Voice {
    /// The voice of a tool.
    pub fn new(tool: &'static str, verbosity: Verbosity) -> Self {
        Self { tool, verbosity }
    }

    /// A bar for so many things, on a terminal.
    pub fn progress(&self, verb: &'static str, total: usize) -> Progress {
        Progress::new(self.tool, self.verbosity, verb, total)
    }

    /// Says what a user asked to hear with `--verbose`.
    pub fn detail(&self, what: impl fmt::Display) {
        if self.verbosity.verbose {
            self.say(format_args!("{what}"));
        }
    }

    /// Says what a user wants to know unless `--quiet` was given.
    pub fn note(&self, what: impl fmt::Display) {
        if !self.verbosity.quiet {
            self.say(format_args!("{what}"));
        }
    }

    /// Says what went wrong while the work goes on.
    pub fn warn(&self, what: impl fmt::Display) {
        self.say(format_args!("warning: {what}"));
    }

    fn say(&self, what: fmt::Arguments<'_>) {
        say(self.tool, what);
    }
}

/// Says something on standard error as `tool: what`, in one write, so that the tools of a pipeline do not
/// cut into each other's lines. What could steer a terminal, and comes from a document or from /proc, is escaped.
pub fn say(tool: &str, what: fmt::Arguments<'_>) {
    let line = format!("{tool}: {}\n", harmless(&what.to_string()));
    // Without a standard error there is no one to tell.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// A text whose control characters are written as `\xHH`, but for the ends of its lines.
fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n';
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if steers(c) { format!("\\x{:02x}", u32::from(c)) } else { c.to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// `1 mount`, `2 mounts`.
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Whether standard output may be coloured: it is a terminal, and NO_COLOR is not set (no-color.org).
pub fn may_colour() -> bool {
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !forbidden && io::stdout().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_has_no_s() {
        assert_eq!((count(1, "mount"), count(0, "mount")), ("1 mount".into(), "0 mounts".into()));
    }

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert_eq!(harmless("a\x1b[31m\u{9b}1m\r\nb\t"), "a\\x1b[31m\\x9b1m\\x0d\nb\\x09");
        assert_eq!(harmless("größe\n"), "größe\n");
    }

    #[test]
    fn seconds_are_read_with_and_without_a_fraction() {
        assert_eq!(parse_seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_seconds("30"), Ok(Duration::from_secs(30)));
        for wrong in ["", "x", "-1", "NaN", "inf", "1e99"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong} was taken");
        }
    }
}
