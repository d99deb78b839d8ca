//! A Debian system with the real systemd and automount(8), booted by systemd-nspawn from the root file
//! system that `scripts/rootfs` builds.
//!
//! All that is written in it goes to a tmpfs and is gone at the end. It shares the kernel with the test, so the
//! tools reach it with `-p`, as they reach every container.

pub mod autofs;
mod cgroups;
mod holder;
mod rootfs;
mod units;

use std::fs::File;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use autofs_cr_common::model::Pid;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sandbox::{DEADLINE, Finished, Inside, Process, TestCommand, program};
use cgroups::Cgroups;

pub use autofs::Autofs;
pub use holder::Holder;
pub use rootfs::{missing, overlay};
pub use units::{Automount, escape};

/// Prints nothing, joins the control groups that are its first argument, and becomes the rest in a mount
/// namespace of its own: the mounts of systemd-nspawn are not for this machine to see.
const START: &str = r#"
for group in $1; do echo $$ >"$group/cgroup.procs"; done
shift
exec unshare --mount --propagation private -- "$@"
"#;

/// A booted system. Dropping it ends every process in it.
pub struct Machine {
    name: String,
    inside: Inside,
    nspawn: Process,
    _cgroups: Cgroups,
}

impl Machine {
    /// Boots one, and waits until systemd says that it is ready.
    pub fn boot() -> Result<Self> {
        let rootfs = rootfs::path().context("there is no root file system (scripts/rootfs builds it)")?;
        let name = unique_name();
        // As that of a machine which systemd has started.
        let cgroups = Cgroups::new(&format!("systemd-nspawn@{name}.service"))?;
        let directory = tempfile::tempdir().context("make a directory")?;
        let socket = directory.path().join("notify");
        let notifications = UnixDatagram::bind(&socket).context("make a socket")?;
        notifications.set_read_timeout(Some(DEADLINE)).context("set a deadline")?;
        let programs = program("sandbox-init");
        let programs = programs.parent().context("no directory")?;
        let mut nspawn = Process::start_outside("sh", |command| {
            command
                .args(["-ec", START, "boot", &cgroups.list()])
                .args(["systemd-nspawn", "--quiet", "--boot", "--volatile=overlay", "--console=pipe"])
                .args(["--register=no", "--keep-unit", "--link-journal=no", "--notify-ready=yes"])
                .args(["--private-network", "--bind=/dev/autofs"])
                .arg(format!("--machine={name}"))
                .arg(format!("--directory={}", rootfs.display()))
                .arg(format!("--bind-ro={}", programs.display()))
                .env("NOTIFY_SOCKET", &socket)
                // The second hierarchy on hosts that still have the first one too.
                .env("UNIFIED_CGROUP_HIERARCHY", "1")
                // Several machines have the same root file system, which none of them writes to.
                .env("SYSTEMD_NSPAWN_LOCK", "0")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
        })?;
        nspawn.collect_output();
        match wait_until_booted(&notifications) {
            Ok(inside) => Ok(Self { name, inside, nspawn, _cgroups: cgroups }),
            Err(error) => {
                let _ = nspawn.kill();
                let (stdout, stderr) = nspawn.output();
                Err(error.context(format!("boot a machine\n{stdout}{stderr}")))
            }
        }
    }

    /// Its name for systemd-nspawn.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes a file, and makes the directories above it.
    pub fn write(&self, path: impl AsRef<Path>, text: &str) -> Result<()> {
        let path = self.outside(path);
        let directory = path.parent().context("no directory")?;
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Runs a script of the shell, under the usual deadline.
    pub fn sh(&self, script: &str) -> Finished {
        self.command("sh").args(["-ec", script]).run()
    }

    /// Runs systemctl.
    pub fn systemctl<const N: usize>(&self, words: [&str; N]) -> Finished {
        self.command("systemctl").args(words).run()
    }

    /// A property of a unit, such as `SubState`.
    ///
    /// # Panics
    /// When systemd does not answer.
    #[track_caller]
    pub fn property(&self, unit: &str, name: &str) -> String {
        let shown = self.systemctl(["show", "--value", "--property", name, unit]).assert_success();
        shown.stdout.trim().to_owned()
    }

    /// Writes the file of a unit, for the next [`reload`](Self::reload).
    pub fn unit(&self, name: &str, text: &str) -> Result<()> {
        self.write(format!("/etc/systemd/system/{name}"), text)
    }

    /// Has systemd read the files of its units.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn reload(&self) {
        self.systemctl(["daemon-reload"]).assert_success();
    }

    /// Waits until a property of a unit has a value.
    ///
    /// # Panics
    /// When it does not get it in time.
    #[track_caller]
    pub fn wait_for_property(&self, unit: &str, name: &str, wanted: &str) {
        let has_it = |now: &String| now == wanted;
        wait_for(&format!("{name} of {unit} becomes {wanted}"), || self.property(unit, name), has_it);
    }

    /// Waits until the journal of a unit has a text.
    ///
    /// # Panics
    /// When it does not get it in time.
    #[track_caller]
    pub fn wait_for_journal(&self, unit: &str, text: &str) {
        let what = format!("'{text}' in the journal of {unit}");
        wait_for(&what, || self.journal(unit), |journal| journal.contains(text));
    }

    /// Waits until the mounts are as they have to be; the kernel tells when they have changed.
    ///
    /// # Panics
    /// When they do not become so in time.
    #[track_caller]
    pub fn wait_for_mounts(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        // A change after this is told by poll, also when it comes before that.
        let mounts = File::open(format!("/proc/{}/mountinfo", self.pid())).expect("open mountinfo");
        while !holds() {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).expect("a short time");
            let mut changed = [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)];
            let count = poll(&mut changed, timeout).expect("poll mountinfo");
            assert!(count > 0, "{what}: not in time\n{}", self.mountinfo());
        }
    }

    /// The journal of a unit, or with an empty name all of it: the messages, a line each.
    ///
    /// # Panics
    /// When it cannot be read.
    #[track_caller]
    pub fn journal(&self, unit: &str) -> String {
        let of = if unit.is_empty() { "" } else { "--unit" };
        let words = ["--boot", "--no-pager", "--output=cat", of, unit];
        let words = words.iter().filter(|word| !word.is_empty());
        self.command("journalctl").args(words).run().assert_success().stdout
    }

    /// Fails when the journal has a message of priority `err` or worse, or a unit has failed.
    ///
    /// # Panics
    /// When it has.
    #[track_caller]
    pub fn assert_no_errors(&self) {
        let journal = self.command("journalctl").args(["--boot", "--no-pager", "--quiet", "--priority=err"]);
        let errors = journal.run().assert_success().stdout;
        assert!(errors.is_empty(), "errors in the journal:\n{errors}\nall of it:\n{}", self.journal(""));
        let failed = self.systemctl(["list-units", "--failed", "--no-legend"]).assert_success().stdout;
        assert!(failed.is_empty(), "units have failed:\n{failed}\n{}", self.journal(""));
    }

    /// Starts a command inside, as a test that lets it run on needs it.
    pub fn spawn<const N: usize>(&self, words: [&str; N]) -> crate::sandbox::Running {
        TestCommand::new(words[0]).args(&words[1..]).inside(self).spawn()
    }

    /// The pid of a process, as the test sees it, by its pid in the machine.
    pub fn pid_of(&self, inside: Pid) -> Result<Pid> {
        let namespace = |pid: Pid| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(self.pid());
        let is_it = |pid: &Pid| {
            if namespace(*pid) != own {
                return false;
            }
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            ids.and_then(|ids| ids.split_whitespace().next_back()?.parse::<Pid>().ok()) == Some(inside)
        };
        // A service can have a mount namespace of its own, so all are looked at.
        let found = crate::sandbox::processes().find(is_it);
        found.with_context(|| format!("no process {inside} is in the machine"))
    }

    /// Waits until something is so: for what systemd or automount(8) do when they please.
    ///
    /// # Panics
    /// When it is not so within the usual deadline.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_so() {
            assert!(Instant::now() < deadline, "not in time: {what}\n{}", self.mountinfo());
            // There is no event for this.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it now.
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // The end of the init is that of all in its pid namespace. systemd-nspawn then cleans up.
        let _ = nix::sys::signal::kill(self.inside.pid().to_nix(), nix::sys::signal::Signal::SIGKILL);
        if self.nspawn.wait(DEADLINE)?.is_none() {
            self.nspawn.kill()?;
        }
        self.inside.end_all()
    }
}

impl Deref for Machine {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("end the machine: {error:#}");
        }
    }
}

/// Asks again and again, as systemd and its journal tell nobody here of a change.
#[track_caller]
fn wait_for(what: &str, ask: impl Fn() -> String, holds: impl Fn(&String) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let now = ask();
        if holds(&now) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: not in time, but: {now}");
    }
}

/// A name that no other machine here has.
fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("autofs-cr-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// What systemd-nspawn tells (sd_notify(3)): first the pid of the init, then that it is ready.
fn wait_until_booted(notifications: &UnixDatagram) -> Result<Inside> {
    let mut inside = None;
    let mut buffer = [0; 4096];
    loop {
        let length = notifications.recv(&mut buffer).context("wait for systemd")?;
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        for line in message.lines() {
            match line.split_once('=') {
                Some(("X_NSPAWN_LEADER_PID", pid)) => {
                    inside = Some(Inside::of(pid.parse::<Pid>().context("the pid of the init")?)?);
                }
                Some(("READY", "1")) => return inside.context("systemd-nspawn told no pid"),
                Some(("ERRNO", errno)) => bail!("systemd-nspawn failed with error {errno}"),
                _ => {}
            }
        }
    }
}
