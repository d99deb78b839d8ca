//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use autofs_cr_common::cli::{Input, Verbosity, parse_seconds};
use autofs_cr_common::model::Pid;
use autofs_cr_common::power::Role;
use clap::Parser;

/// Connect masters to their restored autofs mounts, from their own context
///
/// Reads the stage document of autofs-restore and connects every master in it that lives, side by side.
/// With --pid only that one; with --exec this process becomes a master that is not there yet, and then
/// executes CMD. With --free it reads no document, and frees mounts that hang: who waits on them gets an
/// error, and they are ready for a master. One that lives is connected to them again in the same step.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 all connected; 1 failed; 2 wrong usage; 3 the rest is connected, but some \
    masters have to be started with --exec. With --exec the code is that of CMD. With --free: 0 all freed; 1 not all; 3 \
    freed, but a master has to be restarted.\n\n\
    Environment: AUTOFS_CR_SEGMENT is the segment (a name, fd:N or /proc/PID/fd/N), where no -i is given, \
    for --pid and --exec. AUTOFS_CR_DEVICE=fd:N is an inherited descriptor of /dev/autofs, used where \
    that is missing. CMD gets neither."
)]
pub struct Arguments {
    /// Where the stage document comes from.
    #[command(flatten)]
    pub input: Input,

    /// Connect only the master that is process PID. With --free: the mounts of the mount namespace of
    /// process PID, as from its root directory
    #[arg(short, long, conflicts_with = "exec")]
    pub pid: Option<Pid>,

    /// Become a master that is not there yet: its pipes at their recorded numbers, its mounts connected,
    /// then CMD is executed
    #[arg(long, requires = "command")]
    pub exec: bool,

    /// With --exec: which master [default: the only one that is not there yet]
    #[arg(long, value_name = "ID", requires = "exec")]
    pub master: Option<String>,

    /// Free the mounts at these places; without one, every mount whose master is gone
    #[arg(long, conflicts_with_all = ["exec", "master", "input"])]
    pub free: bool,

    /// With --free: kill who asked first, where nothing else makes a mount reachable
    #[arg(long, requires = "free")]
    pub kill: bool,

    /// With --free: a mount to be freed
    #[arg(value_name = "MOUNTPOINT", requires = "free")]
    pub mount_points: Vec<PathBuf>,

    /// Print what would be done, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// How long to wait for autofs-restore and for the masters [default: as long as autofs-restore waits;
    /// with --free: 10]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,

    /// How much is said.
    #[command(flatten)]
    pub verbosity: Verbosity,

    /// The program of the master, and its arguments
    #[arg(last = true, value_name = "CMD", requires = "exec")]
    pub command: Vec<OsString>,
}

impl Arguments {
    /// What it does, as far as it takes power.
    pub fn roles(&self) -> Vec<Role> {
        let what = match (self.exec, self.free) {
            (true, _) => Role::FixupExec,
            (_, true) => Role::FixupFree,
            _ => Role::Fixup,
        };
        std::iter::once(what).chain(self.input.input.is_some().then_some(Role::Files)).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
