//! What --dry-run prints.

use std::io::{self, Write};

use autofs_cr_common::cli::count;

use crate::plan::{Action, Item, Plan};

/// Prints the plan: a line for each superblock, in the order of work.
pub fn plan(plan: &Plan, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:<8} {:<9} {:<8} {:<24} MOUNT POINT", "PLAN", "DEVICE", "TYPE", "MASTER")?;
    for &index in plan.groups.iter().flatten() {
        line(plan, index, &plan.items[index], out)?;
    }
    Ok(())
}

fn line(plan: &Plan, index: usize, item: &Item, out: &mut impl Write) -> io::Result<()> {
    let superblock = &plan.image.superblocks[index];
    write!(
        out,
        "{:<8} {:<9} {:<8} {:<24} ",
        item.action,
        superblock.device.to_string(),
        superblock.options.mount_type,
        superblock.master.as_deref().unwrap_or("-")
    )?;
    let places = item.mounts.iter().map(|&mount| plan.image.mounts[mount].mount_point.to_string());
    write!(out, "{}", places.collect::<Vec<_>>().join(", "))?;
    if let Some(old) = item.old.as_ref().filter(|_| item.action.makes()) {
        write!(out, " (replaces {}", old.device)?;
        if !old.content.is_empty() {
            write!(out, ", moves {} over", count(old.content.len(), "mount"))?;
        }
        write!(out, ")")?;
    }
    if item.action.makes() && !item.keeps_device {
        write!(out, " (any device number)")?;
    }
    writeln!(out)
}

/// What the plan does, in one line.
pub fn summary(plan: &Plan) -> String {
    let counted = Action::ALL.into_iter().filter_map(|action| {
        let number = plan.items.iter().filter(|item| item.action == action).count();
        (number > 0).then(|| format!("{action} {number}"))
    });
    let text = counted.collect::<Vec<_>>().join(", ");
    match text.as_str() {
        "" if plan.wishes.undo => "nothing was changed".to_owned(),
        "" => "the image has no autofs mounts".to_owned(),
        _ => text,
    }
}
