//! Where the mounter must not walk. Where a request is pending a walk blocks and can be ended; one that waits for
//! the end of an expire cannot, and would be left behind. So that is looked for before it is started.

use std::path::Path;

use anyhow::{Context, bail};
use autofs_cr_common::advice::{self, Force};
use autofs_cr_common::doc::Report;
use autofs_cr_common::doc::report::{Mount, RequestKind};
use autofs_cr_common::model::{MountType, Pid, TextPath};
use autofs_cr_common::proc::{Proc, ProcessDir};
use autofs_cr_common::scan::{Expiring, Needs, Scope, scan};
use autofs_cr_common::target::Target;

use crate::plan::{Action, Item, Plan};

/// An error if the plan needs a walk in the target that waits for the end of an expire.
pub fn check(proc: &Proc, target: &Target, plan: &Plan) -> anyhow::Result<()> {
    let process = proc.process(target.pid()).context("cannot look at the target")?;
    let expiring = find(proc, &process)?;
    walked(plan).try_for_each(|path| pass(&expiring, path, Some(target.pid())))
}

/// The same for the root directory of a fresh namespace.
pub fn check_root(proc: &Proc, root: &Path) -> anyhow::Result<()> {
    let expiring = find(proc, &proc.this().context("cannot look at the mounts")?)?;
    pass(&expiring, &std::path::absolute(root)?, None)
}

fn find(proc: &Proc, process: &ProcessDir) -> anyhow::Result<Expiring> {
    Expiring::find(proc, process).context("cannot look for expires that are not answered")
}

fn pass(expiring: &Expiring, path: &Path, process: Option<Pid>) -> anyhow::Result<()> {
    match expiring.on_the_way(path) {
        Some(at) => bail!(
            "cannot walk to {}: an expire of {at} is not answered, and a walk that waits for its end cannot even be \
             killed; {} ends it",
            path.display(),
            advice::free(process, Force::No, &[at])
        ),
        None => Ok(()),
    }
}

/// An error if a mount of this namespace could not be unmounted in a copy of it: that is a walk too.
pub fn check_copies(proc: &Proc) -> anyhow::Result<()> {
    let report = scan(proc, Scope::Own, Needs::STATES)?;
    match report.mounts.iter().find(|mount| is_blocked(&report, mount)) {
        Some(mount) => bail!(
            "cannot leave {} out of a copy of this mount namespace: a request or an expire is pending there, which \
             blocks the walk; free it ({}), or take another root directory (--root)",
            mount.mount_point,
            advice::free(None, Force::No, &[&mount.mount_point])
        ),
        None => Ok(()),
    }
}

/// Whether somebody waits on the root of a mount, or asked for it and was not heard yet.
fn is_blocked(report: &Report, mount: &Mount) -> bool {
    let is_it = |device| device == mount.device;
    let is_trigger = report
        .superblock(mount.device)
        .is_some_and(|superblock| superblock.options.mount_type != MountType::Indirect);
    let mut requests = report.requests.iter().filter(|request| request.kind == RequestKind::Mount);
    is_trigger
        && (report.waiters_on(mount.device).next().is_some() || requests.any(|request| is_it(request.device)))
}

/// The paths that the mounter walks to.
fn walked(plan: &Plan) -> impl Iterator<Item = &TextPath> {
    let items = plan.items.iter().filter(|item| item.action != Action::Keep || item.is_unsettled());
    let covers = plan.parkings.iter().flat_map(|parking| &parking.covers).map(|cover| &cover.mount_point);
    let left = plan.parkings.iter().map(|parking| &parking.mount_point).chain(covers);
    items.flat_map(|item| of_item(plan, item)).chain(left)
}

fn of_item<'p>(plan: &'p Plan, item: &'p Item) -> impl Iterator<Item = &'p TextPath> {
    let mounts = item.mounts.iter().map(|&mount| &plan.image.mounts[mount].mount_point);
    let old = item.old.iter().flat_map(|old| {
        let mounts = old.mounts.iter().map(|mount| &mount.mount_point);
        mounts.chain(old.content.iter().map(|content| &content.mount_point))
    });
    mounts.chain(old).chain(item.parked.iter().map(|parked| &parked.mount_point))
}
