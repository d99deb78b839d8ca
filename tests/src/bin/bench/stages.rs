//! The stages, each with its floor, round by round.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use autofs_cr_tests::sandbox::program;

use crate::aims::{Floor, Stage};
use crate::cli::Loop;
use crate::floor;
use crate::measure::{Measured, Run};
use crate::results::{Results, Sample};
use crate::world::World;

/// How often a run is tried. Device numbers are the machine's: anything that mounts in the same moment
/// can take one that the restore needs, which is then refused and undone.
const ATTEMPTS: usize = 3;

/// Measures all stages with this many mounts.
pub fn measure(mounts: usize, runs: usize, results: &mut Results) -> Result<()> {
    let world = World::new(mounts)?;
    let documents = Documents::new(&world);
    documents.make_image(&world)?;
    for round in 1..=runs {
        eprintln!("bench: {mounts} mounts, round {round} of {runs}");
        round_of(&world, &documents, results)?;
    }
    world.close()?;
    check_served(mounts)
}

/// Whether a restore and its fixup lead to mounts that the master serves: in a world of its own, as the
/// loops leave other device numbers than the master knows.
fn check_served(mounts: usize) -> Result<()> {
    let mut checked = Ok(());
    for _ in 0..ATTEMPTS {
        let world = World::new(mounts)?;
        let documents = Documents::new(&world);
        documents.make_image(&world)?;
        checked = create_and_fix(&world, &documents).and_then(|_| world.check_served());
        world.close()?;
        if checked.is_ok() {
            break;
        }
    }
    checked.context("the check of what was restored")
}

/// Where the documents are.
pub struct Documents {
    /// The source of every restore.
    image: PathBuf,
    stage: PathBuf,
    restore_errors: PathBuf,
    fixup_errors: PathBuf,
}

impl Documents {
    /// In the world's directory for them.
    pub fn new(world: &World) -> Self {
        let file = |name| world.scratch().join(name);
        Self {
            image: file("image.yaml"),
            stage: file("stage.yaml"),
            restore_errors: file("restore-errors"),
            fixup_errors: file("fixup-errors"),
        }
    }

    /// Dumps the image.
    pub fn make_image(&self, world: &World) -> Result<()> {
        dump(world).output(&self.image).finish().map(drop).context("make the image")
    }
}

/// The tools first: each restore brings back the device numbers of the image, and the loops do not.
fn round_of(world: &World, documents: &Documents, results: &mut Results) -> Result<()> {
    let mounts = world.mounts();
    results.add_start(tool(world, "autofs-inspect", ["-V"]).finish()?.time());
    try_some(world, documents, results, &[Stage::Connect], || connect(world, documents))?;
    look(world, results)?;
    try_some(world, documents, results, &[Stage::Replace], || replace(world, documents))?;
    let staged = [Stage::Create, Stage::Fixup, Stage::Stopped];
    try_some(world, documents, results, &staged, || staged_samples(world, documents))?;
    try_some(world, documents, results, &[Stage::Pipeline], || pipeline(world, ""))?;
    try_some(world, documents, results, &[Stage::PipelineByFixup], || pipeline(world, "--connect=fixup"))?;

    let mut add = |floors: &[Floor], times: Vec<Duration>| {
        floors.iter().zip(times).for_each(|(&floor, time)| results.floor(floor, mounts, time));
    };
    add(&[Floor::Replace], world.run_loop(Loop::Replace)?);
    world.unmount()?;
    add(&[Floor::Connect], world.run_loop(Loop::Connect)?);
    world.unmount()?;
    add(&[Floor::Create, Floor::Fix], world.run_loop(Loop::Staged)?);
    Ok(())
}

/// inspect and dump, that change nothing.
fn look(world: &World, results: &mut Results) -> Result<()> {
    let pid = world.pid().to_string();
    results.floor(Floor::Mountinfo, world.mounts(), floor::read_mountinfo(world.pid())?);
    let table = tool(world, "autofs-inspect", ["-p", &pid]).output(world.scratch().join("table"));
    let yaml =
        tool(world, "autofs-inspect", ["-p", &pid, "-f", "yaml"]).output(world.scratch().join("report"));
    let dump = dump(world).output(world.scratch().join("dump"));
    for (stage, run) in [(Stage::InspectTable, table), (Stage::InspectYaml, yaml), (Stage::Dump, dump)] {
        results.sample(stage, world.mounts(), whole(&run.finish()?));
    }
    Ok(())
}

fn dump(world: &World) -> Run {
    tool(world, "autofs-dump", ["-p", &world.pid().to_string()])
}

fn tool<const N: usize>(world: &World, name: &str, arguments: [&str; N]) -> Run {
    let words = std::iter::once(program(name).into_os_string()).chain(arguments.map(Into::into));
    Run::new(world.scratch(), words)
}

fn whole(measured: &Measured) -> Sample {
    Sample { time: measured.time(), memory: measured.memory }
}

/// Runs stages until they are done; notes why not, if they are not.
fn try_some<const N: usize>(
    world: &World,
    documents: &Documents,
    results: &mut Results,
    stages: &[Stage; N],
    run: impl Fn() -> Result<[Sample; N]>,
) -> Result<()> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match run().and_then(|samples| world.check_connected().map(|()| samples)) {
            Ok(samples) => {
                for (stage, sample) in stages.iter().zip(samples) {
                    results.sample(*stage, world.mounts(), sample);
                }
                return Ok(());
            }
            Err(error) => last = Some(format!("{error:#}")),
        }
        // With an image of it: something else may keep a number of the image before.
        world.reset().context("put the mounts back")?;
        documents.make_image(world)?;
    }
    for stage in stages {
        results.failure(*stage, world.mounts(), last.clone().unwrap_or_default());
    }
    Ok(())
}

/// restore, each mount in place of the one that is there.
fn replace(world: &World, documents: &Documents) -> Result<[Sample; 1]> {
    Ok([whole(&replace_with(world, documents, &[])?)])
}

/// The same with more options.
pub fn replace_with(world: &World, documents: &Documents, more: &[&str]) -> Result<Measured> {
    restore(world, documents, &[&["--replace"], more].concat()).finish()
}

/// restore, to where nothing is mounted, connected at once.
fn connect(world: &World, documents: &Documents) -> Result<[Sample; 1]> {
    world.unmount()?;
    let run = restore(world, documents, &[]).finish()?;
    Ok([whole(&run)])
}

/// The whole pipeline, from the start of its shell to the end of the last tool.
fn pipeline(world: &World, more: &str) -> Result<[Sample; 1]> {
    let [dump, restore, fixup] = ["autofs-dump", "autofs-restore", "autofs-fixup"].map(program);
    let (dump, restore, fixup) = (dump.display(), restore.display(), fixup.display());
    let pid = world.pid();
    let script = format!(
        "set -o pipefail; {dump} -p {pid} | {restore} -p {pid} --replace --timeout=30 {more} | {fixup}"
    );
    Ok([whole(&Run::new(world.scratch(), ["bash", "-c", &script]).finish()?)])
}

/// What restore took and the fixup, and how long that had stopped the master.
fn staged_samples(world: &World, documents: &Documents) -> Result<[Sample; 3]> {
    let [restored, fixed] = create_and_fix(world, documents)?;
    let said = std::fs::read_to_string(&documents.fixup_errors).context("read what the fixup said")?;
    let stopped = stopped(&said).with_context(|| format!("the fixup does not tell of its stop: {said}"))?;
    Ok([restored, fixed, Sample { time: stopped, memory: 0 }])
}

/// The time that a fixup stopped its master, from what it said.
fn stopped(said: &str) -> Option<Duration> {
    let (milliseconds, _) = said.split_once(": stopped for ")?.1.split_once(" ms in ")?;
    Some(Duration::from_secs_f64(milliseconds.parse::<f64>().ok()? / 1e3))
}

/// restore, to where nothing is mounted, catatonic; and the fixup. The time of the restore is that
/// until it has published the stage document, and that from the end of the fixup to its own.
pub fn create_and_fix(world: &World, documents: &Documents) -> Result<[Sample; 2]> {
    world.unmount()?;
    let restore = restore(world, documents, &["--connect=fixup"]).output(&documents.stage);
    let restore = restore.errors(&documents.restore_errors).start()?;
    let (start, published) = (restore.start, restore.closed);
    let stage = documents.stage.to_string_lossy();
    let fixup = match world.master() {
        Some(master) => tool(world, "autofs-fixup", ["-v", "-i", &stage, "--pid", &master.to_string()]),
        None => tool(world, "autofs-fixup", ["-v", "-i", &stage]),
    };
    let fixed = fixup.errors(&documents.fixup_errors).finish();
    let (restored, fixed) = match (restore.finish(), fixed) {
        (Ok(restored), Ok(fixed)) => (restored, fixed),
        // Each fails where the other does.
        (Err(restored), Err(fixed)) => bail!("{restored:#}; {fixed:#}"),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let time: Duration = published.since(start) + restored.end.since(fixed.end);
    Ok([Sample { time, memory: restored.memory }, whole(&fixed)])
}

fn restore(world: &World, documents: &Documents, more: &[&str]) -> Run {
    let pid = world.pid().to_string();
    let image = documents.image.to_string_lossy().into_owned();
    let arguments = ["-p", &pid, "-i", &image, "--timeout=30"].into_iter().chain(more.iter().copied());
    let words: Vec<_> = std::iter::once(program("autofs-restore").into_os_string())
        .chain(arguments.map(Into::into))
        .collect();
    Run::new(world.scratch(), words)
}
