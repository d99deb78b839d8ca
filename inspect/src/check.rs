//! Which mounts need attention.

use autofs_cr_common::doc::report::Life;
use autofs_cr_common::unfinished::describe;

use crate::columns::Settings;
use crate::view::View;
use crate::waiting;
use crate::{repair, trouble};

/// A line for each restore that was killed, and for each mount that is not well: what is wrong, who waits,
/// and what repairs it.
pub fn unhealthy(view: &View<'_>, settings: &Settings) -> Vec<String> {
    let several = view.report.namespaces.len() > 1;
    let killed = view.unfinished().filter(|(_, unfinished)| unfinished.restore != Life::AtWork);
    let mut lines: Vec<String> = killed.map(|(namespace, restore)| describe(namespace, restore)).collect();
    for row in view.rows() {
        let Some(trouble) = trouble::of(&row, settings.patience) else { continue };
        let mut line = row.mount.mount_point.to_string();
        if several {
            line += &format!(" (mount namespace {})", row.mount.namespace);
        }
        line += &format!(": {}", trouble.describe(&row));
        let waits = row.waits();
        if !waits.is_empty() {
            line += &format!("; {}", waiting::list(&waits));
        }
        if let Some(repair) = repair::of(trouble, &row) {
            line += &format!("; to repair: {}", repair.command(&[&row.mount.mount_point]));
        }
        lines.push(line);
    }
    lines
}
