//! What a test needs, and what happens where it is missing: the test says "skipped: reason", adds a
//! line to the file that `AUTOFS_CR_SKIP_LOG` names, and returns. Under `AUTOFS_CR_NO_SKIP=1` it fails.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};

/// Something that a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Effective user id 0.
    Root,
    /// `/dev/autofs`, which tells that the kernel has autofs.
    Autofs,
    /// ptrace of processes other than children (`/proc/sys/kernel/yama/ptrace_scope` below 2).
    Ptrace,
    /// The pipe's inode in mountinfo (CONFIG_CHECKPOINT_RESTORE).
    PipeInode,
    /// What a [`Machine`](crate::machine::Machine) is booted with: systemd-nspawn and a root file system.
    Machine,
}

impl Need {
    /// Why the machine does not have it; `None` if it does.
    pub fn missing(self) -> Option<String> {
        let reason = match self {
            Self::Root => (!nix::unistd::geteuid().is_root()).then_some("not root"),
            Self::Autofs => {
                (!std::path::Path::new("/dev/autofs").exists()).then_some("the kernel has no /dev/autofs")
            }
            Self::Ptrace => (ptrace_scope() > 1).then_some("kernel.yama.ptrace_scope forbids ptrace"),
            Self::PipeInode => (!std::path::Path::new("/proc/self/map_files").exists())
                .then_some("the kernel was built without CONFIG_CHECKPOINT_RESTORE"),
            Self::Machine => crate::machine::missing(),
        };
        reason.map(str::to_owned)
    }
}

fn ptrace_scope() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// What a skipped test returns: lets [`require!`](crate::require) be used in tests that return
/// nothing and in those that return a result.
pub trait Skipped {
    /// The value of a test that did nothing.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl<E> Skipped for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Whether the running test must be skipped; tells and counts it if so.
///
/// # Panics
/// Where `AUTOFS_CR_NO_SKIP` is `1`, instead of skipping.
pub fn must_skip(needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|need| need.missing()) else { return false };
    skip(&reason);
    true
}

/// Tells and counts that the running test is skipped.
///
/// # Panics
/// Where `AUTOFS_CR_NO_SKIP` is `1`.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("AUTOFS_CR_NO_SKIP").is_none_or(|set| set != "1"), "must not skip: {reason}");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    println!("skipped: {reason}");
    if let Some(log) = std::env::var_os("AUTOFS_CR_SKIP_LOG") {
        let mut file = File::options().append(true).create(true).open(log).expect("open the skip log");
        file.write_all(format!("{test}: {reason}\n").as_bytes()).expect("write the skip log");
    }
}

/// Skips the running test where the machine lacks one of the needs:
/// `require!(Root, Autofs);` as its first statement.
#[macro_export]
macro_rules! require {
    ($($need:ident),+ $(,)?) => {
        if $crate::guard::must_skip(&[$($crate::guard::Need::$need),+]) {
            return $crate::guard::Skipped::skipped();
        }
    };
}

/// A turn, which ends when this is dropped.
#[must_use]
pub struct Turn {
    _machine: Option<Flock<File>>,
    _process: MutexGuard<'static, ()>,
}

/// A turn: while it is held, no other test on this machine that asks for one runs, in this process or in that of another
/// checkout, and no benchmark. Device numbers are the machine's, and one that a test frees must not go to the mounts of another.
pub fn alone() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed leaves nothing behind that the next one could see.
    let process = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Turn { _machine: machine_lock(), _process: process }
}

/// A lock on the one file that all tests of a machine have in common: nobody else locks the control device. None where
/// it cannot be opened: there nothing is mounted either.
fn machine_lock() -> Option<Flock<File>> {
    let device = File::open("/dev/autofs").ok()?;
    Some(Flock::lock(device, FlockArg::LockExclusive).expect("a lock on /dev/autofs"))
}
