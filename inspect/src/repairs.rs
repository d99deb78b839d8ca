//! The repairs of many mounts together.

use std::collections::BTreeMap;
use std::fmt;

use autofs_cr_common::doc::report::CopyFault;
use autofs_cr_common::model::TextPath;

use crate::repair::{self, Repair};
use crate::span::Span;
use crate::trouble::{self, Trouble};
use crate::view::Row;
use crate::waiting;

/// How many mounts are named before the command is given without names.
pub const MOST_NAMED: usize = 8;

/// What is wrong with several mounts, and what repairs them.
pub struct Repairs<'a>(BTreeMap<(String, Option<Repair>), Vec<&'a TextPath>>);

impl<'a> Repairs<'a> {
    /// Collects the mounts that are not well, but for those whose state says it all.
    pub fn of(rows: impl Iterator<Item = Row<'a>>, patience: Span) -> Self {
        let mut repairs = Self(BTreeMap::new());
        for row in rows {
            let Some(trouble) = trouble::of(&row, patience) else { continue };
            let repair = repair::of(trouble, &row);
            if repair.is_some() || !matches!(trouble, Trouble::NotServed(_)) {
                repairs.0.entry((brief(trouble, &row), repair)).or_default().push(&row.mount.mount_point);
            }
        }
        repairs
    }

    /// A line for each command, with the mounts that it is for. One that would name too many is for the first of them.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|((brief, repair), mount_points)| {
            let named = Named(mount_points);
            let Some(repair) = repair else { return format!("{named}: {brief}") };
            let whole = repair.command(mount_points);
            match mount_points.len() > MOST_NAMED && whole != repair.command(&[]) {
                false => format!("{named}: {brief}; to repair: {whole}"),
                true => {
                    let some = repair.command(&mount_points[..MOST_NAMED]);
                    format!("{named}: {brief}; to repair the first {MOST_NAMED} of them: {some}")
                }
            }
        })
    }
}

/// What is wrong, as it can be the same with many mounts.
fn brief(trouble: Trouble<'_>, row: &Row<'_>) -> String {
    let word = trouble.as_str();
    match trouble {
        Trouble::Copy(CopyFault::Severed) => {
            format!(
                "{word} (accesses fail with \"Too many levels of symbolic links\"){}",
                trouble::remedy(row)
            )
        }
        Trouble::Copy(CopyFault::Stale) => format!("{word}{}", trouble::remedy(row)),
        Trouble::Halted(master, halt) => {
            format!("{word} ({}: {})", waiting::name(&master.command, master.pid), waiting::halt(halt))
        }
        _ => word.to_owned(),
    }
}

/// Some mounts, the first by name.
struct Named<'a>(&'a [&'a TextPath]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if self.0.len() > MOST_NAMED { 3 } else { self.0.len() };
        for (at, mount_point) in self.0.iter().take(shown).enumerate() {
            write!(f, "{}{mount_point}", if at == 0 { "" } else { ", " })?;
        }
        match self.0.len() - shown {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
