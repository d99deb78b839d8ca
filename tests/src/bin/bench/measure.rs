//! One run of a tool. The process between the benchmark and the tool is small, as the kernel counts the
//! peak memory of who starts a program towards that of the program (execve(2) keeps it); and the tool is
//! its only child, so that what getrusage(2) says of children is said of the tool.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{ClockId, clock_gettime};

use crate::cli::MeasureOrder;

/// How long a tool may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// A time of CLOCK_MONOTONIC, that processes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// This one.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// The time from `earlier` to this.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What a run of a tool took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub start: Moment,
    pub end: Moment,
    /// The peak memory of the tool, or of that of its children with more, in KiB.
    pub memory: u64,
}

impl Measured {
    /// Its time.
    pub fn time(&self) -> Duration {
        self.end.since(self.start)
    }
}

/// The subcommand: runs the command, and prints when it started, when it closed its standard output,
/// when it ended, its peak memory and its code.
pub fn run(order: &MeasureOrder) -> Result<()> {
    let stderr = File::create(&order.stderr).context("make the file for standard error")?;
    let stdout = match order.stdout {
        Some(_) => Stdio::piped(),
        None => Stdio::null(),
    };
    let mut command = Command::new(&order.words[0]);
    command.args(&order.words[1..]).stdout(stdout).stderr(stderr);
    let start = Moment::now();
    let mut child = command.spawn().with_context(|| format!("start {}", order.words[0].to_string_lossy()))?;
    let closed = match (&order.stdout, child.stdout.take()) {
        (Some(path), Some(output)) => copy(output, path)?,
        _ => start,
    };
    println!("closed {} {}", start.0, closed.0);
    watch(&mut child)?;
    let status = child.wait().context("wait for the command")?;
    let end = Moment::now();
    let memory = getrusage(UsageWho::RUSAGE_CHILDREN).context("read the peak memory")?.max_rss();
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    println!("end {} {memory} {code}", end.0);
    Ok(())
}

/// Reads all of the output, and gives the moment at which it ended.
fn copy(mut output: ChildStdout, path: &PathBuf) -> Result<Moment> {
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).context("read the output")?;
    let closed = Moment::now();
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))?;
    Ok(closed)
}

/// Waits for the end of the command, and ends it when its time or the benchmark is over.
fn watch(child: &mut Child) -> Result<()> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("open a pidfd")?;
    let stdout = std::io::stdout();
    // A pipe without a reader reports an error, which needs no asking.
    let mut fds =
        [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let timeout = PollTimeout::try_from(DEADLINE).unwrap_or(PollTimeout::MAX);
    nix::poll::poll(&mut fds, timeout).context("wait for the command")?;
    if fds[0].any() != Some(true) {
        child.kill().context("end the command")?;
    }
    Ok(())
}

/// A tool to be run.
pub struct Run {
    words: Vec<OsString>,
    output: Option<PathBuf>,
    errors: PathBuf,
}

impl Run {
    /// One with these words, whose standard error is kept in a file of this directory.
    pub fn new(scratch: &std::path::Path, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let words = words.into_iter().map(Into::into).collect();
        Self { words, output: None, errors: scratch.join("errors") }
    }

    /// Keeps its standard output in a file.
    pub fn output(mut self, path: impl Into<PathBuf>) -> Self {
        self.output = Some(path.into());
        self
    }

    /// Keeps its standard error in another file, as it runs beside another tool.
    pub fn errors(mut self, path: impl Into<PathBuf>) -> Self {
        self.errors = path.into();
        self
    }

    /// Runs it to its end.
    pub fn finish(self) -> Result<Measured> {
        self.start()?.finish()
    }

    /// Starts it, and waits until it has closed its standard output.
    pub fn start(self) -> Result<Started> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.arg("measure").arg("--stderr").arg(&self.errors);
        if let Some(output) = &self.output {
            command.arg("--stdout").arg(output);
        }
        command.arg("--").args(&self.words);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start this program again")?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        lines.read_line(&mut line).context("hear from a run")?;
        let [start, closed] = numbers(&line, "closed")?;
        Ok(Started { run: self, child, lines, start: Moment(start), closed: Moment(closed) })
    }
}

/// A tool that runs.
pub struct Started {
    run: Run,
    child: Child,
    lines: BufReader<ChildStdout>,
    pub start: Moment,
    pub closed: Moment,
}

impl Started {
    /// Waits for its end. Fails where the tool failed.
    pub fn finish(mut self) -> Result<Measured> {
        let mut line = String::new();
        self.lines.read_line(&mut line).context("hear from a run")?;
        self.child.wait().context("wait for a run")?;
        let [end, memory, code] = numbers(&line, "end")?;
        if code != 0 {
            bail!("{}", self.run.failure(code));
        }
        Ok(Measured { start: self.start, end: Moment(end), memory })
    }
}

impl Run {
    fn failure(&self, code: u64) -> String {
        let errors = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let name = std::path::Path::new(&self.words[0]).file_name().unwrap_or_default();
        let said = errors.lines().next_back().unwrap_or("it said nothing");
        format!("{} ended with code {code}: {said}", name.to_string_lossy())
    }
}

fn numbers<const N: usize>(line: &str, name: &str) -> Result<[u64; N]> {
    let mut words = line.split_whitespace();
    ensure!(words.next() == Some(name), "a run said '{}' in place of '{name}'", line.trim_end());
    let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>()?;
    <[u64; N]>::try_from(numbers).map_err(|_| anyhow::anyhow!("a run said '{}'", line.trim_end()))
}

/// Says one line to the benchmark at once.
pub fn say(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("speak to the benchmark")
}
