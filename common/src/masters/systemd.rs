//! systemd.

use std::fmt::Write;

use super::{Identity, Known};
use crate::advice::shell_word;
use crate::model::{MountType, TextPath};

/// systemd, as the manager of the system or of a container.
pub(super) struct Systemd;

impl Known for Systemd {
    fn has_name(&self, command: &[u8]) -> bool {
        command == b"systemd"
    }

    /// `systemd-PID` (`automount_enter_waiting` in src/core/automount.c).
    fn has_source(&self, source: &[u8]) -> bool {
        let pid = source.strip_prefix(b"systemd-");
        pid.is_some_and(|pid| !pid.is_empty() && pid.iter().all(u8::is_ascii_digit))
    }

    /// It passes over every request whose device it does not remember.
    fn identity(&self, _: MountType) -> Identity {
        Identity::Device
    }

    /// It is PID 1.
    fn can_be_started(&self) -> bool {
        false
    }

    fn restart(&self, mount_points: &[&TextPath]) -> Option<String> {
        let units = mount_points.iter().map(|mount_point| {
            let unit = format!("{}.automount", escape(mount_point.as_bytes()));
            format!(" {}", shell_word(unit.as_bytes()))
        });
        Some(format!("systemctl restart{}", units.collect::<String>()))
    }
}

/// The name of the unit for a path, without the part behind the dot: "String Escaping for Inclusion in Unit
/// Names" in systemd.unit(5).
fn escape(path: &[u8]) -> String {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let mut name = String::new();
    for (at, &byte) in path.iter().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at > 0 => name.push('.'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' => name.push(byte.into()),
            // Writing to a string cannot fail.
            _ => drop(write!(name, "\\x{byte:02x}")),
        }
    }
    if name.is_empty() { "-".to_owned() } else { name }
}
