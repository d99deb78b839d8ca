//! How far a superblock has come, and how the whole restore ended.

use std::fmt;

use nix::errno::Errno;

/// How far a superblock has come. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Restore has not done its part yet.
    Pending,
    /// The superblock that it replaces lives on through the master's control fds: the fixup lets go of them.
    Held,
    /// The fixup has let go of them: restore goes on.
    Released,
    /// It is mounted, and waits for the fixup.
    Created,
    /// A fixup works on it. If that died, the next one goes on from here.
    Claimed,
    /// The kernel talks to the master.
    Connected,
    /// It could not be done, for this reason.
    Failed(Errno),
}

impl Progress {
    /// Whether nothing can follow.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Connected | Self::Failed(_))
    }

    /// Whether `next` may follow directly. A failure may follow everything that is not final.
    pub fn may_become(self, next: Self) -> bool {
        use Progress::{Claimed, Connected, Created, Failed, Held, Pending, Released};
        match (self, next) {
            (_, Failed(_)) => !self.is_final(),
            (Pending, Held | Created) | (Held, Released) | (Released, Created) => true,
            (Created, Claimed) | (Claimed, Connected) => true,
            _ => false,
        }
    }

    /// The form in the segment: the state in the low byte, an error number above it.
    pub(super) fn to_word(self) -> u32 {
        match self {
            Self::Pending => 0,
            Self::Held => 1,
            Self::Released => 2,
            Self::Created => 3,
            Self::Claimed => 4,
            Self::Connected => 5,
            Self::Failed(errno) => FAILED | (errno as u32) << 8,
        }
    }

    /// The reverse of `to_word`; `None` for what that never gives.
    pub(super) fn from_word(word: u32) -> Option<Self> {
        Some(match word {
            0 => Self::Pending,
            1 => Self::Held,
            2 => Self::Released,
            3 => Self::Created,
            4 => Self::Claimed,
            5 => Self::Connected,
            _ if word & 0xff == FAILED => Self::Failed(Errno::from_raw((word >> 8) as i32)),
            _ => return None,
        })
    }
}

const FAILED: u32 = 6;

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.pad("pending"),
            Self::Held => f.pad("held"),
            Self::Released => f.pad("released"),
            Self::Created => f.pad("created"),
            Self::Claimed => f.pad("claimed"),
            Self::Connected => f.pad("connected"),
            Self::Failed(errno) => write!(f, "failed ({})", errno.desc()),
        }
    }
}

/// How the whole restore stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It goes on.
    Running,
    /// All is done.
    Finished,
    /// It has failed; what it did is being undone.
    Failed,
}

impl Outcome {
    pub(super) fn to_word(self) -> u32 {
        match self {
            Self::Running => 0,
            Self::Finished => 1,
            Self::Failed => 2,
        }
    }

    pub(super) fn from_word(word: u32) -> Option<Self> {
        [Self::Running, Self::Finished, Self::Failed].into_iter().find(|outcome| outcome.to_word() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Progress; 7] = [
        Progress::Pending,
        Progress::Held,
        Progress::Released,
        Progress::Created,
        Progress::Claimed,
        Progress::Connected,
        Progress::Failed(Errno::ENOENT),
    ];

    #[test]
    fn words_are_read_back_and_others_are_refused() {
        for progress in ALL {
            assert_eq!(Progress::from_word(progress.to_word()), Some(progress));
        }
        for word in [7, 0x100, 0xff, u32::MAX, 0x0105] {
            assert_eq!(Progress::from_word(word), None, "{word:#x} was taken");
        }
        assert_eq!(Outcome::from_word(3), None);
    }

    #[test]
    fn it_only_moves_forward() {
        for from in ALL {
            for to in ALL {
                let failure = matches!(to, Progress::Failed(_)) && !from.is_final();
                let forward = from.to_word() < to.to_word() && !from.is_final();
                assert!(!from.may_become(to) || failure || forward, "{from} to {to}");
            }
        }
        assert!(!Progress::Held.may_become(Progress::Created));
        assert!(!Progress::Pending.may_become(Progress::Claimed));
    }
}
