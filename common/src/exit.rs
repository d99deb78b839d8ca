//! How a tool begins and ends: the same in all of them. Exit codes, and the only place that turns an error into one.

use std::process::ExitCode;

use crate::limits::ensure_enough_descriptors;
use crate::power::{self, Role};

/// How a tool ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed, and nothing was changed or all was undone.
    Failed,
    /// Wrong usage. clap uses the same number.
    Usage,
    /// Done, but something needs attention.
    Attention,
    /// The code of a command that was run, handed on.
    Command(u8),
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Attention => 3,
            Self::Command(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The whole of a `main`, once the arguments are known: does `work` with no more power than these roles take, and room for its
/// descriptors. Prints the error, if there is one, as `tool: what: why`, once.
pub fn run(tool: &str, roles: &[Role], work: impl FnOnce() -> anyhow::Result<Exit>) -> ExitCode {
    // Descriptors first: a look at the capabilities takes some.
    let settled = ensure_enough_descriptors().and_then(|()| power::settle(roles));
    conclude(tool, settled.and_then(|()| work()))
}

fn conclude(tool: &str, result: anyhow::Result<Exit>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        // The reader of our output has what it wanted, as in `autofs-inspect | head -1`.
        Err(error) if is_broken_pipe(&error) => Exit::Done.into(),
        Err(error) => {
            crate::cli::say(tool, format_args!("{}", power::explain(&error)));
            Exit::Failed.into()
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    use crate::doc::DocError;
    error.chain().any(|cause| match cause.downcast_ref::<DocError>() {
        Some(DocError::Write { source, .. }) => source.kind() == std::io::ErrorKind::BrokenPipe,
        _ => false,
    })
}
