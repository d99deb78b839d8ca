//! Checks that a test left nothing behind.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use autofs_cr_common::model::Pid;

use super::DEADLINE;
use super::process::Process;

/// How often /proc is looked at.
const STEP: Duration = Duration::from_millis(2);

/// A thread that waits in autofs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The process.
    pub process: Pid,
    /// The thread.
    pub thread: Pid,
    /// The kernel function that it waits in.
    pub function: String,
}

/// The threads of these processes that wait in autofs (`autofs_wait`, `autofs_expire_wait`).
pub fn blocked_in_autofs(processes: &[Pid]) -> Vec<Blocked> {
    processes.iter().flat_map(|process| blocked_threads(*process)).collect()
}

fn blocked_threads(process: Pid) -> Vec<Blocked> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|entry| {
            let thread = entry.file_name().to_str()?.parse().ok()?;
            let function = fs::read_to_string(entry.path().join("wchan")).ok()?;
            function.starts_with("autofs_").then_some(Blocked { process, thread, function })
        })
        .collect()
}

/// Waits until this many threads of the processes that `list` names wait in autofs, and gives them. `process` is to
/// go on meanwhile.
///
/// # Panics
/// When there are not so many within the usual deadline, or `process` ends.
pub fn wait_until_blocked(process: &mut Process, count: usize, list: impl Fn() -> Vec<Pid>) -> Vec<Blocked> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let blocked = blocked_in_autofs(&list());
        if blocked.len() >= count {
            return blocked;
        }
        // There is no event for this; waiting for the end in small steps is the next best.
        assert_eq!(process.wait(STEP).expect("wait"), None, "the process ended");
        assert!(Instant::now() < deadline, "{} of {count} threads are blocked: {blocked:?}", blocked.len());
    }
}

/// Fails when the test's own mount namespace has a mount at or under `work`.
///
/// # Panics
/// When it has one.
pub fn assert_no_leaks(work: &Path) {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("read /proc/self/mountinfo");
    let work = work.to_str().expect("the work directory has a plain name");
    let leaked: Vec<_> = mountinfo
        .lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with(work)))
        .collect();
    assert!(leaked.is_empty(), "mounts leaked out of the sandbox: {leaked:#?}");
}
