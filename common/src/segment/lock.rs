//! Locks on single bytes of the segment file: who holds one lives, as the kernel frees it with the
//! process.
//!
//! These are locks of an open file description (F_OFD_SETLK in fcntl(2)), not the older ones of a
//! process (F_SETLK), because:
//! - Restore waits for the end of fixups while they wait for the end of restore. With the older kind
//!   the kernel takes two such waits for a deadlock and refuses one with EDEADLK.
//! - The older kind is lost as soon as the process closes any descriptor of the file, such as an
//!   inherited one.
//!
//! Their price: a forked child shares the description, and keeps the lock until it ends or execs too. The
//! children of these tools are killed with their parent. And a description that was inherited does
//! not tell its heirs apart, so the segment always opens one of its own.
//!
//! A lock is held for writing. Who waits for its end asks for a lock for reading, so that many can wait
//! at a time, and lets it go at once.

use std::fs::File;
use std::io;
use std::thread::yield_now;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// A byte of the file that stands for a role. No data need be there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Byte(i64);

/// How often a lock is tried again that only watchers hold: they let go after one more call.
const TRIES: usize = 1 << 16;

impl Byte {
    /// Held by the process that made the segment.
    pub(super) const COORDINATOR: Self = Self(0);

    /// Held by the fixup of the master with this index.
    pub(super) fn master(index: usize) -> Self {
        Self(1 + index as i64)
    }

    fn flock(self, kind: libc::c_int) -> libc::flock {
        // l_pid must be 0 for this kind of lock.
        libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: self.0,
            l_len: 1,
            l_pid: 0,
        }
    }

    /// Takes the lock, if nobody holds it: `true` if it is now held through `file`.
    pub(super) fn try_lock(self, file: &File) -> io::Result<bool> {
        for _ in 0..TRIES {
            match fcntl(file, FcntlArg::F_OFD_SETLK(&self.flock(libc::F_WRLCK))) {
                Ok(_) => return Ok(true),
                Err(Errno::EAGAIN | Errno::EACCES) if self.is_locked(file)? => return Ok(false),
                Err(Errno::EAGAIN | Errno::EACCES) => yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// Lets go of the lock.
    pub(super) fn unlock(self, file: &File) -> io::Result<()> {
        fcntl(file, FcntlArg::F_OFD_SETLK(&self.flock(libc::F_UNLCK)))?;
        Ok(())
    }

    /// Whether it is held through another open file description than that of `file`.
    pub(super) fn is_locked(self, file: &File) -> io::Result<bool> {
        let mut found = self.flock(libc::F_RDLCK);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
        Ok(libc::c_int::from(found.l_type) != libc::F_UNLCK)
    }

    /// Blocks until nobody holds it through another open file description than that of `file`.
    pub(super) fn wait_until_free(self, file: &File) -> io::Result<()> {
        loop {
            match fcntl(file, FcntlArg::F_OFD_SETLKW(&self.flock(libc::F_RDLCK))) {
                Ok(_) => return self.unlock(file),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
