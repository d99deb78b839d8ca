//! One process that a test started, in a sandbox or outside.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use autofs_cr_common::model::Pid;
use nix::sys::signal::Signal;

use super::link::{End, Link, Listener};
use super::{DEADLINE, program};

/// Where and as whom a process runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// In the namespaces of this process.
    pub enter: Option<Pid>,
    /// As this user.
    pub uid: Option<u32>,
    /// It waits for a tracer before it is executed.
    pub held: bool,
}

/// A process that a test started, with its pid and its end. It is killed when this is dropped.
pub struct Process {
    helper: Child,
    link: Link,
    pid: Pid,
    end: Option<End>,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
}

impl Process {
    /// Starts a program at a place; `set_up` may give it arguments, environment and streams.
    pub(super) fn start(
        place: Place,
        name: &OsStr,
        set_up: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Self> {
        let listener = Listener::new().context("make a link")?;
        let mut command = Command::new(program("sandbox-init"));
        command.arg("run").arg("--link").arg(listener.name());
        if let Some(pid) = place.enter {
            command.arg(format!("--enter={pid}"));
        }
        if let Some(uid) = place.uid {
            command.arg(format!("--uid={uid}"));
        }
        command.args(place.held.then_some("--held"));
        command.arg("--").arg(name);
        let mut helper = set_up(&mut command).spawn().context("start sandbox-init")?;
        let connected = listener.accept(DEADLINE).and_then(|mut link| Ok((link.pid(DEADLINE)?, link)));
        let (pid, link) = connected.inspect_err(|_| kill(&mut helper)).context("reach sandbox-init")?;
        Ok(Self { helper, link, pid, end: None, stdout: None, stderr: None })
    }

    /// Starts a program outside of all sandboxes.
    pub(crate) fn start_outside(
        name: &str,
        set_up: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Self> {
        Self::start(Place::default(), OsStr::new(name), set_up)
    }

    /// Its pid, as the test sees it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its pid in its own pid namespace.
    pub fn pid_inside(&self) -> Result<Pid> {
        let path = format!("/proc/{}/status", self.pid);
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("no NSpid")?;
        Ok(line.split_whitespace().next_back().context("an empty NSpid")?.parse()?)
    }

    /// Waits for its end; `None` when it has not ended in that time.
    pub fn wait(&mut self, deadline: Duration) -> Result<Option<End>> {
        if self.end.is_none() {
            match self.link.end(deadline) {
                Ok(end) => self.end = Some(end),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                Err(error) => return Err(error).context("wait for a process"),
            }
        }
        Ok(self.end)
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.wait(Duration::ZERO), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Not reaped before its end was told, so the pid is still its own.
        if self.end.is_none() {
            nix::sys::signal::kill(self.pid.to_nix(), signal).context("signal a process")?;
        }
        Ok(())
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<End> {
        self.link.hang_up().or_else(|error| if self.end.is_some() { Ok(()) } else { Err(error) })?;
        self.wait(DEADLINE)?.with_context(|| format!("process {} does not die", self.pid))
    }

    /// Kills it with SIGKILL and waits until it is dead, also where somebody traces it: then it is not reaped yet, and its
    /// end is told when that one lets go of it.
    pub fn kill_as_traced(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let (path, deadline) = (format!("/proc/{}/stat", self.pid), Instant::now() + DEADLINE);
        while std::fs::read_to_string(&path).is_ok_and(|stat| !stat.contains(") Z ")) {
            ensure!(Instant::now() < deadline, "process {} does not die", self.pid);
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The pipe to its standard input, once.
    pub(super) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.helper.stdin.take()
    }

    /// The pipe from its standard output, once.
    pub(super) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.helper.stdout.take()
    }

    /// Reads both streams from now on, so that they never fill up.
    pub(crate) fn collect_output(&mut self) {
        let stderr: Option<ChildStderr> = self.helper.stderr.take();
        self.stdout = self.helper.stdout.take().map(read_all);
        self.stderr = stderr.map(read_all);
    }

    /// What it wrote to standard output and to standard error, since the last call. Call it after the
    /// end: it waits until the streams are closed, but not for long, as a process that it left behind
    /// may hold them open.
    pub(crate) fn output(&mut self) -> (String, String) {
        let text = |stream: &mut Option<Collected>| stream.take().map(Collected::text).unwrap_or_default();
        (text(&mut self.stdout), text(&mut self.stderr))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.link.hang_up();
        let deadline = Instant::now() + DEADLINE;
        while self.end.is_none() && Instant::now() < deadline {
            match self.wait(deadline - Instant::now()) {
                Ok(Some(_)) | Err(_) => break,
                Ok(None) => eprintln!("process {} does not die", self.pid),
            }
        }
        kill(&mut self.helper);
    }
}

fn kill(helper: &mut Child) {
    let _ = helper.kill();
    let _ = helper.wait();
}

/// How long to wait for the end of a stream whose process has ended.
const LEFTOVER: Duration = Duration::from_secs(2);

/// What a thread reads from a stream.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    // Disconnected at the end of the stream.
    end: Receiver<()>,
}

impl Collected {
    fn text(self) -> String {
        let _ = self.end.recv_timeout(LEFTOVER);
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn read_all(mut stream: impl Read + Send + 'static) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let (sender, end) = channel();
    let shared = Arc::clone(&bytes);
    std::thread::spawn(move || {
        let mut buffer = [0; 16384];
        while let Ok(size @ 1..) = stream.read(&mut buffer) {
            shared.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..size]);
        }
        drop(sender);
    });
    Collected { bytes, end }
}
