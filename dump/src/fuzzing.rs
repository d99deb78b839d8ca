//! For fuzz/: the stages that look at nothing but the report.

use autofs_cr_common::doc::{Image, Report};
use autofs_cr_common::scan::Expiring;

use crate::contents::Contents;
use crate::groups::Groups;
use crate::{build, contents, refuse};

/// The image of a report, or why there is none.
pub fn image(report: &Report) -> Result<Image, String> {
    let namespace = report.namespaces.first().ok_or("no namespace")?;
    refuse::check(report, namespace).map_err(|error| error.to_string())?;
    contents::plan(report, &Expiring::default()).map_err(|error| error.to_string())?;
    let outline = build::outline(report, &Groups::default()).map_err(|error| error.to_string())?;
    Ok(outline.fill(Contents::default()))
}
