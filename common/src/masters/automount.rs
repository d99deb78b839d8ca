//! automount(8).

use super::{Identity, Known};
use crate::model::{MountType, TextPath};

/// automount(8) of autofs.
pub(super) struct Automount;

/// What the sources of its mounts begin with, but for a plain name: a file, and the kinds of maps of
/// auto.master(5).
const SOURCES: [&[u8]; 9] =
    [b"/", b"-hosts", b"-null", b"yp:", b"nis:", b"nisplus:", b"ldap", b"file:", b"program:"];

impl Known for Automount {
    fn has_name(&self, command: &[u8]) -> bool {
        command == b"automount"
    }

    /// The source is the map.
    fn has_source(&self, source: &[u8]) -> bool {
        source.starts_with(b"auto.") || SOURCES.iter().any(|beginning| source.starts_with(beginning))
    }

    /// It finds direct and offset mounts by device and inode, and never answers for others
    /// (`handle_packet_missing_direct` in daemon/direct.c).
    fn identity(&self, mount_type: MountType) -> Identity {
        match mount_type {
            MountType::Direct | MountType::Offset => Identity::Inode,
            MountType::Indirect => Identity::Device,
        }
    }

    fn can_be_started(&self) -> bool {
        true
    }

    /// A restart connects what is there in place.
    fn restart(&self, _: &[&TextPath]) -> Option<String> {
        Some("systemctl restart autofs".to_owned())
    }

    fn renew(&self) -> Option<&'static str> {
        Some(
            "while nothing is mounted on it, unmount it and send automount HUP: it then mounts a new one by itself",
        )
    }
}
