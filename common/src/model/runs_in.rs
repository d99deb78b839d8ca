//! Containers and units.

use serde::{Deserialize, Serialize};

use super::TextPath;

/// What a process belongs to, as its control group tells (/proc/PID/cgroup).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct RunsIn {
    /// The container: a machine of systemd-nspawn or LXC by its name, others by the first 12 digits of the id that
    /// their runtime gave, as `docker ps` and `podman ps` show it. Of containers in each other the outermost, which is
    /// the one that the host knows. Absent where the reader is in the same container and has a control group namespace
    /// of its own, as it then sees no path above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<TextPath>,
    /// The systemd unit, of the container if it is in one: the innermost service or scope. So it is the unit of a
    /// user's own systemd too, where `systemctl status PID` names the `user@UID.service` above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<TextPath>,
}

impl RunsIn {
    /// For serde: not worth writing.
    pub fn is_unknown(&self) -> bool {
        self.container.is_none() && self.unit.is_none()
    }
}
