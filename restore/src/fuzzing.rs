//! For fuzz/: the stages before anything of a live system is needed.

use autofs_cr_common::doc::{Image, Report};

use crate::check::check;
use crate::layout::Layout;
use crate::live::Masters;
use crate::plan::{Numbers, Plan, PlanError, Wishes, plan};

/// Whether the image makes sense.
pub fn is_sound(image: &Image) -> Result<(), String> {
    check(image).map_err(|fault| fault.to_string())
}

/// What is planned from a sound image where `there` is what is there, and no master lives: the number of groups, or why there
/// is no plan.
pub fn planned(image: Image, there: &Report, replace: bool) -> Result<usize, String> {
    let wishes = Wishes { replace, ..Wishes::default() };
    let planned: Result<Plan, PlanError> =
        plan(image, there, &Numbers::default(), &[], &Masters::default(), wishes);
    let plan = planned.map_err(|error| error.to_string())?;
    let layout = Layout::of(&plan.image);
    let mut shown: Vec<usize> = plan.groups.iter().flatten().copied().collect();
    shown.sort_unstable();
    assert!(shown.into_iter().eq(0..plan.items.len()), "each superblock is in one group");
    assert!(
        layout.parents.iter().enumerate().all(|(mount, parent)| parent.is_none_or(|parent| parent < mount))
    );
    crate::show::plan(&plan, &mut std::io::sink()).map_err(|error| error.to_string())?;
    Ok(plan.groups.len())
}
