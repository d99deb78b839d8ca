//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use autofs_cr_common::cli::{Input, OutputArg, Verbosity, parse_seconds};
use autofs_cr_common::masters::Identity;
use autofs_cr_common::model::Pid;
use autofs_cr_common::power::Role;
use clap::{Parser, ValueEnum};

/// Recreate the autofs mounts of an image, and wait until their masters are connected
///
/// Mounts what the image says in the namespaces of a process (-p) or in fresh ones (--init), keeps the
/// device numbers, and writes the stage document that autofs-fixup reads. Ends when every mount is
/// connected; if that does not come to be, everything is undone.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done; 1 failed, and nothing was changed or all was undone; \
    2 wrong usage; 3 done, but something needs attention. With --init the code is that of CMD once all is connected."
)]
pub struct Arguments {
    /// Where the image comes from.
    #[command(flatten)]
    pub input: Input,

    /// Where the stage document goes.
    #[command(flatten)]
    pub output: OutputArg,

    /// Work in the mount and pid namespace and the root directory of process PID [default: this one]
    #[arg(short, long, conflicts_with = "init")]
    pub pid: Option<Pid>,

    /// Replace autofs mounts that are in the way; what is mounted on them is moved over
    #[arg(long, conflicts_with = "init")]
    pub replace: bool,

    /// Go back to what was there before a restore that was killed, by what it wrote down; no image is read
    #[arg(long, conflicts_with_all = ["init", "replace", "connect", "identity", "input", "keep_going"])]
    pub undo: bool,

    /// How living masters are connected: at once where that works, or always by autofs-fixup
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    pub connect: Connect,

    /// What masters compare to know their mounts [default: by the kind of master]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub identity: Option<IdentityArg>,

    /// Make a fresh mount and pid namespace, mount there, and run CMD as its init
    ///
    /// CMD starts masters by `autofs-fixup --exec`, which finds the segment by the environment. The
    /// stage document is only written with -o, as standard output is for CMD.
    #[arg(long, requires = "command")]
    pub init: bool,

    /// With --init: the root directory of the fresh mount namespace
    #[arg(long, value_name = "DIR", requires = "init")]
    pub root: Option<PathBuf>,

    /// Leave what is connected when the timeout passes, and exit with code 3
    #[arg(long)]
    pub keep_going: bool,

    /// Print the plan, and change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// How long to wait until everything is connected
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    pub timeout: Duration,

    /// How much is said.
    #[command(flatten)]
    pub verbosity: Verbosity,

    /// The init of the fresh namespace, and its arguments
    #[arg(last = true, value_name = "CMD", requires = "init")]
    pub command: Vec<OsString>,
}

impl Arguments {
    /// What it does, as far as it takes power.
    pub fn roles(&self) -> Vec<Role> {
        let what = match (self.dry_run, self.init) {
            (true, _) => Role::Look,
            (false, true) => Role::RestoreInit,
            (false, false) => Role::Restore,
        };
        let has_files = self.input.input.is_some() || self.output.output.is_some();
        std::iter::once(what).chain(has_files.then_some(Role::Files)).collect()
    }
}

/// How living masters are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Connect {
    /// At once where that works
    #[default]
    Auto,
    /// Always by autofs-fixup
    Fixup,
}

/// What masters compare to know their mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdentityArg {
    /// Nothing: any device number will do
    None,
    /// The device number
    Device,
    /// The device number and the inode number of the root
    Inode,
}

impl From<IdentityArg> for Identity {
    fn from(identity: IdentityArg) -> Self {
        match identity {
            IdentityArg::None => Self::None,
            IdentityArg::Device => Self::Device,
            IdentityArg::Inode => Self::Inode,
        }
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
