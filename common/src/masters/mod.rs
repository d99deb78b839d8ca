//! What each kind of master needs to recognise its mounts again, and how an admin starts it anew: the only
//! place that knows. A new kind of master is one small file here, and a variant of [`MasterKind`].

mod automount;
mod systemd;
mod unknown;

use serde::{Deserialize, Serialize};

use crate::model::{MountType, TextPath};

/// A kind of master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum MasterKind {
    /// automount(8) of autofs.
    Automount,
    /// systemd, as the manager of the system or of a container.
    Systemd,
    /// Any other daemon.
    Unknown,
}

/// What a master compares before it serves a request: what must stay as it was when a superblock
/// is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// Nothing.
    None,
    /// The device number.
    Device,
    /// The device number and the inode number of the root, which cannot be chosen: the superblock
    /// itself has to stay.
    Inode,
}

/// What is known of a kind of master.
trait Known: Sync {
    /// Whether a process with this name (/proc/PID/comm) is one.
    fn has_name(&self, command: &[u8]) -> bool;

    /// Whether a mount with this source was made by one.
    fn has_source(&self, source: &[u8]) -> bool;

    /// What a living one compares for a mount of this type.
    fn identity(&self, mount_type: MountType) -> Identity;

    /// Whether it can be started by `autofs-fixup --exec`.
    fn can_be_started(&self) -> bool;

    /// The command by which an admin has it make these mounts anew and serve them, as it is typed where it runs.
    fn restart(&self, mount_points: &[&TextPath]) -> Option<String>;

    /// How an admin has it make a mount anew that cannot be replaced under it, for a message.
    fn renew(&self) -> Option<&'static str> {
        None
    }
}

impl MasterKind {
    /// All of them, in the order of their numbers in the segment.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Automount, Self::Systemd];

    fn known(self) -> &'static dyn Known {
        match self {
            Self::Automount => &automount::Automount,
            Self::Systemd => &systemd::Systemd,
            Self::Unknown => &unknown::Unknown,
        }
    }

    /// The kind of a process, by its name.
    pub fn of_command(command: &TextPath) -> Self {
        let found = Self::ALL.into_iter().find(|kind| kind.known().has_name(command.as_bytes()));
        found.unwrap_or(Self::Unknown)
    }

    /// The kind of master that made a mount, by the mount's source: where the master itself is gone.
    pub fn of_source(source: &TextPath) -> Self {
        let found = Self::ALL.into_iter().find(|kind| kind.known().has_source(source.as_bytes()));
        found.unwrap_or(Self::Unknown)
    }

    /// What a living master of this kind compares for a mount of this type.
    pub fn identity(self, mount_type: MountType) -> Identity {
        self.known().identity(mount_type)
    }

    /// Whether `autofs-fixup --exec` can start one that is not there. One that cannot be started is always
    /// there, and nothing else is ever taken for it.
    pub fn can_be_started(self) -> bool {
        self.known().can_be_started()
    }

    /// The command by which an admin has the master make these mounts anew and serve them, as it is typed
    /// where the master runs; `None` if that is not known.
    pub fn restart(self, mount_points: &[&TextPath]) -> Option<String> {
        self.known().restart(mount_points)
    }

    /// How an admin has the master make a mount anew that cannot be replaced under it, for a message.
    pub fn renew(self) -> Option<&'static str> {
        self.known().renew()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_name_and_by_source() {
        let kind = |command: &str| MasterKind::of_command(&TextPath::from_bytes(command.into()));
        assert_eq!(kind("systemd"), MasterKind::Systemd);
        assert_eq!(kind("automount"), MasterKind::Automount);
        assert_eq!(kind("systemd-journal"), MasterKind::Unknown);
        let kind = |source: &str| MasterKind::of_source(&TextPath::from_bytes(source.into()));
        assert_eq!(kind("systemd-1"), MasterKind::Systemd);
        assert_eq!(kind("systemd-home"), MasterKind::Unknown);
        assert_eq!(kind("/etc/auto.home"), MasterKind::Automount);
        assert_eq!(kind("auto.home"), MasterKind::Automount);
        assert_eq!(kind("ldap:ou=auto.home,dc=example"), MasterKind::Automount);
        assert_eq!(kind("-hosts"), MasterKind::Automount);
        assert_eq!(kind("reference-master"), MasterKind::Unknown);
    }

    #[test]
    fn a_unit_is_restarted_by_its_name() {
        let place = |text: &str| TextPath::from_bytes(text.into());
        let restart = |text: &str| MasterKind::Systemd.restart(&[&place(text)]);
        assert_eq!(restart("/data").as_deref(), Some("systemctl restart data.automount"));
        // Quoted, as the shell takes backslashes away.
        assert_eq!(restart("/a-b/c d").as_deref(), Some(r"systemctl restart 'a\x2db-c\x20d.automount'"));
        assert_eq!(
            restart("/.hidden/ü").as_deref(),
            Some(r"systemctl restart '\x2ehidden-\xc3\xbc.automount'")
        );
        let both = MasterKind::Systemd.restart(&[&place("/a"), &place("/")]);
        assert_eq!(both.as_deref(), Some("systemctl restart a.automount -.automount"));
    }
}
