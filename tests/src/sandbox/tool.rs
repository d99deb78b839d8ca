//! Running the tools, and any other command, with a deadline and checks that tell all.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use autofs_cr_common::model::Pid;

use super::process::{Place, Process};
use super::{DEADLINE, End, Inside, program};

/// The four tools.
pub struct Tool;

impl Tool {
    /// `autofs-inspect`.
    pub fn inspect() -> TestCommand {
        TestCommand::new(program("autofs-inspect"))
    }

    /// `autofs-dump`.
    pub fn dump() -> TestCommand {
        TestCommand::new(program("autofs-dump"))
    }

    /// `autofs-restore`.
    pub fn restore() -> TestCommand {
        TestCommand::new(program("autofs-restore"))
    }

    /// `autofs-fixup`.
    pub fn fixup() -> TestCommand {
        TestCommand::new(program("autofs-fixup"))
    }
}

/// A command to be run, outside of all sandboxes unless [`TestCommand::inside`] says otherwise.
#[derive(Debug)]
pub struct TestCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Option<Vec<u8>>,
    deadline: Duration,
    place: Place,
    about: Option<Pid>,
}

impl TestCommand {
    /// A program by its path, or by its name in PATH.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            input: None,
            deadline: DEADLINE,
            place: Place::default(),
            about: None,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Adds `-p PID` of the init of a sandbox or a machine, and shows its mounts when a check fails.
    pub fn target(self, inside: &Inside) -> Self {
        self.arg("-p").arg(inside.pid().to_string()).about(inside)
    }

    /// Shows the mounts there when a check fails.
    pub fn about(mut self, inside: &Inside) -> Self {
        self.about = Some(inside.pid());
        self
    }

    /// Runs it in the namespaces of a sandbox or a machine.
    pub fn inside(mut self, inside: &Inside) -> Self {
        self.place.enter = Some(inside.pid());
        self.about(inside)
    }

    /// Starts it by another program, that is given its command line and must exec it.
    pub fn via(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let mut words: Vec<OsString> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        words.push(std::mem::take(&mut self.program).into_os_string());
        words.append(&mut self.arguments);
        self.program = words.remove(0).into();
        self.arguments = words;
        self
    }

    /// With a limit of descriptors that it cannot raise.
    pub fn most_descriptors(self, limit: usize) -> Self {
        self.limited(&format!("--nofile={limit}:{limit}"))
    }

    /// With a limit as prlimit(1) sets it, that it cannot raise.
    pub fn limited(self, limit: &str) -> Self {
        self.via(["setpriv", "--bounding-set=-sys_resource", "prlimit", limit])
    }

    /// Runs it as another user.
    pub fn user(mut self, uid: u32) -> Self {
        self.place.uid = Some(uid);
        self
    }

    /// Does not let it begin until [`step`](crate::stepper::step) does.
    pub fn held(mut self) -> Self {
        self.place.held = true;
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What it reads from standard input; without it, nothing.
    pub fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.input = Some(text.into());
        self
    }

    /// How long it may take; it is killed then.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it, and does not wait.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(self) -> Running {
        let input = if self.input.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut running = self.start(input);
        running.process.collect_output();
        running
    }

    /// Runs it to its end. A deadline that passes is an end too, that no check accepts.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(self) -> Finished {
        self.spawn().finish()
    }

    /// Runs it with its standard output piped into the next command, as a shell does:
    /// `restore.pipe(fixup)` gives the ends of both.
    ///
    /// # Panics
    /// When one of them cannot be started.
    pub fn pipe(self, next: Self) -> (Finished, Finished) {
        let (first, second) = self.spawn_pipe(next);
        let second = second.finish();
        (first.finish(), second)
    }

    /// Starts it with its standard output piped into the next command.
    ///
    /// # Panics
    /// When one of them cannot be started.
    pub fn spawn_pipe(self, next: Self) -> (Running, Running) {
        let input = if self.input.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut first = self.start(input);
        let between = first.process.take_stdout().expect("the output of the first command");
        first.process.collect_output();
        let mut second = next.start(Stdio::from(between));
        second.process.collect_output();
        (first, second)
    }

    fn start(self, input: Stdio) -> Running {
        let process = Process::start(self.place, self.program.as_os_str(), |command| {
            command
                .args(&self.arguments)
                .envs(self.environment.iter().map(|(name, value)| (name, value)))
                .stdin(input)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
        });
        let mut process = process.unwrap_or_else(|error| panic!("start {self}: {error:#}"));
        let line = self.to_string();
        if let (Some(text), Some(mut stdin)) = (self.input, process.take_stdin()) {
            // From a thread, as the program may write before it has read all; one that does not
            // want its input is fine.
            std::thread::spawn(move || drop(stdin.write_all(&text)));
        }
        Running { process, line, deadline: self.deadline, about: self.about }
    }
}

impl fmt::Display for TestCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {}", argument.to_string_lossy()))
    }
}

/// A command that runs. It is killed when this is dropped.
pub struct Running {
    process: Process,
    line: String,
    deadline: Duration,
    about: Option<Pid>,
}

impl Running {
    /// Its process: pid, signals, kill.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for its end, and kills it when its deadline has passed.
    pub fn finish(mut self) -> Finished {
        let end = self.process.wait(self.deadline).unwrap_or_else(|error| panic!("{}: {error:#}", self.line));
        if end.is_none() {
            let _ = self.process.kill();
        }
        let (stdout, stderr) = self.process.output();
        Finished { line: self.line, end, stdout, stderr, about: self.about }
    }
}

/// What came of a command. The checks return it, so that they can be chained.
#[derive(Debug)]
pub struct Finished {
    line: String,
    /// How it ended; `None` when its deadline passed.
    pub end: Option<End>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    about: Option<Pid>,
}

impl Finished {
    /// Fails unless it exited with 0.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn assert_success(self) -> Self {
        self.assert_code(0)
    }

    /// Fails unless it exited with this code.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn assert_code(self, code: i32) -> Self {
        let exited = self.end == Some(End::Exit(code));
        self.check(exited, &format!("expected exit code {code}"))
    }

    /// Fails unless standard error has this text.
    ///
    /// # Panics
    /// When it has not.
    #[track_caller]
    pub fn assert_stderr_contains(self, text: &str) -> Self {
        let found = self.stderr.contains(text);
        self.check(found, &format!("expected '{text}' on standard error"))
    }

    /// Fails unless standard output has this text.
    ///
    /// # Panics
    /// When it has not.
    #[track_caller]
    pub fn assert_stdout_contains(self, text: &str) -> Self {
        let found = self.stdout.contains(text);
        self.check(found, &format!("expected '{text}' on standard output"))
    }

    /// Fails, telling everything, unless `holds`.
    ///
    /// # Panics
    /// When it does not hold.
    #[track_caller]
    pub fn check(self, holds: bool, what: &str) -> Self {
        assert!(holds, "{what}\n{self}");
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "command: {}", self.line)?;
        match self.end {
            Some(end) => writeln!(f, "end: {end:?}")?,
            None => writeln!(f, "end: killed, as its deadline had passed")?,
        }
        writeln!(f, "standard output:\n{}\nstandard error:\n{}", self.stdout, self.stderr)?;
        let mounts = self.about.map(|pid| super::inside::mountinfo(pid).unwrap_or_else(|| "gone".into()));
        mounts.map_or(Ok(()), |mounts| writeln!(f, "mountinfo of the sandbox:\n{mounts}"))
    }
}
