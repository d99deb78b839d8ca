//! The mounter's process: how it is started, and how restore speaks to it.
//!
//! A process cannot change its own pid namespace, only that of its later children. So there are two
//! forks: one to enter the namespaces, and in it one to be born there.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use autofs_cr_common::channel::{Channel, ChannelError};
use autofs_cr_common::child::Child;
use autofs_cr_common::doc::Report;
use autofs_cr_common::model::Pid;
use autofs_cr_common::power;
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_common::target::Target;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::live::Masters;
use crate::mounter::{Answer, FIRST, Launch, Mounter, Order, Outfit, Progress};
use crate::plan::Plan;

/// How long the mounter may stay at one step. Each takes well below a millisecond, or at most a second where
/// a device number is waited for, but for a path walk onto a mount with a pending request, which never ends.
const MOST_SILENCE: Duration = Duration::from_secs(5);

/// Also with a short timeout the mounter gets this long for a step.
const LEAST_SILENCE: Duration = Duration::from_secs(2);

/// How often the steps of the mounter are looked at while it is waited for.
const LOOK: Duration = Duration::from_millis(200);

/// Where the mounter works.
#[derive(Debug)]
pub enum Place<'a> {
    /// In the namespaces of a process, of whose mounts this is a report.
    Of(&'a Target, &'a Report),
    /// In fresh ones, with this root directory and this init.
    Fresh(Option<&'a Path>, &'a Launch),
}

impl<'a> Place<'a> {
    fn report(&self) -> Option<&'a Report> {
        match self {
            Self::Of(_, report) => Some(report),
            Self::Fresh(..) => None,
        }
    }
}

/// The mounter, as restore sees it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    progress: Progress,
    /// How long it may stay at one step.
    silence: Duration,
    /// The number of the last order.
    number: Cell<u64>,
}

impl Worker {
    /// Starts the mounter, which writes `image` down, and waits until it is in its namespaces. Only while this process has one
    /// thread.
    pub fn start(
        plan: &Plan,
        image: &[u8],
        masters: &Masters,
        place: &Place<'_>,
        device: ControlDevice,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let progress = Progress::new().context("cannot make a memory file")?;
        let report = place.report();
        let outfit = Outfit { image, report, device, proc_dir: open_proc()?, progress: progress.clone() };
        let child = Child::spawn(|channel| enter(plan, masters, place, channel, outfit))
            .context("cannot start a child process")?;
        let worker = Self {
            child,
            progress,
            silence: MOST_SILENCE.min(timeout).max(LEAST_SILENCE),
            number: Cell::new(FIRST),
        };
        match worker.answer(plan)? {
            Answer::Ready => Ok(worker),
            other => bail!("the mounter answered {other:?} when it was started"),
        }
    }

    /// Gives an order, and waits for the answer to it.
    pub fn order(&self, plan: &Plan, order: &Order) -> anyhow::Result<Answer> {
        self.send(order).context("cannot reach the mounter")?;
        match self.answer(plan)? {
            Answer::Failed(why) => bail!(why),
            answer => Ok(answer),
        }
    }

    /// Gives an order that is not answered, as the mounter becomes another program.
    pub fn launch(&self) -> anyhow::Result<()> {
        self.send(&Order::Launch)?;
        match self.child.receive::<(u64, Answer)>(Some(Instant::now() + self.silence)) {
            // The channel is closed by execve.
            Err(ChannelError::Closed) => Ok(()),
            Ok(((_, Answer::Failed(why)), _)) => bail!(why),
            Ok(((_, answer), _)) => bail!("the mounter answered {answer:?} when it was to become init"),
            Err(error) => Err(error.into()),
        }
    }

    fn send(&self, order: &Order) -> Result<(), ChannelError> {
        self.number.set(self.number.get() + 1);
        self.child.send(&(self.number.get(), order), &[])
    }

    /// The process id of the child that stands between restore and the mounter, and ends like it.
    pub fn pid(&self) -> Pid {
        self.child.pid()
    }

    /// The child process: the mounter itself, or the one that waits for it and ends like it.
    pub fn into_child(self) -> Child {
        self.child
    }

    /// Waits for the answer to the last order, as long as the mounter goes on.
    fn answer(&self, plan: &Plan) -> anyhow::Result<Answer> {
        let (mut beats, mut since) = (self.progress.beats(), Instant::now());
        loop {
            match self.child.receive::<(u64, Answer)>(Some(Instant::now() + LOOK)) {
                Ok(((number, answer), _)) if number == self.number.get() => return Ok(answer),
                // It answers an order for which nobody waits any more.
                Ok(_) => {}
                Err(ChannelError::TimedOut) => {}
                Err(ChannelError::Closed) => bail!("the mounter ended{}", self.at(plan)),
                Err(error) => return Err(error).context("cannot hear the mounter"),
            }
            let now = self.progress.beats();
            if now != beats {
                (beats, since) = (now, Instant::now());
            } else if since.elapsed() > self.silence {
                return Err(self.blocked(plan));
            }
        }
    }

    fn blocked(&self, plan: &Plan) -> anyhow::Error {
        anyhow::anyhow!(
            "no answer for {:.0?}{}: a request is probably pending there or on the way, which blocks every walk; \
             autofs-inspect shows who waits, and autofs-fixup --free MOUNTPOINT ends that",
            self.silence,
            self.at(plan)
        )
    }

    fn at(&self, plan: &Plan) -> String {
        let mounts = self.progress.get().and_then(|item| plan.items.get(item)).map(|item| &item.mounts);
        let mount = mounts.and_then(|mounts| plan.image.mounts.get(*mounts.first()?));
        mount.map_or(String::new(), |mount| format!(" at {}", mount.mount_point))
    }
}

fn open_proc() -> anyhow::Result<OwnedFd> {
    Ok(File::open("/proc").context("cannot open /proc")?.into())
}

/// The child: enters the namespaces, and is or starts the mounter there.
fn enter(
    plan: &Plan,
    masters: &Masters,
    place: &Place<'_>,
    channel: Channel,
    outfit: Outfit<'_>,
) -> anyhow::Result<()> {
    // Signals stay blocked here: those for the whole group, as of Ctrl-C, are restore's to answer, which then has this
    // child undo everything.
    if matches!(place, Place::Of(..)) {
        // Who reads the stage document must see its end while the mounter goes on.
        crate::run::close_stdout()?;
    }
    let entered = match place {
        Place::Of(target, _) => target.enter_pids().context("cannot enter the pid namespace"),
        Place::Fresh(..) => unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
            .context("cannot make a mount and a pid namespace"),
    };
    report(&channel, entered)?;
    let mut inner = Child::spawn(|_| {
        let ready =
            settle(place).and_then(|launch| Ok((Mounter::new(plan, masters, &channel, outfit)?, launch)));
        let (mut mounter, launch) = report(&channel, ready)?;
        mounter.serve(launch)
    })?;
    drop(channel);
    end_like(&mut inner)
}

/// Enters the mount namespace and the root, in the process that was born in the pid namespace.
fn settle<'a>(place: &'a Place<'_>) -> anyhow::Result<Option<&'a Launch>> {
    match place {
        Place::Of(target, _) => {
            target.enter_mounts().context("cannot enter the mount namespace")?;
            Ok(None)
        }
        Place::Fresh(root, launch) => {
            crate::mounter::fresh::furnish(*root)?;
            Ok(Some(launch))
        }
    }
}

/// Tells restore of a failure, as the child's own message would be one too many.
fn report<T>(channel: &Channel, result: anyhow::Result<T>) -> anyhow::Result<T> {
    match result {
        Ok(value) => Ok(value),
        Err(error) => {
            channel.send(&(FIRST, Answer::Failed(power::explain(&error))), &[])?;
            autofs_cr_common::sys::process::exit_child(1)
        }
    }
}

/// Ends as the inner child ends.
fn end_like(inner: &mut Child) -> anyhow::Result<()> {
    let code = inner.wait_for_code()?;
    autofs_cr_common::sys::process::exit_child(code)
}

/// Hands a signal on to the init that the child `parent` of restore waits for.
pub fn signal_init(parent: Pid, signal: i32) -> anyhow::Result<()> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let signal = nix::sys::signal::Signal::try_from(signal)?;
    for pid in children.split_whitespace().filter_map(|pid| pid.parse::<Pid>().ok()) {
        match nix::sys::signal::kill(pid.to_nix(), signal) {
            // It has just ended, which is what the signal asks for.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
