//! A bar for long work: on standard error, if that is a terminal, and gone at the end.

use std::fmt::Write;
use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::cli::Verbosity;

/// Fewer things than this are done before anyone looks.
const LEAST: usize = 1000;

/// How often it is drawn at most, in a second.
const PER_SECOND: u8 = 10;

/// How far some work is. Nothing is shown in a pipe, where little is to be done, with `--quiet`, and with
/// `--verbose`, whose lines tell the same. It has no colours.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar of `total` things, that `verb` says what is done with.
    pub fn new(tool: &'static str, verbosity: Verbosity, verb: &'static str, total: usize) -> Self {
        let is_wanted = total >= LEAST && !verbosity.quiet && !verbosity.verbose;
        if !is_wanted || !stderr().is_terminal() || is_dumb() {
            return Self::hidden();
        }
        let bar =
            ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr_with_hz(PER_SECOND));
        let template = format!("{tool}: {verb} {{pos}} of {{len}} [{{bar:30}}] {{rate}}/s");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            let rate = |state: &ProgressState, text: &mut dyn Write| {
                // Where it cannot be written, the bar is without it.
                let _ = write!(text, "{:.0}", state.per_sec());
            };
            bar.set_style(style.with_key("rate", rate).progress_chars("=> "));
        }
        // Nothing but the work draws it: no thread, as the tools fork.
        bar.tick();
        Self(bar)
    }

    /// One that shows nothing.
    pub fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Whether anything is shown: telling of it can cost more than what is told.
    pub fn is_shown(&self) -> bool {
        !self.0.is_hidden()
    }

    /// So many things are done.
    pub fn at(&self, done: usize) {
        self.0.set_position(done as u64);
    }

    /// Says something while the bar is there.
    pub fn suspended<T>(&self, say: impl FnOnce() -> T) -> T {
        self.0.suspend(say)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Whether the terminal cannot erase a line.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}
