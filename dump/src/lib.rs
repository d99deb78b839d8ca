//! Write the autofs mounts of a mount namespace to an image.
//!
//! | stage | file |
//! |---|---|
//! | 1. a report, read or scanned, and the process whose namespaces it is about | `collect.rs`, `sound.rs` |
//! | 2. which mounts of it are dumped | `select.rs` |
//! | 3. what cannot be restored is refused, before anything is touched | `refuse.rs` |
//! | 4. process groups as the target numbers them | `groups.rs` |
//! | 5. directories and symlinks inside the superblocks | `contents/` |
//! | 6. the image, from all that | `build/` |
#![forbid(unsafe_code)]

mod build;
pub mod cli;
mod collect;
mod contents;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod groups;
mod refuse;
mod select;
mod sound;

use anyhow::{Context, Result, bail};
use autofs_cr_common::cli::{Voice, count};
use autofs_cr_common::doc::{self, DocError, Image, Output};
use autofs_cr_common::exit::Exit;
use autofs_cr_common::power::{self, Role};
use autofs_cr_common::proc::Proc;
use autofs_cr_common::scan::Expiring;
use autofs_cr_common::sys::autofs::{ControlDevice, DEVICE_PATH};
use autofs_cr_common::target::Target;
use autofs_cr_common::unfinished;
use rustix::thread::CapabilitySet;

use cli::Cli;
use collect::{Changed, Collected};
use contents::{Contents, Means};
use groups::Groups;

/// The name of this tool in messages.
pub const TOOL: &str = "autofs-dump";

/// How often it scans before it gives up on a state that changes all the time.
const MOST_TRIES: usize = 5;

/// Does all of it.
pub fn run(cli: &Cli) -> Result<Exit> {
    let proc = Proc::open().context("cannot open /proc")?;
    let voice = Voice::new(TOOL, cli.verbosity);
    let image = settled_image(cli, &proc, voice)?;
    // Only now, so that a dump that fails leaves a file as it was.
    let mut output = Output::open(cli.output.output.as_deref())?;
    doc::write(&image, &mut output).map_err(|source| DocError::Write { name: cli.output_name(), source })?;
    output.finish()?;
    voice.detail(format_args!(
        "{} of {}, {}",
        count(image.mounts.len(), "mount"),
        count(image.superblocks.len(), "superblock"),
        count(image.masters.len(), "master")
    ));
    Ok(Exit::Done)
}

/// The image. What changes while it is looked at is looked at again, where that is for this tool to do.
fn settled_image(cli: &Cli, proc: &Proc, voice: Voice) -> Result<Image> {
    let mut tries = 0;
    loop {
        tries += 1;
        let collected = collect::collect(cli, proc, voice).and_then(|mut collected| {
            select::narrow(&mut collected.report, &cli.chosen, &cli.exclude)?;
            Ok(collected)
        });
        match collected.and_then(|collected| image(cli, proc, &collected, voice)) {
            Err(error) if error.is::<Changed>() && cli.input.input.is_none() && tries < MOST_TRIES => {
                voice.detail(format_args!("{error}"));
            }
            result => return result,
        }
    }
}

fn image(cli: &Cli, proc: &Proc, collected: &Collected, voice: Voice) -> Result<Image> {
    let Collected { report, namespace, target } = collected;
    // Else the last image that has all might be written over.
    if let Some(unfinished) = &namespace.unfinished {
        bail!("an image made now would lack mounts: {}", unfinished::describe(namespace, unfinished));
    }
    if report.superblocks.is_empty() {
        voice.note("no autofs mount is there");
        return Ok(build::outline(report, &Groups::default())?.fill(Contents::default()));
    }
    let control = control_device()?;
    refuse::check(report, namespace)?;
    let groups = groups::find(proc, collected)?;
    let mut plan = contents::plan(report, &expiring(proc, target)?)?;
    let reading = plan.start(Means { target, control: &control, timeout: cli.timeout })?;
    // Meanwhile the children read.
    let outline = build::outline(report, &groups)?;
    let found = reading.finish(&voice.progress("read", report.superblocks.len()))?;
    if !found.pending.is_empty() {
        // A root that is not found may also have been unmounted.
        collect::check_mounts(proc, report, target)?;
    }
    found.unread.iter().chain(&found.pending).for_each(|place| voice.warn(place));
    Ok(outline.fill(found.contents))
}

/// Where nobody may walk: a child could not be ended there.
fn expiring(proc: &Proc, target: &Target) -> Result<Expiring> {
    let process = proc.process(target.pid()).context("cannot look at the mounts")?;
    Expiring::find(proc, &process).context("cannot look for expires that are not answered")
}

/// What the contents are read through.
fn control_device() -> Result<ControlDevice> {
    power::require(Role::Dump, CapabilitySet::SYS_ADMIN)
        .context("cannot read the contents of autofs mounts")?;
    ControlDevice::open()
        .with_context(|| format!("cannot read the contents of autofs mounts: cannot open {DEVICE_PATH}"))
}
