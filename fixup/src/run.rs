//! The run as a whole, and which masters it is about.

use std::path::Path;

use anyhow::{Context, bail};
use autofs_cr_common::cli::{Voice, count};
use autofs_cr_common::doc::{self, Stage};
use autofs_cr_common::exit::Exit;
use autofs_cr_common::model::Pid;
use autofs_cr_common::segment::{Master, Segment};
use autofs_cr_common::target::open_pidfd;

use crate::cli::Arguments;
use crate::side_by_side::{self, Summary};
use crate::source::Source;
use crate::{TOOL, device, exec, free, live, show};

/// Runs the tool.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    match (arguments.exec, arguments.free, arguments.pid) {
        (true, _, _) => exec::run(arguments),
        (_, true, _) => free::run(arguments),
        (_, _, Some(pid)) => one(arguments, pid),
        (_, _, None) => all(arguments),
    }
}

/// Every master of the stage document.
fn all(arguments: &Arguments) -> anyhow::Result<Exit> {
    let voice = Voice::new(TOOL, arguments.verbosity);
    let Some((source, ids)) = of_document(arguments.input.input.as_deref())? else {
        voice.note("nothing to do: no master waits for a fixup");
        return Ok(Exit::Done);
    };
    let segment = source.open()?;
    let masters = ids.iter().map(|id| index_of(&segment, id)).collect::<anyhow::Result<Vec<_>>>()?;
    let (live, absent): (Vec<usize>, Vec<usize>) =
        masters.into_iter().partition(|&master| segment.masters()[master].process.is_some());
    let exit = connect(arguments, &segment, &live)?;
    for &master in &absent {
        voice.warn(show::absent(&segment, master, source.name().as_deref()));
    }
    Ok(if absent.is_empty() || exit != Exit::Done { exit } else { Exit::Attention })
}

/// The segment and the ids of the masters that a stage document names; `None` if there is nothing to do.
fn of_document(path: Option<&Path>) -> anyhow::Result<Option<(Source, Vec<String>)>> {
    let stage: Stage = doc::read(path)?;
    let ids: Vec<String> = stage.masters.into_iter().map(|master| master.id).collect();
    match stage.segment {
        None if ids.is_empty() => Ok(None),
        None => bail!("the stage document names masters and no segment"),
        Some(_) if ids.is_empty() => Ok(None),
        Some(address) => Ok(Some((Source::Address(address), ids))),
    }
}

fn index_of(segment: &Segment, id: &str) -> anyhow::Result<usize> {
    segment.master_index(id).with_context(|| {
        format!("the stage document names master {}, which the segment does not have", show::quoted(id))
    })
}

/// The segment for --pid and --exec: from the document that is named, else from the environment, else
/// from standard input.
pub fn source(arguments: &Arguments) -> anyhow::Result<Source> {
    if arguments.input.input.is_none() {
        if let Some(source) = Source::of_environment()? {
            return Ok(source);
        }
        if arguments.exec {
            bail!("no segment: set {} or give a stage document with -i", autofs_cr_common::segment::VARIABLE);
        }
    }
    let found = of_document(arguments.input.input.as_deref())?;
    found.map(|(source, _)| source).context("the stage document has no segment: no master waits for a fixup")
}

/// Only one master.
fn one(arguments: &Arguments, pid: Pid) -> anyhow::Result<Exit> {
    let source = source(arguments)?;
    let segment = source.open()?;
    let is_it = |master: &Master| live::find(master).is_ok_and(|process| process.pid() == pid);
    match segment.masters().iter().position(is_it) {
        Some(master) => connect(arguments, &segment, &[master]),
        None if pid == Pid::this() => bail!("process {pid} is this process itself"),
        None if open_pidfd(pid).is_err() => bail!("process {pid} does not exist, or is a thread only"),
        None if live::has_ended(pid) => bail!("process {pid} has ended"),
        None => bail!("process {pid} is no master of this segment; {}", show::masters(&segment)),
    }
}

/// Connects live masters.
fn connect(arguments: &Arguments, segment: &Segment, masters: &[usize]) -> anyhow::Result<Exit> {
    if arguments.dry_run {
        masters.iter().for_each(|&master| print!("{}", show::plan(segment, master)));
        return Ok(Exit::Done);
    }
    if masters.is_empty() {
        return Ok(Exit::Done);
    }
    let voice = Voice::new(TOOL, arguments.verbosity);
    let device = device::open()?;
    let work = side_by_side::Work { segment, device: &device, timeout: arguments.timeout, voice };
    let Summary { connected, masters: done, failed } = work.run(masters)?;
    if failed {
        let all: usize = masters.iter().map(|&master| segment.superblocks_of(master).count()).sum();
        voice.note(format_args!("connected {connected} of {}", count(all, "mount")));
    } else {
        let (mounts, masters) = (count(connected, "mount"), count(done, "master"));
        voice.note(format_args!("connected {mounts} of {masters}"));
    }
    Ok(if failed { Exit::Failed } else { Exit::Done })
}
