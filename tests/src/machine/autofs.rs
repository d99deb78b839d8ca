//! automount(8) in a machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use autofs_cr_common::model::Pid;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use super::Machine;

/// automount(8), with an indirect map at /ind and a direct one below /dir. The keys `a` and `b` of the
/// first and `/dir/a` of the second are directories with a file that has their name; the others are tmpfs. `m`
/// are multi-mounts: what is mounted there has offset triggers of its own.
pub struct Autofs<'a> {
    machine: &'a Machine,
    pid: Pid,
}

const INDIRECT: &str = "\
a -fstype=bind :/srv/a
b -fstype=bind :/srv/b
t -fstype=tmpfs :tmpfs
m -fstype=tmpfs / :tmpfs /sub :tmpfs
hang -fstype=hang :nothing
";

const DIRECT: &str = "\
/dir/a -fstype=bind :/srv/a
/dir/t -fstype=tmpfs :tmpfs
/dir/m -fstype=tmpfs / :tmpfs /sub1 :tmpfs /sub2 :tmpfs
/dir/hang -fstype=hang :nothing
";

/// What mount(8) calls for the type `hang`: it waits until somebody writes to a named pipe.
const HANG: &str = "#!/bin/sh\nread line </run/hang\nexit 32\n";

impl<'a> Autofs<'a> {
    /// Writes the maps, and starts the service. `timeout`: the seconds after which what is not used is unmounted.
    pub fn start(machine: &'a Machine, timeout: u32) -> Result<Self> {
        write_maps(machine, timeout)?;
        // Where automount was killed, systemd ends the mount(8) that it left, and sometimes does not notice that.
        machine.write("/etc/systemd/system/autofs.service.d/stop.conf", "[Service]\nTimeoutStopSec=2\n")?;
        machine.systemctl(["daemon-reload"]).assert_success();
        machine.systemctl(["start", "autofs"]).assert_success();
        Self::find(machine)
    }

    /// The service as it runs now.
    pub fn find(machine: &'a Machine) -> Result<Self> {
        let inside = machine.property("autofs.service", "MainPID");
        let pid = machine.pid_of(inside.parse().context("no main pid")?)?;
        Ok(Self { machine, pid })
    }

    /// Its pid, as the test sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Has it unmount at once what nobody uses.
    pub fn expire(&self) -> Result<()> {
        nix::sys::signal::kill(self.pid.to_nix(), Signal::SIGUSR1).context("signal automount")
    }

    /// Kills it, and waits until systemd knows.
    pub fn kill(self) -> Result<()> {
        nix::sys::signal::kill(self.pid.to_nix(), Signal::SIGKILL).context("kill automount")?;
        let is_failed = || self.machine.property("autofs.service", "ActiveState") == "failed";
        self.machine.wait_until("automount is dead", is_failed);
        Ok(())
    }

    /// Its pid in the machine, as the images name it.
    pub fn id(&self) -> String {
        format!("automount-{}", self.machine.property("autofs.service", "MainPID"))
    }
}

/// Writes the maps of a machine.
pub fn write_maps(machine: &Machine, timeout: u32) -> Result<()> {
    write_maps_below(&machine.outside("/"), timeout)
}

/// Writes the maps below a root directory.
pub fn write_maps_below(root: &Path, timeout: u32) -> Result<()> {
    for (path, text) in maps(timeout) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("no directory")?)?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    fs::set_permissions(root.join("sbin/mount.hang"), fs::Permissions::from_mode(0o755))?;
    nix::unistd::mkfifo(&root.join("run/hang"), Mode::S_IRWXU).context("make /run/hang")
}

/// The files of the maps, with their texts, as from the root directory.
fn maps(timeout: u32) -> [(&'static str, String); 6] {
    let master = format!("/ind /etc/auto.ind --timeout={timeout}\n/- /etc/auto.dir --timeout={timeout}\n");
    [
        ("etc/auto.master", master),
        ("etc/auto.ind", INDIRECT.to_owned()),
        ("etc/auto.dir", DIRECT.to_owned()),
        ("srv/a/file", "a".to_owned()),
        ("srv/b/file", "b".to_owned()),
        ("sbin/mount.hang", HANG.to_owned()),
    ]
}
