//! Forking.

use std::io;
use std::time::{Duration, Instant};

use nix::unistd::ForkResult;

use crate::model::Pid;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The process that forked; the child's id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// How long a fork waits for threads that were joined to be gone from /proc: the kernel says that a thread has
/// ended some microseconds before.
const PATIENCE: Duration = Duration::from_millis(100);

/// fork(2), for a process with one thread. With more the child could find a lock held for ever, so
/// that is refused (EBUSY).
pub fn fork() -> io::Result<Fork> {
    let deadline = Instant::now() + PATIENCE;
    while thread_count().is_some_and(|count| count > 1) {
        if Instant::now() >= deadline {
            return Err(nix::errno::Errno::EBUSY.into());
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    // SAFETY: the child of a process with a single thread may do all that its parent may.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Pid::from_nix(child)
            .map(Fork::Parent)
            .ok_or_else(|| io::Error::other("the kernel gave a child no valid id")),
        ForkResult::Child => Ok(Fork::Child),
    }
}

/// How many threads this process has; `None` where there is no /proc to tell.
fn thread_count() -> Option<usize> {
    std::fs::read_dir("/proc/self/task").ok().map(Iterator::count)
}

/// Lets SIGPIPE end this process again, as a program expects that is executed next: Rust's runtime
/// ignores it, and execve keeps that.
pub fn default_sigpipe() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action is no function of this process, so nothing can run at a wrong time.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}

/// Ends a forked child at once, without running what its parent registered for its own end.
pub fn exit_child(code: u8) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(i32::from(code)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_another_thread_is_not_forked() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || ended.recv());
        let forked = fork();
        if let Ok(Fork::Child) = forked {
            exit_child(1);
        }
        drop(end);
        let _ = other.join();
        let error = forked.expect_err("a fork beside a thread").raw_os_error();
        assert_eq!(error, Some(libc::EBUSY));
    }
}
