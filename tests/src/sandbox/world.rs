//! The private world of a test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use autofs_cr_common::model::Pid;
use tempfile::TempDir;

use super::link::{Link, Listener};
use super::process::Place;
use super::{DEADLINE, Finished, Master, MasterOptions, TestCommand, Touch, TouchError, program};

/// What a sandbox shall have.
#[derive(Clone, Debug)]
pub struct Builder {
    own_pid_namespace: bool,
    fresh_root: bool,
    shm: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self { own_pid_namespace: true, fresh_root: false, shm: false }
    }
}

impl Builder {
    /// Whether it has a pid namespace of its own (it has, by default).
    pub fn own_pid_namespace(mut self, own: bool) -> Self {
        self.own_pid_namespace = own;
        self
    }

    /// A root of its own, on a tmpfs, with only what programs need.
    pub fn fresh_root(mut self) -> Self {
        self.fresh_root = true;
        self
    }

    /// A /dev/shm of its own.
    pub fn shm(mut self) -> Self {
        self.shm = true;
        self
    }

    /// Makes it.
    pub fn build(self) -> Result<Sandbox> {
        let work = tempfile::Builder::new().prefix("acr").tempdir().context("make a work directory")?;
        let listener = Listener::new().context("make a link")?;
        let helper = program("sandbox-init");
        let mut command = Command::new(&helper);
        command.arg("new").arg("--link").arg(listener.name()).arg("--work").arg(work.path());
        command.args((!self.own_pid_namespace).then_some("--same-pid-namespace"));
        command.args(self.shm.then_some("--shm"));
        if self.fresh_root {
            command.arg("--fresh-root").arg("--bind").arg(helper.parent().context("no directory")?);
        }
        let mut helper = command.stdin(Stdio::null()).spawn().context("start sandbox-init")?;
        let connected = listener.accept(DEADLINE).and_then(|mut link| Ok((link.pid(DEADLINE)?, link)));
        match connected {
            Ok((pid, link)) => {
                let held = File::open(format!("/proc/{pid}/ns/mnt")).context("open the mount namespace")?;
                let namespace = mount_namespace(pid).context("the init of the sandbox is gone")?;
                Ok(Sandbox { helper, link, pid, namespace, _held: held, work })
            }
            Err(error) => {
                let _ = helper.kill();
                let _ = helper.wait();
                Err(error).context("make a sandbox")
            }
        }
    }
}

/// A private world: a mount namespace, a pid namespace, a fresh /proc, and a work directory on a
/// tmpfs. Dropping it ends every process in it.
pub struct Sandbox {
    helper: Child,
    link: Link,
    pid: Pid,
    namespace: PathBuf,
    // The kernel gives the number of a namespace that is gone to the next one; `end` must not kill
    // what is in that.
    _held: File,
    work: TempDir,
}

impl Sandbox {
    /// One as most tests want it.
    pub fn new() -> Result<Self> {
        Builder::default().build()
    }

    /// One of another kind.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The pid of its init as the test sees it: what `-p` takes.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The work directory: the same path inside and outside, but a tmpfs inside.
    pub fn work(&self) -> &Path {
        self.work.path()
    }

    /// A path in the work directory, as seen inside.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.work.path().join(name)
    }

    /// A path inside, as the test can open it. Do not walk onto autofs mounts by it.
    pub fn outside(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        PathBuf::from(format!("/proc/{}/root", self.pid)).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Makes a directory, and those above it, in the work directory; returns its path inside.
    pub fn mkdir(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.path(name);
        let outside = self.outside(&path);
        std::fs::create_dir_all(&outside).with_context(|| format!("make {}", outside.display()))?;
        Ok(path)
    }

    /// A command inside the namespaces: `sandbox.command("ls").arg("-l").run()`.
    pub fn command(&self, program: impl Into<PathBuf>) -> TestCommand {
        TestCommand::new(program.into()).inside(self)
    }

    /// Runs a command inside, under the usual deadline.
    pub fn run<const N: usize>(&self, words: [&str; N]) -> Finished {
        self.command(words[0]).args(&words[1..]).run()
    }

    /// Starts a reference master inside and waits until it serves.
    pub fn master(&self, options: MasterOptions) -> Result<Master> {
        options.start(self)
    }

    /// Opens a path inside, as a process that is not the master: starts a mount if it is a trigger.
    pub fn touch(&self, path: impl AsRef<Path>) -> Result<(), TouchError> {
        self.touch_in_background(path).join().map(drop)
    }

    /// Reads a file inside.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String, TouchError> {
        self.touch_in_background(path).join()
    }

    /// Opens a path inside and does not wait: the handle can be joined or killed.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn touch_in_background(&self, path: impl AsRef<Path>) -> Touch {
        Touch::start(self.place(), path.as_ref()).expect("start a touch")
    }

    pub(super) fn place(&self) -> Place {
        Place { enter: Some(self.pid), uid: None }
    }

    /// The mountinfo of its init.
    ///
    /// # Panics
    /// When its init is gone.
    pub fn mountinfo(&self) -> String {
        mountinfo(self.pid).expect("read the mountinfo of the sandbox")
    }

    /// Those lines of its mountinfo that are autofs mounts. `pgrp=` and the like are as the test sees them.
    pub fn autofs_lines(&self) -> Vec<String> {
        self.mountinfo().lines().filter(|line| line.contains(" - autofs ")).map(str::to_owned).collect()
    }

    /// The line of mountinfo of the topmost mount at a path inside.
    pub fn mount_line(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = path.as_ref().to_string_lossy().into_owned();
        self.mountinfo().lines().rfind(|line| line.split(' ').nth(4) == Some(&path)).map(str::to_owned)
    }

    /// The processes in its mount namespace, as the test sees them.
    pub fn processes(&self) -> Vec<Pid> {
        processes().filter(|pid| mount_namespace(*pid).as_ref() == Some(&self.namespace)).collect()
    }

    /// Fails when a process in it waits in autofs.
    ///
    /// # Panics
    /// When one does.
    pub fn assert_nothing_blocked(&self) {
        let blocked = super::blocked_in_autofs(&self.processes());
        assert!(blocked.is_empty(), "blocked in autofs: {blocked:?}\n{}", self.mountinfo());
    }

    /// Ends it now, and checks that nothing of it is left.
    pub fn close(mut self) -> Result<()> {
        self.end()?;
        super::assert_no_leaks(self.work());
        Ok(())
    }

    /// Ends all processes of its pid namespace by ending its init; where it has none of its own,
    /// those of its mount namespace, which nobody else can be in.
    fn end(&mut self) -> Result<()> {
        // An error tells that the helper is gone, and with it the init.
        let _ = self.link.hang_up();
        let _ = self.link.end(DEADLINE);
        let _ = self.helper.kill();
        let _ = self.helper.wait();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "processes {left:?} of the sandbox do not die");
            for pid in left {
                end_process(pid, deadline);
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("end the sandbox: {error:#}");
        }
    }
}

/// Kills a process and waits for its end; one that is gone is fine.
fn end_process(pid: Pid, deadline: Instant) {
    use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(raw) = rustix::process::Pid::from_raw(pid.as_raw()) else { return };
    let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else { return };
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    let mut fds = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&pidfd), nix::poll::PollFlags::POLLIN)];
    let left = deadline.saturating_duration_since(Instant::now());
    let _ = nix::poll::poll(
        &mut fds,
        nix::poll::PollTimeout::try_from(left).unwrap_or(nix::poll::PollTimeout::MAX),
    );
}

/// Which mount namespace a process is in; `None` when it is gone, a zombie, or not visible.
pub(super) fn mount_namespace(pid: Pid) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

pub(super) fn mountinfo(pid: Pid) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// All processes that the test can see.
pub(super) fn processes() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
