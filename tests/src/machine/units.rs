//! Automount units.

use anyhow::{Context, Result};

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
        let mut started = Self::start_all(machine, [place], what, idle)?;
        started.pop().context("one was started")
    }

    /// The same for many places at once.
    pub fn start_all(
        machine: &'a Machine,
        places: impl IntoIterator<Item = &'a str>,
        what: &str,
        idle: u32,
    ) -> Result<Vec<Self>> {
        let units: Vec<_> =
            places.into_iter().map(|place| Self { machine, place, name: escape(place) }).collect();
        units.iter().try_for_each(|unit| unit.write(what, idle))?;
        machine.reload();
        let names = units.iter().map(|unit| unit.unit("automount"));
        machine.command("systemctl").arg("start").args(names).run().assert_success();
        Ok(units)
    }

    fn write(&self, what: &str, idle: u32) -> Result<()> {
        let automount = format!("[Automount]\nWhere={}\nTimeoutIdleSec={idle}\n", self.place);
        self.machine.unit(&self.unit("automount"), &automount)?;
        let mount = format!("[Mount]\nWhat={what}\nWhere={}\nType=none\nOptions=bind\n", self.place);
        self.machine.unit(&self.unit("mount"), &mount)
    }

    /// The name of one of its units: `automount` or `mount`.
    pub fn unit(&self, kind: &str) -> String {
        format!("{}.{kind}", self.name)
    }

    /// The ids of the mounts on it. mountinfo has its lines by id, not in the order of mounting.
    pub fn content(&self) -> Vec<String> {
        let mountinfo = self.machine.mountinfo();
        let here = mountinfo.lines().filter(|line| line.split(' ').nth(4) == Some(self.place));
        let content = here.filter(|line| !line.contains(" - autofs "));
        content.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }

    /// Waits until systemd has unmounted what was mounted on it.
    ///
    /// # Panics
    /// When it does not in time.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        self.machine.wait_for_mounts("unmounted when idle", || self.content().is_empty());
        self.machine.wait_for_property(&self.unit("automount"), "SubState", "waiting");
        self.machine.wait_for_property(&self.unit("mount"), "SubState", "dead");
    }

    /// The states of the automount unit and of the mount unit, such as `running` and `mounted`.
    pub fn states(&self) -> (String, String) {
        let state = |kind: &str| self.machine.property(&self.unit(kind), "SubState");
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
