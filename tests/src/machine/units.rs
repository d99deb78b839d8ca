//! Automount units.

use anyhow::Result;

use super::Machine;

/// An automount unit and its mount unit, which mounts a tmpfs or another directory.
pub struct Automount<'a> {
    machine: &'a Machine,
    /// Where it is.
    pub place: &'a str,
    /// The name of both units, without the part behind the dot.
    pub name: String,
}

impl<'a> Automount<'a> {
    /// Writes the units and starts the automount: `what` is a directory to be bound, and `idle` the seconds after
    /// which it is unmounted when nobody uses it (0: never).
    pub fn start(machine: &'a Machine, place: &'a str, what: &str, idle: u32) -> Result<Self> {
        let name = escape(place);
        let unit = |kind: &str| format!("/etc/systemd/system/{name}.{kind}");
        machine.write(unit("automount"), &format!("[Automount]\nWhere={place}\nTimeoutIdleSec={idle}\n"))?;
        let mount = format!("[Mount]\nWhat={what}\nWhere={place}\nType=none\nOptions=bind\n");
        machine.write(unit("mount"), &mount)?;
        machine.systemctl(["daemon-reload"]).assert_success();
        machine.systemctl(["start", &format!("{name}.automount")]).assert_success();
        Ok(Self { machine, place, name })
    }

    /// The states of the automount unit and of the mount unit, such as `running` and `mounted`.
    pub fn states(&self) -> (String, String) {
        let state = |kind: &str| self.machine.property(&format!("{}.{kind}", self.name), "SubState");
        (state("automount"), state("mount"))
    }
}

/// The name of the unit for a path, as `systemd-escape --path` makes it.
pub fn escape(path: &str) -> String {
    let path = path.trim_matches('/');
    path.chars()
        .map(|c| {
            if c == '/' {
                "-".to_owned()
            } else if c == '-' {
                r"\x2d".to_owned()
            } else {
                c.to_string()
            }
        })
        .collect()
}
