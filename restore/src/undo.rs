//! Going back from a restore that was killed: from which image, and what of what it left.

use anyhow::{Context, anyhow};
use autofs_cr_common::cli::Voice;
use autofs_cr_common::doc::{Format, Image};
use autofs_cr_common::model::Pid;
use autofs_cr_common::proc::Proc;
use autofs_cr_common::target::Target;

use crate::check;
use crate::parked::{self, Parking};
use crate::plan::Wishes;
use crate::run::Task;
use crate::survey::Survey;

/// What a restore that was killed in the namespaces of a process was to do. Without one the image is empty, and only what is
/// of no use is taken away.
pub fn task(proc: &Proc, pid: Pid, voice: Voice) -> anyhow::Result<Task> {
    let target = Target::open(pid)?;
    let mountinfo = proc.process(pid)?.mountinfo().context("cannot read the mounts")?;
    let parkings =
        parked::find(proc, &target, &mountinfo).context("cannot look for what a killed restore left")?;
    let Some(parking) = last(&parkings) else {
        voice.note("there is nothing to undo: no restore was killed here, or it had done all before");
        return Ok(Task::new(empty(), Wishes { undo: true, ..Wishes::default() })?);
    };
    let place = &parking.mount_point;
    let image =
        parking.image.clone().ok_or_else(|| anyhow!("{place}: a killed restore left no image there"))?;
    check::check(&image).with_context(|| format!("the image in {place} makes no sense"))?;
    if parkings
        .iter()
        .any(|other| !other.is_finished && other.id != parking.id && other.image != parking.image)
    {
        voice
            .warn("a restore of another image was killed here before: run the same command again after this");
    }
    Ok(Task::new(image, Wishes { undo: true, ..parking.wishes })?)
}

/// Leaves what restores of other images left to those who go back from them.
pub fn narrow(survey: &mut Survey, image: &Image) {
    survey.parkings.retain(|parking| parking.is_finished || parking.image.as_ref() == Some(image));
}

/// That of the last restore which is not finished.
fn last(parkings: &[Parking]) -> Option<&Parking> {
    parkings.iter().filter(|parking| !parking.is_finished).max_by_key(|parking| parking.id)
}

fn empty() -> Image {
    Image { format: Format::CURRENT, masters: Vec::new(), superblocks: Vec::new(), mounts: Vec::new() }
}
