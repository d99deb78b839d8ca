//! ioctl_nsfs(2), which neither nix nor rustix wraps.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The namespace above a pid or user namespace (NS_GET_PARENT). EPERM where there is none, or where it is above that of
/// the caller.
pub fn parent(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: NS_GET_PARENT takes no argument.
    let number = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::NS_GET_PARENT) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor for the caller, close-on-exec, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
