//! What each kind of master needs to recognise its mounts again: the only place that knows.
//! A new kind of master is a new variant here, with its answers.

use serde::{Deserialize, Serialize};

use crate::model::{MountType, TextPath};

/// A kind of master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

impl MasterKind {
    /// The kind of a process, by its name.
    pub fn of_command(command: &TextPath) -> Self {
        match command.as_bytes() {
            b"automount" => Self::Automount,
            b"systemd" => Self::Systemd,
            _ => Self::Unknown,
        }
    }

    /// What a living master of this kind compares for a mount of this type.
    pub fn identity(self, mount_type: MountType) -> Identity {
        match (self, mount_type) {
            // It finds direct and offset mounts by device and inode, and never answers for others.
            (Self::Automount, MountType::Direct | MountType::Offset) => Identity::Inode,
            (Self::Automount, MountType::Indirect) => Identity::Device,
            // It passes over every request whose device it does not remember.
            (Self::Systemd, _) => Identity::Device,
            (Self::Unknown, _) => Identity::Device,
        }
    }
}
