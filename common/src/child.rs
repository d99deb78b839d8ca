//! Steps that may block, run in a child process: it can be killed when a deadline passes, where a
//! thread could not. SIGKILL also ends a wait on an autofs mount, but for the end of an expire.

use std::io;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::channel::Channel;
use crate::cli::say;
use crate::model::Pid;
use crate::sys::process::{Fork, exit_child, fork};

/// What a child calls itself where it can only speak to people.
const NAME: &str = "autofs-cr child";

/// How long a child that was killed is waited for. It takes some microseconds.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// A child process and the channel to it. It is killed and reaped when dropped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    channel: Channel,
    reaped: bool,
}

impl Child {
    /// Forks a child that runs `work` and then ends, with code 0 if that is `Ok`. It dies with this
    /// process. Only for a process with one thread.
    pub fn spawn(work: impl FnOnce(Channel) -> anyhow::Result<()>) -> io::Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        let parent = Pid::this();
        match fork()? {
            Fork::Parent(pid) => Ok(Self { pid, channel: ours, reaped: false }),
            Fork::Child => {
                drop(ours);
                exit_child(run(parent, || work(theirs)))
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills and reaps it. One that waits for the end of an autofs expire dies only with that: it is not
    /// waited for, and does nothing more.
    pub fn kill(&mut self) {
        if !self.reaped {
            // It is our child and not reaped, so the id cannot be another's.
            let _ = kill(self.pid.to_nix(), Signal::SIGKILL);
            self.wait_for_death();
        }
    }

    /// There is no event with a deadline for this that a library could use.
    fn wait_for_death(&mut self) {
        let deadline = Instant::now() + LAST_PATIENCE;
        let mut pause = Duration::from_micros(20);
        while !self.has_ended() && Instant::now() < deadline {
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }

    /// Waits for its end: `true` if its work was `Ok`. Only for a child that is sure to end.
    pub fn wait(&mut self) -> io::Result<bool> {
        Ok(self.wait_for_code()? == 0)
    }

    /// Waits for its end: the code that it gave, or 128 and the signal that ended it, as shells have it.
    pub fn wait_for_code(&mut self) -> io::Result<u8> {
        loop {
            match waitpid(self.pid.to_nix(), None) {
                Ok(WaitStatus::Exited(_, code)) => {
                    self.reaped = true;
                    return Ok(code as u8);
                }
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    self.reaped = true;
                    return Ok(128 + signal as u8);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether it has ended; reaps it if so.
    pub fn has_ended(&mut self) -> bool {
        if !self.reaped {
            let status = waitpid(self.pid.to_nix(), Some(WaitPidFlag::WNOHANG));
            self.reaped = !matches!(status, Ok(WaitStatus::StillAlive) | Err(Errno::EINTR));
        }
        self.reaped
    }
}

impl Deref for Child {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a forked child does around its work: a code for the end, whatever happens.
fn run(parent: Pid, work: impl FnOnce() -> anyhow::Result<()>) -> u8 {
    if let Err(error) = die_with(parent) {
        say(NAME, format_args!("cannot bind its life to its parent's: {error}"));
        return 1;
    }
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            say(NAME, format_args!("{error:#}"));
            1
        }
        Err(_) => 101,
    }
}

/// Arranges that this process is killed when its parent dies.
pub fn die_with(parent: Pid) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the call; then nothing would come any more. Its id is not
    // visible from a fresh pid namespace, where getppid gives 0.
    match Pid::from_nix(nix::unistd::getppid()) {
        Some(now) if now != parent => Err(Errno::ESRCH.into()),
        _ => Ok(()),
    }
}

/// Sends `request` to a child and waits for the answer.
pub fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
    child: &Child,
    request: &Q,
    deadline: Option<Instant>,
) -> Result<A, crate::channel::ChannelError> {
    child.send(request, &[])?;
    child.receive(deadline).map(|(answer, _)| answer)
}
