//! The engine that runs system calls inside a live process, on processes of our own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use autofs_fixup::remote::{Batch, Data, Error, Session, Stopped};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

const PATIENCE: Duration = Duration::from_secs(20);

/// A number that no other descriptor of the target gets by itself.
const KNOWN_NUMBER: i32 = 50;

const TARGET: &str = env!("CARGO_BIN_EXE_remote-target");

struct Target {
    child: Child,
    /// The target proper, if it is a child of `child`.
    inner: Option<Pid>,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Target {
    /// Starts the target, with descriptor KNOWN_NUMBER open on /dev/null, and waits until it
    /// is in `call` (or, without one, in user space).
    fn start(mode: &str, call: Option<i64>) -> Self {
        Self::start_with(mode, call, "")
    }

    fn start_with(mode: &str, call: Option<i64>, before: &str) -> Self {
        Self::start_script(&format!("{before} exec {TARGET} {mode}"), call)
    }

    /// The script's process has the standard descriptors and KNOWN_NUMBER, and no other.
    fn start_script(script: &str, call: Option<i64>) -> Self {
        let descriptors =
            format!("for n in {{3..200}}; do exec {{n}}>&-; done; exec {KNOWN_NUMBER}</dev/null;");
        let mut child = Command::new("bash")
            .args(["-c", &format!("{descriptors} {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut target = Self { child, inner: None, input, output };
        assert_eq!(target.line(), "ready");
        target.wait_until_in(call);
        target
    }

    fn pid(&self) -> Pid {
        self.inner.unwrap_or(Pid::from_raw(self.child.id() as i32))
    }

    fn pidfd(&self) -> OwnedFd {
        pidfd_open(rustix::process::Pid::from_raw(self.pid().as_raw()).unwrap(), PidfdFlags::empty()).unwrap()
    }

    /// What the target says next, which it has to do in time.
    fn line(&mut self) -> String {
        if self.output.buffer().is_empty() {
            let mut output = [PollFd::new(self.output.get_ref().as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut output, PATIENCE.as_millis() as u16).unwrap();
            assert_eq!(ready, 1, "the target said nothing in {PATIENCE:?}");
        }
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn wait_until_in(&self, call: Option<i64>) {
        let wanted = call.map_or("running".to_owned(), |number| number.to_string());
        wait_for(&format!("the target is in {wanted}"), || {
            let now = fs::read_to_string(format!("/proc/{}/syscall", self.pid())).unwrap();
            now.split_ascii_whitespace().next() == Some(wanted.as_str())
        });
    }

    fn write(&mut self, bytes: &[u8]) {
        self.input.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Descriptor numbers, what they are, and their flags.
    fn descriptors(&self) -> BTreeMap<i32, (PathBuf, String)> {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .filter_map(|entry| {
                let entry = entry.unwrap();
                let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
                // One that was closed since the folder was read is none.
                let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.pid())).ok()?;
                let flags = info.lines().find(|line| line.starts_with("flags"))?.to_owned();
                Some((number, (fs::read_link(entry.path()).ok()?, flags)))
            })
            .collect()
    }

    /// Those that the mode `churn` does not open and close all the time.
    fn lasting_descriptors(&self) -> BTreeMap<i32, (PathBuf, String)> {
        let mut descriptors = self.descriptors();
        descriptors.retain(|_, (path, _)| path.to_str() != Some("/dev/urandom"));
        descriptors
    }

    fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// A whole session that replaces KNOWN_NUMBER by /dev/zero.
fn replace_known_number(target: &Target) {
    let pidfd = target.pidfd();
    let zero = File::open("/dev/zero").unwrap();
    let mut session = Stopped::attach(pidfd.as_fd(), deadline()).unwrap().start(deadline()).unwrap();
    let mut batch = Batch::new();
    let received = batch.receive(zero.as_fd());
    batch.replace(KNOWN_NUMBER, received, true);
    session.run(&batch, deadline()).unwrap();
    session.finish(deadline()).unwrap();
}

/// Runs a session while the target is in `call`, lets the call end, and returns the target's own view.
fn session_during(mode: &str, call: Option<i64>, end: impl FnOnce(&mut Target)) -> String {
    let mut target = Target::start(mode, call);
    let mut expected = target.descriptors();
    replace_known_number(&target);
    // The call is made again; one with a timeout, which is the argument of its mode, may be over already.
    let has_timeout = mode.contains(' ');
    if !has_timeout {
        target.wait_until_in(call);
    }
    let zero = File::open("/dev/zero").unwrap();
    let now = target.descriptors();
    let (path, flags) = &now[&KNOWN_NUMBER];
    assert_eq!(path.to_str(), Some("/dev/zero"));
    assert!(flags.ends_with("02100000"), "read-only, large file, close-on-exec: {flags}");
    expected.insert(KNOWN_NUMBER, (path.clone(), flags.clone()));
    assert_eq!(now, expected);
    drop(zero);
    assert_eq!(target.status("TracerPid"), "0");
    end(&mut target);
    target.line()
}

fn byte(target: &mut Target) {
    target.write(b"x");
}

fn sigusr1(target: &mut Target) {
    target.signal(Signal::SIGUSR1);
}

#[test]
fn a_read_goes_on() {
    let line = session_during("read", Some(libc::SYS_read), byte);
    assert_eq!(line, "result=1 handled=0 changed=");
}

#[test]
fn a_poll_goes_on() {
    assert_eq!(session_during("poll", Some(libc::SYS_poll), byte), "result=1 handled=0 changed=");
    assert_eq!(session_during("ppoll", Some(libc::SYS_ppoll), byte), "result=1 handled=0 changed=");
}

#[test]
fn an_epoll_wait_goes_on() {
    assert_eq!(session_during("epoll", Some(libc::SYS_epoll_wait), byte), "result=1 handled=0 changed=");
    assert_eq!(
        session_during("epoll-pwait", Some(libc::SYS_epoll_pwait), byte),
        "result=1 handled=0 changed="
    );
}

#[test]
fn a_call_with_a_timeout_still_times_out() {
    let nothing = |_: &mut Target| {};
    assert_eq!(
        session_during("poll-timeout 300", Some(libc::SYS_poll), nothing),
        "result=0 handled=0 changed="
    );
    assert_eq!(
        session_during("nanosleep 300", Some(libc::SYS_nanosleep), nothing),
        "result=0 handled=0 changed="
    );
    assert_eq!(
        session_during("futex-timeout 300", Some(libc::SYS_futex), nothing),
        "result=-110 handled=0 changed="
    );
}

#[test]
fn a_call_that_waits_for_a_signal_gets_it() {
    let interrupted = "result=-4 handled=1 changed=";
    assert_eq!(session_during("futex", Some(libc::SYS_futex), sigusr1), interrupted);
    assert_eq!(session_during("sigsuspend", Some(libc::SYS_rt_sigsuspend), sigusr1), interrupted);
}

#[test]
fn a_thread_in_user_space_goes_on_with_its_registers() {
    let line = session_during("spin", None, sigusr1);
    assert_eq!(line, "result=-1 handled=1 changed=");
}

/// What the threads of a target are in: the number of a system call, or `running`.
fn calls_of_threads(target: &Target) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", target.pid())).unwrap();
    let calls =
        threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("syscall")).unwrap_or_default());
    calls.map(|call| call.split(' ').next().unwrap_or_default().trim().to_owned()).collect()
}

#[test]
fn other_threads_go_on_too() {
    let mut target = Target::start("threads", Some(libc::SYS_read));
    // A thread opens what it waits for by itself, so it is not enough that all are there.
    let expected = [libc::SYS_epoll_wait, libc::SYS_epoll_pwait].map(|number| number.to_string());
    wait_for("all threads are at their calls", || {
        let calls = calls_of_threads(&target);
        calls.len() == 10 && expected.iter().all(|number| calls.contains(number))
    });
    let before = target.descriptors().len();
    for _ in 0..20 {
        replace_known_number(&target);
    }
    assert_eq!(target.descriptors().len(), before);
    target.write(b"x");
    let mut lines = BTreeMap::new();
    for _ in 0..10 {
        let line = target.line();
        let (name, result) = line.split_once(' ').unwrap();
        lines.insert(name.to_owned(), result.to_owned());
    }
    let expected = [
        ("main", 1),
        ("read", 1),
        ("poll", 1),
        ("ppoll", 1),
        ("epoll", 1),
        ("epoll-pwait", 1),
        ("nanosleep", 0),
        ("futex-timeout", -110),
        ("poll-timeout", 1),
        ("spin", -1),
    ];
    for (name, result) in expected {
        let line = &lines[name];
        assert!(
            line.starts_with(&format!("result={result} ")) && line.ends_with("changed="),
            "{name}: {line}"
        );
    }
}

#[test]
fn attaching_and_letting_go_changes_nothing() {
    let mut target = Target::start("epoll", Some(libc::SYS_epoll_wait));
    let before = target.descriptors();
    for _ in 0..10 {
        let pidfd = target.pidfd();
        let stopped = Stopped::attach(pidfd.as_fd(), deadline()).unwrap();
        assert!(stopped.room() > 16 * 1024, "{}", stopped.room());
        assert!(stopped.descriptors().unwrap() >= 100);
        drop(stopped);
        target.wait_until_in(Some(libc::SYS_epoll_wait));
    }
    assert_eq!(target.descriptors(), before);
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
}

#[test]
fn a_batch_brings_250_descriptors_and_takes_them_away() {
    let mut target = Target::start("serve", Some(libc::SYS_read));
    let before = target.descriptors();
    let pidfd = target.pidfd();
    let file = File::open("/dev/zero").unwrap();
    let mut session = start(&pidfd);
    for _ in 0..3 {
        let mut batch = Batch::new();
        for _ in 0..250 {
            batch.receive(file.as_fd());
        }
        session.run(&batch, deadline()).unwrap();
        let during = target.descriptors();
        assert_eq!(during.len(), before.len() + 1, "only the socket is left: {during:?}");
    }
    session.finish(deadline()).unwrap();
    assert_eq!(target.descriptors(), before);
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
}

fn start(pidfd: &OwnedFd) -> Session<'_> {
    Stopped::attach(pidfd.as_fd(), deadline()).unwrap().start(deadline()).unwrap()
}

#[test]
fn an_ioctl_gets_its_data_with_the_numbers_in_it() {
    let target = Target::start("serve", Some(libc::SYS_read));
    let pidfd = target.pidfd();
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut session = start(&pidfd);
    let mut batch = Batch::new();
    batch.receive(terminal.slave.as_fd());
    let slave = batch.receive(terminal.slave.as_fd());
    // struct winsize: rows, columns; the number of a descriptor lands in the rows.
    batch.ioctl(slave, libc::TIOCSWINSZ, Data::new([0; 8]).with_number(0, slave));
    session.run(&batch, deadline()).unwrap();
    // The lowest free ones are 3, 4 (the socket pair, one of it closed again), 5.
    let size = window_size(&terminal.slave);
    assert_eq!(size, "5 0");

    let mut batch = Batch::new();
    let slave = batch.receive(terminal.slave.as_fd());
    batch.ioctl(slave, libc::TIOCSWINSZ, Data::new([7, 0, 9, 0, 0, 0, 0, 0]));
    session.run(&batch, deadline()).unwrap();
    assert_eq!(window_size(&terminal.slave), "7 9");
    session.finish(deadline()).unwrap();
}

fn window_size(terminal: &OwnedFd) -> String {
    let output =
        Command::new("stty").arg("size").stdin(terminal.try_clone().unwrap()).output().unwrap().stdout;
    String::from_utf8(output).unwrap().trim().to_owned()
}

/// FIONREAD writes how much is unread, which here is the number of a descriptor that is open already.
fn open_known_number<'fd>(batch: &mut Batch<'fd>, pipe: &'fd OwnedFd) {
    let received = batch.receive(pipe.as_fd());
    batch.open(received, libc::FIONREAD, Data::new((-1i32).to_ne_bytes()), 0);
}

fn pipe_with(bytes: usize) -> (OwnedFd, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    assert_eq!(rustix::io::write(&writer, &vec![0; bytes]).unwrap(), bytes);
    (reader, writer)
}

#[test]
fn what_a_call_opens_comes_to_the_engine_and_is_closed_in_the_process() {
    let mut target = Target::start("serve", Some(libc::SYS_read));
    let mut before = target.descriptors();
    let pidfd = target.pidfd();
    let (reader, _writer) = pipe_with(KNOWN_NUMBER as usize);
    let mut session = start(&pidfd);
    let mut batch = Batch::new();
    // A call that fails, one that opens, and one whose number is none that is open any more.
    let received = batch.receive(reader.as_fd());
    batch.open(received, 0, Data::new((-1i32).to_ne_bytes()), 0);
    open_known_number(&mut batch, &reader);
    open_known_number(&mut batch, &reader);
    let opened = session.run(&batch, deadline()).unwrap();
    let paths = opened.iter().map(|one| {
        let one = one.as_ref()?;
        fs::read_link(format!("/proc/self/fd/{}", one.as_raw_fd())).ok()
    });
    assert_eq!(paths.collect::<Vec<_>>(), [None, Some(PathBuf::from("/dev/null")), None]);
    before.remove(&KNOWN_NUMBER);
    assert_eq!(session.run(&Batch::new(), deadline()).unwrap().len(), 0);
    session.finish(deadline()).unwrap();
    assert_eq!(target.descriptors(), before);
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
}

#[test]
fn batches_that_are_sent_ahead_are_run_and_answered_in_their_order() {
    let mut target = Target::start("serve", Some(libc::SYS_read));
    let mut before = target.descriptors();
    let pidfd = target.pidfd();
    let (reader, _writer) = pipe_with(KNOWN_NUMBER as usize);
    let mut session = start(&pidfd);
    for count in [1, 2] {
        let mut batch = Batch::new();
        (0..count).for_each(|_| open_known_number(&mut batch, &reader));
        assert!(session.send(&batch).unwrap());
    }
    // Only the first finds it open.
    let mut answer = || session.wait(deadline()).unwrap().iter().map(Option::is_some).collect::<Vec<_>>();
    assert_eq!([answer(), answer(), answer()], [vec![true], vec![false; 2], vec![]]);
    before.remove(&KNOWN_NUMBER);

    // One that is not sent ahead waits for those that were.
    let mut batch = Batch::new();
    open_known_number(&mut batch, &reader);
    assert!(session.send(&batch).unwrap());
    assert_eq!(session.run(&Batch::new(), deadline()).unwrap().len(), 0);
    session.finish(deadline()).unwrap();
    assert_eq!(target.descriptors(), before);
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
}

#[test]
fn what_does_not_fit_is_refused_and_the_session_goes_on() {
    let mut target = Target::start_with("serve", Some(libc::SYS_read), "ulimit -n 60;");
    let pidfd = target.pidfd();
    let file = File::open("/dev/zero").unwrap();
    let mut session = start(&pidfd);
    let most = session.descriptors();
    let mut batch = Batch::new();
    for _ in 0..=most {
        batch.receive(file.as_fd());
    }
    assert!(matches!(session.run(&batch, deadline()), Err(Error::NoDescriptors { .. })));
    let mut batch = Batch::new();
    batch.ioctl(autofs_fixup::remote::Descriptor::Number(0), 0, Data::new(vec![0; session.room()]));
    assert!(matches!(session.run(&batch, deadline()), Err(Error::NoRoom { .. })));
    let mut batch = Batch::new();
    for _ in 0..most {
        batch.receive(file.as_fd());
    }
    session.run(&batch, deadline()).unwrap();
    session.finish(deadline()).unwrap();
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
}

#[test]
fn a_session_that_is_dropped_ends_the_chain() {
    let mut target = Target::start("serve", Some(libc::SYS_read));
    let before = target.descriptors();
    let pidfd = target.pidfd();
    drop(start(&pidfd));
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
    assert_eq!(target.descriptors(), before);
}

#[test]
fn a_stopped_process_is_refused_and_stays_stopped() {
    let mut target = Target::start("serve", Some(libc::SYS_read));
    target.signal(Signal::SIGSTOP);
    wait_for("the target is stopped", || target.status("State").starts_with('T'));
    let pidfd = target.pidfd();
    let error = Stopped::attach(pidfd.as_fd(), deadline()).unwrap_err();
    assert!(matches!(error, Error::GroupStopped { .. }), "{error}");
    assert!(target.status("State").starts_with("T (stopped)"));
    target.signal(Signal::SIGCONT);
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
}

#[test]
fn a_traced_process_is_refused_by_its_tracers_number() {
    let target = Target::start("serve", Some(libc::SYS_read));
    ptrace::seize(target.pid(), ptrace::Options::empty()).unwrap();
    let pidfd = target.pidfd();
    let error = Stopped::attach(pidfd.as_fd(), deadline()).unwrap_err();
    assert!(
        matches!(error, Error::Traced { tracer, .. } if tracer == std::process::id() as i32
        || tracer == nix::unistd::gettid().as_raw()),
        "{error}"
    );
}

#[test]
fn a_process_that_is_gone_is_refused() {
    let mut target = Target::start("serve", Some(libc::SYS_read));
    let pidfd = target.pidfd();
    target.child.kill().unwrap();
    target.child.wait().unwrap();
    let error = Stopped::attach(pidfd.as_fd(), deadline()).unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
}

#[test]
fn a_process_that_dies_in_a_session_is_an_error() {
    let mut target = Target::start("serve", Some(libc::SYS_read));
    let pidfd = target.pidfd();
    let mut session = start(&pidfd);
    target.child.kill().unwrap();
    wait_for("the target is dead", || target.status("State").starts_with('Z'));
    let error = session.run(&Batch::new(), deadline()).unwrap_err();
    assert!(matches!(error, Error::Ended { .. } | Error::Gone { .. }), "{error}");
    target.child.wait().unwrap();
}

#[test]
fn a_process_without_free_descriptors_is_refused() {
    let mut target = Target::start_with("serve", Some(libc::SYS_read), "");
    let before = target.descriptors();
    // 0, 1 and 2 are open.
    let limit = Command::new("prlimit").args(["--nofile=3:3", "--pid", &target.pid().to_string()]).status();
    assert!(limit.unwrap().success());
    let pidfd = target.pidfd();
    let error = Stopped::attach(pidfd.as_fd(), deadline()).unwrap().start(deadline()).err().unwrap();
    assert!(matches!(error, Error::NoDescriptors { .. }), "{error}");
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
    assert_eq!(target.descriptors(), before);
}

#[test]
fn a_process_in_another_pid_namespace_is_served() {
    let mut unshare = Target::start_script(
        &format!("exec unshare --pid --fork --kill-child {TARGET} serve"),
        Some(libc::SYS_wait4),
    );
    let outer = unshare.pid();
    let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
    unshare.inner = Some(Pid::from_raw(children.trim().parse().unwrap()));
    unshare.wait_until_in(Some(libc::SYS_read));
    assert!(unshare.status("NSpid").ends_with("\t1"), "{}", unshare.status("NSpid"));
    let count = unshare.descriptors().len();
    replace_known_number(&unshare);
    assert_eq!(unshare.descriptors()[&KNOWN_NUMBER].0.to_str(), Some("/dev/zero"));
    assert_eq!(unshare.descriptors().len(), count);
    byte(&mut unshare);
    assert_eq!(unshare.line(), "result=1 handled=0 changed=");
}

#[test]
fn a_process_whose_filters_forbid_the_calls_is_served() {
    let mut target = Target::start("filtered", Some(libc::SYS_read));
    assert_eq!(target.status("Seccomp"), "2");
    let count = target.descriptors().len();
    replace_known_number(&target);
    assert_eq!(target.status("TracerPid"), "0");
    assert_eq!(target.descriptors()[&KNOWN_NUMBER].0.to_str(), Some("/dev/zero"));
    assert_eq!(target.descriptors().len(), count);
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
    let pidfd = target.pidfd();
    drop(start(&pidfd));
    assert_eq!(target.status("TracerPid"), "0");
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
}

/// Why the engine does not work on a target; it must be as before.
#[track_caller]
fn refused(mode: &str) -> String {
    let mut target = Target::start(mode, Some(libc::SYS_read));
    let before = target.descriptors();
    let pidfd = target.pidfd();
    let error = Stopped::attach(pidfd.as_fd(), deadline()).unwrap_err();
    assert_eq!(target.status("TracerPid"), "0");
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
    assert_eq!(target.descriptors(), before);
    error.to_string()
}

#[test]
fn a_process_whose_filters_would_end_it_is_refused_by_the_name_of_the_call() {
    let why = refused("filtered-deadly");
    assert!(why.ends_with("has seccomp filters that may end the process for process_vm_readv"), "{why}");
    let why = refused("filtered-strict");
    assert!(why.ends_with("has seccomp filters that may end the process for process_vm_readv"), "{why}");
    let why = refused("filtered-vital");
    assert!(why.ends_with("has seccomp filters that refuse close"), "{why}");
}

#[test]
fn a_call_that_the_filters_refuse_is_named_before_it_is_made() {
    let mut target = Target::start("filtered-dup3", Some(libc::SYS_read));
    let before = target.descriptors();
    let pidfd = target.pidfd();
    let zero = File::open("/dev/zero").unwrap();
    let mut session = start(&pidfd);
    let mut batch = Batch::new();
    let received = batch.receive(zero.as_fd());
    batch.replace(KNOWN_NUMBER, received, true);
    let error = session.run(&batch, deadline()).unwrap_err();
    assert!(matches!(error, Error::Filtered { call: "dup3", .. }), "{error}");
    session.finish(deadline()).unwrap();
    assert_eq!(target.descriptors(), before);
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
}

#[test]
fn the_engine_can_be_killed_at_any_instant_in_a_process_with_filters() {
    kill_everywhere("filtered");
    kill_everywhere("filtered-fitting");
}

#[test]
fn a_signal_that_comes_in_a_session_is_delivered_at_its_end() {
    let mut target = Target::start("ppoll", Some(libc::SYS_ppoll));
    let pidfd = target.pidfd();
    let mut session = start(&pidfd);
    target.signal(Signal::SIGUSR1);
    session.run(&Batch::new(), deadline()).unwrap();
    session.finish(deadline()).unwrap();
    assert_eq!(target.line(), "result=-4 handled=1 changed=");
}

#[test]
fn a_handler_that_is_due_every_millisecond_runs_between_sessions() {
    let mut target = Target::start("timer", Some(libc::SYS_read));
    let before = target.lasting_descriptors();
    for _ in 0..100 {
        replace_known_number(&target);
    }
    byte(&mut target);
    let line = target.line();
    assert!(line.starts_with("result=1 handled=") && line.ends_with(" changed="), "{line}");
    assert_eq!(target.descriptors().len(), before.len());
}

#[test]
fn a_signal_that_only_the_call_lets_in_ends_the_call() {
    // SIGUSR2 is blocked but for the time of the call, and has the default action.
    let mut target = Target::start("sigsuspend", Some(libc::SYS_rt_sigsuspend));
    let pidfd = target.pidfd();
    let session = start(&pidfd);
    target.signal(Signal::SIGUSR2);
    session.finish(deadline()).unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(target.child.wait().unwrap().signal(), Some(libc::SIGUSR2));
}

#[test]
fn a_process_that_is_stopped_in_a_session_goes_on_when_it_is_continued() {
    let mut target = Target::start("serve", Some(libc::SYS_read));
    let before = target.descriptors();
    let pidfd = target.pidfd();
    let mut session = start(&pidfd);
    target.signal(Signal::SIGSTOP);
    wait_for("the target is stopped", || target.status("State").starts_with('T'));
    let soon = Instant::now() + Duration::from_millis(50);
    let error = session.run(&Batch::new(), soon).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    drop(session);
    target.signal(Signal::SIGCONT);
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
    assert_eq!(target.descriptors(), before);
}

#[test]
fn an_engine_that_comes_while_another_is_at_work_waits_for_its_end() {
    let mut target = Target::start("serve", Some(libc::SYS_read));
    let before = target.descriptors();
    let pidfd = target.pidfd();
    let mut first = start(&pidfd);
    let attach = |time| {
        let pidfd = target.pidfd();
        // ptrace knows threads: this one is another engine.
        std::thread::spawn(move || {
            let deadline = Instant::now() + time;
            Stopped::attach(pidfd.as_fd(), deadline)?.start(deadline)?.finish(deadline)
        })
    };
    let refused = attach(Duration::from_millis(50)).join().unwrap().unwrap_err();
    assert!(matches!(refused, Error::Busy { .. }), "{refused}");
    let second = attach(PATIENCE);
    let mut batch = Batch::new();
    let null = File::open("/dev/null").unwrap();
    for _ in 0..50 {
        batch.receive(null.as_fd());
    }
    for _ in 0..50 {
        first.run(&batch, deadline()).unwrap();
    }
    first.finish(deadline()).unwrap();
    second.join().unwrap().unwrap();
    byte(&mut target);
    assert_eq!(target.line(), "result=1 handled=0 changed=");
    assert_eq!(target.descriptors(), before);
}

#[test]
fn a_thread_that_does_not_stop_is_named_and_everything_is_let_go() {
    // The parent of a vfork sleeps where no signal but SIGKILL reaches it.
    let mut target = Target::start("vfork", Some(libc::SYS_vfork));
    let pid = target.pid();
    let error = std::thread::spawn({
        let pidfd = target.pidfd();
        move || Stopped::attach(pidfd.as_fd(), Instant::now() + Duration::from_millis(50)).unwrap_err()
    })
    .join()
    .unwrap();
    assert!(matches!(error, Error::Unstoppable { tid, .. } if tid == pid.as_raw()), "{error}");
    wait_for("the kernel detached it", || target.status("TracerPid") == "0");
    byte(&mut target);
    assert_eq!(target.line(), "child ended");
}

/// The threads of a target that are not held, and have not ended.
fn threads_at_large(target: &Target) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", target.pid())).unwrap();
    let status = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).unwrap_or_default();
    let state = |status: String| {
        status.lines().find_map(|line| line.strip_prefix("State:")).map(|state| state.trim().to_owned())
    };
    let states = threads.filter_map(|thread| state(status(thread.ok()?)));
    states.filter(|state| !["t", "Z", "X"].iter().any(|held| state.starts_with(held))).collect()
}

#[test]
fn threads_that_replace_each_other_are_all_held_or_the_process_is_refused() {
    let mut target = Target::start("relay", Some(libc::SYS_read));
    let pidfd = target.pidfd();
    let mut held = 0;
    for _ in 0..300 {
        match Stopped::attach(pidfd.as_fd(), Instant::now() + Duration::from_secs(1)) {
            Ok(_stopped) => {
                assert_eq!(threads_at_large(&target), [""; 0]);
                held += 1;
            }
            Err(Error::Timeout { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(held > 0);
    assert_eq!(target.status("TracerPid"), "0");
    byte(&mut target);
}

/// Kills the engine after each of its system calls, and before each: the target must go on as if nothing
/// had been, or with the work done.
#[test]
fn the_engine_can_be_killed_at_any_instant() {
    kill_everywhere("serve");
}

/// The same while other threads take every descriptor number that becomes free.
#[test]
fn the_engine_can_be_killed_at_any_instant_in_a_busy_process() {
    kill_everywhere("churn");
}

fn kill_everywhere(mode: &str) {
    let mut target = Target::start(mode, Some(libc::SYS_read));
    let before = target.lasting_descriptors();
    let (mut undone, mut done) = (0, 0);
    let files = ["/dev/zero", "/dev/full"];
    for steps in 0.. {
        let file = files[steps % 2];
        let killed = drive_and_kill(&target, file, steps);
        byte(&mut target);
        assert_eq!(target.line(), "result=1 handled=0 changed=", "killed after {steps} stops");
        assert_eq!(target.status("TracerPid"), "0");
        let mut now = target.lasting_descriptors();
        let known = now.insert(KNOWN_NUMBER, before[&KNOWN_NUMBER].clone()).unwrap().0;
        assert_eq!(now, before, "killed after {steps} stops");
        *if known.to_str() == Some(file) { &mut done } else { &mut undone } += 1;
        target.wait_until_in(Some(libc::SYS_read));
        if !killed {
            assert_eq!(known.to_str(), Some(file));
            break;
        }
    }
    println!("killed {undone} times before and {done} times after the work was done");
    assert!(undone > 100 && done > 10, "{undone} {done}");
}

/// Runs the driver up to its stop number `steps` (entries and exits of system calls), kills it there;
/// false if it ended by itself before.
// It is waited for: either here, or by the waitpid that saw it exit.
#[allow(clippy::zombie_processes)]
fn drive_and_kill(target: &Target, file: &str, steps: usize) -> bool {
    let mut driver = Command::new(env!("CARGO_BIN_EXE_remote-driver"))
        .args([target.pid().to_string(), KNOWN_NUMBER.to_string(), file.to_owned()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(driver.id() as i32);
    let reading = format!("{} 0x0", libc::SYS_read);
    wait_for("the driver waits for its byte", || {
        fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap().starts_with(&reading)
    });
    ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    driver.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let mut left = steps;
    loop {
        if left == 0 {
            driver.kill().unwrap();
            driver.wait().unwrap();
            return true;
        }
        ptrace::syscall(pid, None).unwrap();
        match waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::PtraceSyscall(_) => left -= 1,
            WaitStatus::Exited(_, code) => {
                assert_eq!(code, 0);
                return false;
            }
            WaitStatus::Stopped(_, signal) => {
                // SIGCHLD for each stop of the target.
                assert_eq!(signal, Signal::SIGCHLD);
            }
            _ => {}
        }
    }
}
