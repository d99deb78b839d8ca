//! The run as a whole: the list of stages, and what is undone when one of them fails.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use autofs_cr_common::child::Child;
use autofs_cr_common::cli::{Voice, count};
use autofs_cr_common::doc::{self, Image, Output, Text};
use autofs_cr_common::exit::Exit;
use autofs_cr_common::model::Pid;
use autofs_cr_common::proc::Proc;
use autofs_cr_common::segment::{self, Outcome, Progress};
use autofs_cr_common::sys::autofs::{ControlDevice, DEVICE_PATH, DEVICE_VARIABLE};
use autofs_cr_common::target::open_pidfd;
use autofs_cr_common::threads::both;

use crate::cli::{Arguments, Connect};
use crate::events::{Event, Events};
use crate::live::Masters;
use crate::mounter::{Answer, CHUNK, Launch, Order};
use crate::plan::{Action, Plan, Wishes, plan};
use crate::stage::{Published, announce, publish};
use crate::survey::Survey;
use crate::wait::{End, Waiter, advance};
use crate::worker::{Place, Worker};
use crate::{check, show, signals, survey, undo, verify, walks};

/// Runs the tool.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let voice = Voice::new(crate::TOOL, arguments.verbosity);
    let proc = Proc::open().context("cannot open /proc")?;
    let (Task { image, text, wishes }, survey) = match arguments.undo {
        true => begin_undo(arguments, &proc, voice)?,
        false => begin(arguments, &proc)?,
    };
    let plan = plan(image, &survey.report, &survey.numbers, &survey.parkings, &survey.masters, wishes)?;
    check_walks(arguments, &proc, &survey, &plan)?;
    plan.notes.iter().for_each(|note| voice.note(note));
    voice.detail(show::summary(&plan));
    if arguments.dry_run {
        return print(arguments, &plan);
    }
    let device = open_device()?;
    let out = Output::open(arguments.output.output.as_deref())?;
    signals::block().context("cannot block signals")?;
    let swept = segment::sweep();
    if swept > 0 {
        voice.detail(format_args!("took {} away that a killed restore left", count(swept, "segment")));
    }
    let published = publish(&plan, &survey.masters, arguments.timeout)?;
    let launch = launch(arguments, published.as_ref(), &device)?;
    let place = match (&survey.target, &launch) {
        (Some(target), _) => Place::Of(target, &survey.report),
        (None, Some(launch)) => Place::Fresh(arguments.root.as_deref(), launch),
        (None, None) => bail!("no target and no command"),
    };
    let worker = Worker::start(&plan, &text, &survey.masters, &place, device, arguments.timeout)?;
    let restore = Restore {
        arguments,
        voice,
        plan: &plan,
        masters: &survey.masters,
        deadline: started + arguments.timeout,
    };
    restore.go(&proc, &survey, worker, published.as_ref(), out)
}

/// Reads the image, and looks at what is there. When the image is there, so that what is seen is as new as can be.
fn begin(arguments: &Arguments, proc: &Proc) -> anyhow::Result<(Task, Survey)> {
    let text = Text::read(arguments.input.input.as_deref())?;
    let (image, survey) = match arguments.init {
        true => {
            let image = understand(&text)?;
            let survey = survey::of_fresh(proc, &image)?;
            (image, survey)
        }
        false => {
            // Both take long where there are thousands of mounts.
            let (image, sight) = both(|| understand(&text), || survey::look(proc, target(arguments)));
            let image = image?;
            let survey = survey::of_process(proc, sight?, &image)?;
            (image, survey)
        }
    };
    Ok((Task { image, text: text.bytes, wishes: wishes(arguments) }, survey))
}

fn begin_undo(arguments: &Arguments, proc: &Proc, voice: Voice) -> anyhow::Result<(Task, Survey)> {
    let pid = target(arguments);
    let task = undo::task(proc, pid, voice)?;
    let mut survey = survey::of_process(proc, survey::look(proc, pid)?, &task.image)?;
    undo::narrow(&mut survey, &task.image);
    Ok((task, survey))
}

fn understand(text: &Text) -> anyhow::Result<Image> {
    let image: Image = text.parse()?;
    check::check(&image).context("the image makes no sense")?;
    Ok(image)
}

fn target(arguments: &Arguments) -> Pid {
    arguments.pid.unwrap_or_else(Pid::this)
}

/// What is to be done, from which image.
pub struct Task {
    /// The image.
    pub image: Image,
    /// The image as it was written.
    pub text: Vec<u8>,
    /// What is asked for.
    pub wishes: Wishes,
}

impl Task {
    /// One whose image is not from a file.
    pub fn new(image: Image, wishes: Wishes) -> io::Result<Self> {
        let mut text = Vec::new();
        doc::write(&image, &mut text)?;
        Ok(Self { image, text, wishes })
    }
}

fn wishes(arguments: &Arguments) -> Wishes {
    Wishes {
        replace: arguments.replace,
        fixup_only: arguments.connect == Connect::Fixup,
        identity: arguments.identity.map(Into::into),
        undo: false,
    }
}

fn check_walks(arguments: &Arguments, proc: &Proc, survey: &Survey, plan: &Plan) -> anyhow::Result<()> {
    match (&survey.target, &arguments.root) {
        (Some(target), _) => walks::check(proc, target, plan),
        (None, Some(root)) => walks::check_root(proc, root),
        (None, None) => walks::check_copies(proc),
    }
}

fn print(arguments: &Arguments, plan: &Plan) -> anyhow::Result<Exit> {
    let mut out = Output::open(arguments.output.output.as_deref())?;
    show::plan(plan, &mut out)?;
    out.finish()?;
    Ok(Exit::Done)
}

fn open_device() -> anyhow::Result<ControlDevice> {
    ControlDevice::open().with_context(|| {
        format!("cannot open {DEVICE_PATH} (is autofs in the kernel? try modprobe autofs4; in a container bind it in)")
    })
}

/// The init of the fresh namespace, with what it hands on to the fixups.
fn launch(
    arguments: &Arguments,
    published: Option<&Published>,
    device: &ControlDevice,
) -> anyhow::Result<Option<Launch>> {
    if !arguments.init {
        return Ok(None);
    }
    let command =
        arguments.command.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        let ours = [segment::VARIABLE, DEVICE_VARIABLE].iter().any(|ours| name == *ours);
        if !ours {
            environment.push(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?);
        }
    }
    let mut inherited = Vec::new();
    if let Some(published) = published {
        environment.push(pass_on(segment::VARIABLE, published.segment.as_fd(), &mut inherited)?);
        environment.push(pass_on(DEVICE_VARIABLE, device.as_fd(), &mut inherited)?);
    }
    Ok(Some(Launch { command, environment, inherited }))
}

/// A copy of a descriptor that init inherits, as `NAME=fd:N`.
fn pass_on(
    name: &str,
    fd: std::os::fd::BorrowedFd<'_>,
    inherited: &mut Vec<OwnedFd>,
) -> anyhow::Result<CString> {
    let copy = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
    let text = format!("{name}=fd:{}", copy.as_raw_fd());
    inherited.push(copy);
    Ok(CString::new(text)?)
}

/// A restore whose mounter has been started.
struct Restore<'a> {
    arguments: &'a Arguments,
    voice: Voice,
    plan: &'a Plan,
    masters: &'a Masters,
    deadline: Instant,
}

impl Restore<'_> {
    fn go(
        &self,
        proc: &Proc,
        survey: &Survey,
        worker: Worker,
        published: Option<&Published>,
        out: Output,
    ) -> anyhow::Result<Exit> {
        self.expect_prepared(&worker)?;
        // From here on signals are events, and threads are there: nothing forks any more.
        let events = Events::new()?;
        let staged = self.mount(&worker, published, &events).and_then(|()| {
            // The fixups of a fresh namespace know the segment from their environment, and standard output is
            // for CMD.
            if !self.arguments.init || self.arguments.output.output.is_some() {
                announce(self.plan, self.masters, published, out)?;
            }
            events.check_signal()
        });
        if let Err(error) = staged {
            return Err(self.undone(&worker, published, error));
        }
        if self.arguments.init {
            return self.be_parent(worker, published, &events);
        }
        close_stdout()?;
        let end = self
            .wait(published, Some(&worker), &events)
            .and_then(|end| self.verified(proc, survey, published, end));
        match end {
            Ok(End::Connected) => self.finished(&worker, published),
            Ok(End::Not(why)) if self.arguments.keep_going => self.left(&worker, published, &why),
            Ok(End::Not(why) | End::Broken(why)) => {
                Err(self.undone(&worker, published, anyhow::anyhow!(why)))
            }
            Err(error) => Err(self.undone(&worker, published, error)),
        }
    }

    fn expect_prepared(&self, worker: &Worker) -> anyhow::Result<()> {
        match worker.order(self.plan, &Order::Prepare)? {
            Answer::Prepared => Ok(()),
            other => bail!("the mounter answered {other:?} instead of being prepared"),
        }
    }

    /// Makes all groups that do not wait for a fixup. A signal ends it.
    fn mount(&self, worker: &Worker, published: Option<&Published>, events: &Events) -> anyhow::Result<()> {
        let groups = 0..self.plan.groups.len();
        let now: Vec<usize> =
            groups.filter(|&group| self.needs_work(group) && !self.is_held(group)).collect();
        let progress = self.voice.progress("made", now.len());
        for (number, groups) in now.chunks(CHUNK).enumerate() {
            progress.at(number * CHUNK);
            events.check_signal()?;
            worker.order(self.plan, &Order::Make(groups.to_vec()))?;
            if let Some(published) = published {
                advance(&published.segment, self.plan, &published.items, groups);
            }
        }
        Ok(())
    }

    fn needs_work(&self, group: usize) -> bool {
        let mut items = self.plan.groups[group].iter().map(|&item| &self.plan.items[item]);
        items.any(|item| item.action != Action::Keep || item.is_unsettled())
    }

    fn is_held(&self, group: usize) -> bool {
        self.plan.groups[group].iter().any(|&item| self.plan.items[item].is_held())
    }

    fn wait(
        &self,
        published: Option<&Published>,
        worker: Option<&Worker>,
        events: &Events,
    ) -> anyhow::Result<End> {
        let Some(published) = published else { return Ok(End::Connected) };
        events.watch_segment(Arc::clone(&published.watch))?;
        if let Some(worker) = worker {
            events.watch_child(open_pidfd(worker.pid())?)?;
        }
        for (index, master) in published.watch.masters().iter().enumerate() {
            if let Some(live) = self.masters.live.get(&master.id) {
                events.watch_master(live.pidfd.try_clone().context("cannot copy a descriptor")?, index)?;
            }
        }
        let pending = (0..self.plan.groups.len()).filter(|&group| self.is_held(group)).collect();
        let mut waiter = Waiter {
            plan: self.plan,
            masters: self.masters,
            segment: &published.watch,
            items: &published.items,
            worker,
            events,
            voice: self.voice,
            keep_going: self.arguments.keep_going,
            pending,
            held: Vec::new(),
            watched: Vec::new(),
        };
        waiter.wait(self.deadline)
    }

    /// What fixups say is checked. All else the kernel has said itself, to the mounter.
    fn verified(
        &self,
        proc: &Proc,
        survey: &Survey,
        published: Option<&Published>,
        end: End,
    ) -> anyhow::Result<End> {
        let (End::Connected, Some(target), Some(_)) = (&end, &survey.target, published) else {
            return Ok(end);
        };
        let found =
            verify::read(&proc.process(target.pid())?, self.plan).context("cannot check the result")?;
        let problems = verify::problems(self.plan, self.masters, &found);
        Ok(if problems.is_empty() { end } else { End::Not(problems.join("; ")) })
    }

    fn finished(&self, worker: &Worker, published: Option<&Published>) -> anyhow::Result<Exit> {
        if let Some(Published { segment, .. }) = published {
            segment.finish(Outcome::Finished)?;
        }
        self.clean_up(worker);
        self.voice.note(show::summary(self.plan));
        Ok(Exit::Done)
    }

    fn left(&self, worker: &Worker, published: Option<&Published>, why: &str) -> anyhow::Result<Exit> {
        if let Some(Published { segment, .. }) = published {
            // What is connected stays, so this is no failure that is undone.
            segment.finish(Outcome::Finished)?;
        }
        self.clean_up(worker);
        self.voice.warn(format_args!("{why}; what is connected was left"));
        Ok(Exit::Attention)
    }

    fn clean_up(&self, worker: &Worker) {
        match worker.order(self.plan, &Order::Finish) {
            Ok(Answer::Finished(problems)) => problems.iter().for_each(|problem| self.voice.warn(problem)),
            Ok(other) => self.voice.warn(format_args!("the mounter answered {other:?} at the end")),
            Err(error) => self.voice.warn(format_args!("{error:#}")),
        }
    }

    /// Undoes everything, and gives the error that led to it.
    fn undone(&self, worker: &Worker, published: Option<&Published>, error: anyhow::Error) -> anyhow::Error {
        if let Some(Published { segment, .. }) = published {
            // The error that is reported is the first one.
            let _ = segment.finish(Outcome::Failed);
        }
        if self.arguments.undo {
            return error.context("not all was undone: run the same command again; it failed because");
        }
        match self.undo(worker, &published.map_or(Vec::new(), unconnected)) {
            Ok(problems) if problems.is_empty() => error.context("everything was undone"),
            Ok(problems) => {
                error.context(format!("undone but for this: {}; it was undone because", problems.join("; ")))
            }
            Err(undo) => error.context(format!(
                "it could not be undone ({undo:#}): run the same command again to finish it; it failed because"
            )),
        }
    }

    /// What could not be put back as it was.
    fn undo(&self, worker: &Worker, unconnected: &[usize]) -> anyhow::Result<Vec<String>> {
        for items in unconnected.chunks(CHUNK) {
            worker.order(self.plan, &Order::Unconnected(items.to_vec()))?;
        }
        match worker.order(self.plan, &Order::Undo)? {
            Answer::Undone(problems) => Ok(problems),
            other => bail!("the mounter answered {other:?} instead of undoing"),
        }
    }

    /// Starts the init of the fresh namespace, waits until all is connected, and then for its end.
    fn be_parent(
        &self,
        worker: Worker,
        published: Option<&Published>,
        events: &Events,
    ) -> anyhow::Result<Exit> {
        worker.launch().context("cannot start the init of the fresh namespace")?;
        let mut init = worker.into_child();
        events.watch_child(open_pidfd(init.pid())?)?;
        let end = self.wait(published, None, events)?;
        match end {
            End::Connected => self.voice.note(format_args!("{}; all is connected", show::summary(self.plan))),
            End::Not(why) if self.arguments.keep_going => self.voice.warn(format_args!("{why}; it goes on")),
            End::Not(why) | End::Broken(why) => {
                // With its init all of the fresh namespace goes, and nothing else was made.
                init.kill();
                bail!("{why}; the fresh namespace was ended");
            }
        }
        if let Some(Published { segment, .. }) = published {
            segment.finish(Outcome::Finished)?;
        }
        wait_for_init(&mut init, events)
    }
}

/// Waits for the end of init, and hands signals on to it.
fn wait_for_init(init: &mut Child, events: &Events) -> anyhow::Result<Exit> {
    while let Ok(event) = events.receiver.recv() {
        match event {
            Event::ChildEnded => break,
            Event::Signal(signal) => crate::worker::signal_init(init.pid(), signal)?,
            _ => {}
        }
    }
    let code = init.wait_for_code()?;
    Ok(Exit::Command(code))
}

/// The items whose fixups did not come to an end.
fn unconnected(published: &Published) -> Vec<usize> {
    let items = published.items.iter().enumerate();
    let open =
        items.filter(|(index, _)| !matches!(published.segment.progress(*index), Ok(Progress::Connected)));
    open.map(|(_, &item)| item).collect()
}

/// So that who reads the stage document sees its end.
pub fn close_stdout() -> anyhow::Result<()> {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdout(null)?;
    Ok(())
}
