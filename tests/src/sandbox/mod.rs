//! What a test uses: a private world with its own mount and pid namespace, a reference master in
//! it, the four tools, and touches of triggers. Everything that may hang has a deadline, and
//! dropping a value ends what it started.

mod blocked;
pub mod delegated;
pub mod images;
mod inside;
mod left;
mod link;
mod masters;
mod process;
mod tool;
mod touch;
pub mod traces;
mod world;

pub use blocked::{Blocked, assert_no_leaks, blocked_in_autofs, wait_until_blocked};
pub use inside::Inside;
pub(crate) use inside::processes;
pub use link::End;
pub use masters::{Counters, Master, MasterOptions, MountReport, Report};
pub use process::Process;
pub use tool::{Finished, Running, TestCommand, Tool};
pub use touch::{Touch, TouchError};
pub use world::{Builder, Sandbox};

use std::path::PathBuf;
use std::time::Duration;

/// How long anything may take that is not meant to hang.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Where a program of the workspace is: beside the test's own executable.
///
/// # Panics
/// Where it was not built.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("find the test's own executable");
    // Tests are in target/debug/deps, programs in target/debug.
    let found =
        own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not beside {}: build the workspace first: cargo build --workspace", own.display())
    })
}
