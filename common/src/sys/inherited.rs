//! Descriptors that a process was started with.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

/// Takes the descriptor `number` that this process inherited, close-on-exec from now on. To be called
/// as the first thing of a program. Standard streams are refused (EBADF), and so is a number that was
/// taken before (EBADF) or that is close-on-exec (EINVAL): what this process opens itself always is,
/// so such a descriptor was not inherited and belongs to someone.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if number <= libc::STDERR_FILENO || taken.contains(&number) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_GETFD takes no pointer and changes nothing.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the descriptor is open, was not opened by this program (it is not close-on-exec, and
    // everything in this project is) and was not taken before, so nothing else owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)?;
    taken.insert(number);
    Ok(owned)
}
