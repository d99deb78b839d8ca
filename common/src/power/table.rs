//! What each tool needs, and for what. `SECURITY.md` shows this table, and `tests/tests/power.rs` proves it.

use std::fmt;

use rustix::thread::CapabilitySet;

/// What a process does, as far as it takes power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `autofs-inspect`, and a restore that only prints its plan.
    Look,
    /// `autofs-dump`.
    Dump,
    /// `autofs-restore`.
    Restore,
    /// `autofs-restore --init`.
    RestoreInit,
    /// `autofs-fixup` with masters that live.
    Fixup,
    /// `autofs-fixup --exec`.
    FixupExec,
    /// `autofs-fixup --free`.
    FixupFree,
    /// Any of them with a file that is named by `-i` or `-o`.
    Files,
}

/// What a capability is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The capability.
    pub capability: CapabilitySet,
    /// What for.
    pub why: &'static str,
    /// Whether nothing can be done without it. Of any other one the kernel says when it is missing.
    pub is_must: bool,
}

const fn must(capability: CapabilitySet, why: &'static str) -> Use {
    Use { capability, why, is_must: true }
}

const fn may(capability: CapabilitySet, why: &'static str) -> Use {
    Use { capability, why, is_must: false }
}

const LOOK_INTO: Use = may(CapabilitySet::SYS_PTRACE, "to look into processes of other users and rights");
const LIST: Use = may(CapabilitySet::DAC_READ_SEARCH, "to list the descriptors of processes of other users");
const STACKS: Use = may(CapabilitySet::SYS_ADMIN, "to read in kernel stacks who asked first");
const ENTER: Use = may(CapabilitySet::SYS_CHROOT, "to enter a mount namespace");
const PIPES: Use = may(CapabilitySet::DAC_OVERRIDE, "to open pipes of masters of other users");
const LIMIT: Use = may(CapabilitySet::SYS_RESOURCE, "to raise the hard limit of descriptors");
// A namespace without autofs mounts is dumped without it.
const CONTENTS: Use = may(CapabilitySet::SYS_ADMIN, "to open mounts by /dev/autofs, and to enter namespaces");
const MOUNT: Use = must(CapabilitySet::SYS_ADMIN, "to mount, to use /dev/autofs, and to enter namespaces");
const DEVICE: Use = must(CapabilitySet::SYS_ADMIN, "to use /dev/autofs, and to enter namespaces");
const TRACE: Use = must(CapabilitySet::SYS_PTRACE, "to make calls inside a master");
const INSIDE: Use = may(CapabilitySet::FOWNER, "to set the modes of directories inside");
const SIGNAL: Use = may(CapabilitySet::KILL, "to signal processes of other users");
const READ: Use = may(CapabilitySet::DAC_READ_SEARCH, "to read files of other users");
const WRITE: Use = may(CapabilitySet::DAC_OVERRIDE, "to write a file in a directory of another user");
const REPLACE: Use = may(CapabilitySet::FOWNER, "to replace a file of another user in a sticky directory");

impl Role {
    /// What is used for it.
    pub const fn uses(self) -> &'static [Use] {
        match self {
            Self::Look => &[LOOK_INTO, LIST, STACKS, LIMIT],
            Self::Dump => &[CONTENTS, LOOK_INTO, LIST, ENTER, LIMIT],
            Self::Restore => &[MOUNT, LOOK_INTO, LIST, ENTER, PIPES, INSIDE, LIMIT],
            Self::RestoreInit => &[MOUNT, LOOK_INTO, LIST, ENTER, PIPES, INSIDE, SIGNAL, LIMIT],
            Self::Fixup => &[DEVICE, TRACE, LIST, ENTER, PIPES, SIGNAL, LIMIT],
            Self::FixupExec => &[DEVICE, LOOK_INTO, LIST, PIPES, SIGNAL, LIMIT],
            Self::FixupFree => &[DEVICE, LOOK_INTO, LIST, ENTER, PIPES, SIGNAL, LIMIT],
            Self::Files => &[READ, WRITE, REPLACE],
        }
    }

    /// Whether a program is executed at the end, which shall have what this process was given.
    pub const fn executes(self) -> bool {
        matches!(self, Self::RestoreInit | Self::FixupExec)
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = self.capability.iter_names().next().unwrap_or(("?", self.capability));
        write!(f, "CAP_{name} ({})", self.why)
    }
}
