//! A reference master in a sandbox.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use autofs_cr_common::model::Pid;
use nix::errno::Errno;

pub use crate::master::report::{Counters, MountReport, Report};

use super::process::Process;
use super::{DEADLINE, End, Sandbox, program};

/// What a reference master shall do: `reference-master --help` tells all of it. Paths that are not
/// absolute are in the sandbox's work directory.
#[derive(Clone, Debug, Default)]
pub struct MasterOptions {
    via: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    mounts: Vec<(&'static str, PathBuf)>,
    arguments: Vec<OsString>,
}

impl MasterOptions {
    /// One without mounts, with the options that `reference-master` has by default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a direct trigger.
    pub fn direct(self, path: impl Into<PathBuf>) -> Self {
        self.mount("--direct", path)
    }

    /// Adds an indirect map.
    pub fn indirect(self, path: impl Into<PathBuf>) -> Self {
        self.mount("--indirect", path)
    }

    /// Adds an offset trigger.
    pub fn offset(self, path: impl Into<PathBuf>) -> Self {
        self.mount("--offset", path)
    }

    fn mount(mut self, option: &'static str, path: impl Into<PathBuf>) -> Self {
        self.mounts.push((option, path.into()));
        self
    }

    /// Adds an option as on the command line: `.arg("--wait=epoll")`, `.arg("--control-fds")`.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds options as on the command line.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Starts it by another program, that is given its command line and must exec it:
    /// `.via([fixup, "--exec", "--"])`.
    pub fn via(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.via.extend(words.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// As systemd does it: one pipe for each mount, no write end, O_NONBLOCK, epoll, by the device.
    pub fn like_systemd(self) -> Self {
        self.args(["--pipes=each", "--write-end=close", "--nonblock", "--wait=epoll", "--identity=device"])
    }

    /// As automount(8) does its direct maps: one pipe, its write end kept, poll, by device and inode.
    pub fn like_automount(self) -> Self {
        self.args(["--pipes=one", "--write-end=keep", "--wait=poll", "--identity=inode", "--control-fds"])
    }

    pub(super) fn start(self, sandbox: &Sandbox) -> Result<Master> {
        let mounts =
            self.mounts.iter().flat_map(|(option, path)| [(*option).into(), sandbox.path(path).into()]);
        let program = program("reference-master").into_os_string();
        let words: Vec<OsString> =
            self.via.iter().cloned().chain([program]).chain(mounts).chain(self.arguments.clone()).collect();
        Master::start(sandbox, &words, &self.environment)
    }
}

/// A reference master that runs. It is killed when this is dropped; its mounts stay.
pub struct Master {
    process: Process,
    stdin: ChildStdin,
    lines: Receiver<String>,
    pid_inside: Pid,
}

impl Master {
    fn start(sandbox: &Sandbox, words: &[OsString], environment: &[(OsString, OsString)]) -> Result<Self> {
        let mut process = Process::start(sandbox.place(), &words[0], |command| {
            let variables = environment.iter().map(|(name, value)| (name, value));
            command.args(&words[1..]).envs(variables).stdin(Stdio::piped()).stdout(Stdio::piped())
        })?;
        let stdin = process.take_stdin().context("no standard input")?;
        let stdout = process.take_stdout().context("no standard output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || send_lines(stdout, &sender));
        let ready = lines.recv_timeout(DEADLINE);
        match ready.as_deref() {
            Ok("ready") => {}
            said => bail!("the reference master did not become ready: {said:?}"),
        }
        let pid_inside = process.pid_inside()?;
        Ok(Self { process, stdin, lines, pid_inside })
    }

    /// Its pid, as the test sees it.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Its pid in the sandbox.
    pub fn pid_inside(&self) -> Pid {
        self.pid_inside
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Says one line to it.
    pub fn say(&mut self, line: &str) -> Result<()> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).context("speak to the master")
    }

    /// The next line that it says.
    pub fn hear(&mut self, deadline: Duration) -> Result<String> {
        self.lines.recv_timeout(deadline).context("the master says nothing")
    }

    /// What it holds and has counted. A master started with `--single --wait=read` answers only
    /// after the next request.
    pub fn report(&mut self) -> Result<Report> {
        self.say("report")?;
        let line = self.hear(DEADLINE)?;
        serde_json::from_str(&line).with_context(|| format!("the master said '{line}'"))
    }

    /// Has the kernel expire something on its mount at this absolute path. The inner result is the
    /// kernel's: EAGAIN when there was nothing to expire.
    pub fn expire(&mut self, path: &Path) -> Result<Result<(), Errno>> {
        self.say(&format!("expire {}", path.display()))?;
        let line = self.hear(DEADLINE)?;
        let errno = line.rsplit_once(": ").and_then(|(_, errno)| errno.parse().ok());
        match errno.with_context(|| format!("the master said '{line}'"))? {
            0 => Ok(Ok(())),
            errno => Ok(Err(Errno::from_raw(errno))),
        }
    }

    /// Has it answer from now on, where it was started with `--swallow` or `--ignore-requests`.
    pub fn serve(&mut self) -> Result<()> {
        self.change_mood("serve", "serving")
    }

    /// Has it read requests from now on, and not answer.
    pub fn swallow(&mut self) -> Result<()> {
        self.change_mood("swallow", "swallowing")
    }

    fn change_mood(&mut self, order: &str, answer: &str) -> Result<()> {
        self.say(order)?;
        let said = self.hear(DEADLINE)?;
        ensure!(said == answer, "the master said '{said}'");
        Ok(())
    }

    /// Fails when it was disturbed: a hang-up, an interrupted call, an ignored request, an error.
    ///
    /// # Panics
    /// When it was, or does not answer.
    pub fn assert_undisturbed(&mut self) {
        let seen = self.report().expect("a report of the master").counters;
        let calm = Counters { hangups: 0, interrupted: 0, ignored: 0, errors: 0, ..seen };
        assert_eq!(seen, calm, "the master was disturbed");
    }

    /// Kills it with SIGKILL, and waits for its end.
    pub fn kill(mut self) -> Result<End> {
        self.process.kill()
    }
}

fn send_lines(stdout: ChildStdout, sender: &Sender<String>) {
    for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
        if sender.send(line).is_err() {
            return;
        }
    }
}
