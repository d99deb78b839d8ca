//! Why something in /proc is not there.

use std::io;

use nix::errno::Errno;

/// Why something in /proc is not there. Both are normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The process, the descriptor or the file has ended while it was looked at.
    Gone,
    /// This process may not see it.
    NotVisible,
}

/// Classifies the error of reading something in /proc; `None` if it is a real one.
pub fn absence(error: &io::Error) -> Option<Absence> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::ENOENT | Errno::ESRCH => Some(Absence::Gone),
        Errno::EACCES | Errno::EPERM => Some(Absence::NotVisible),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gone_hidden_and_broken_are_told_apart() {
        let classify = |errno: Errno| absence(&io::Error::from(errno));
        assert_eq!(classify(Errno::ESRCH), Some(Absence::Gone));
        assert_eq!(classify(Errno::EACCES), Some(Absence::NotVisible));
        assert_eq!(classify(Errno::EIO), None);
        assert_eq!(absence(&io::Error::other("x")), None);
    }
}
