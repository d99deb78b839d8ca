//! Asking the kernel what came of it, after the fixups say that they are done.

use std::collections::HashMap;

use autofs_cr_common::model::{Device, KernelPipe, SuperOptions};
use autofs_cr_common::proc::{ProcessDir, mountinfo};

use crate::plan::{Action, Plan};

/// What mountinfo says of the superblocks that are there, by device.
pub fn read(process: &ProcessDir) -> anyhow::Result<HashMap<Device, SuperOptions>> {
    let text = process.mountinfo()?;
    let mut found = HashMap::new();
    for line in mountinfo::lines(&text) {
        let line = line?;
        if let Some(device) = line.device().filter(|_| line.is_autofs()) {
            let options = SuperOptions::parse(&String::from_utf8_lossy(line.super_options))?;
            found.insert(device, options);
        }
    }
    Ok(found)
}

/// What is not as planned, a sentence each. A superblock that was made with any number is passed over.
pub fn problems(plan: &Plan, found: &HashMap<Device, SuperOptions>) -> Vec<String> {
    let mut problems = Vec::new();
    for (item, superblock) in plan.items.iter().zip(&plan.image.superblocks) {
        if !item.keeps_device {
            continue;
        }
        let wrong = match found.get(&superblock.device) {
            None => Some("is not mounted"),
            Some(options) => wrong_pipe(item.action, options.pipe),
        };
        if let Some(wrong) = wrong {
            let mount = item.mounts.first().map(|&mount| plan.image.mounts[mount].mount_point.to_string());
            problems.push(format!("{} ({}) {wrong}", mount.unwrap_or_default(), superblock.device));
        }
    }
    problems
}

fn wrong_pipe(action: Action, pipe: KernelPipe) -> Option<&'static str> {
    match (action, pipe) {
        (Action::Keep | Action::Leave, _) | (_, KernelPipe::Inode(_)) => None,
        (_, KernelPipe::None) => Some("is catatonic"),
        (_, KernelPipe::NotShown) => {
            Some("cannot be checked: this kernel shows no pipe_ino (CONFIG_CHECKPOINT_RESTORE is off)")
        }
    }
}
