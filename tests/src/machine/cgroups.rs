//! A control group of its own for each machine: systemd-nspawn makes groups of fixed names in the one that it
//! is in.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Groups, one in each hierarchy that systemd uses. Dropping it takes them away.
pub(super) struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    /// Makes groups of this name, below the roots of the hierarchies.
    pub fn new(name: &str) -> Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
        let mut groups = Self(Vec::new());
        for root in mountinfo.lines().filter_map(hierarchy) {
            let group = root.join(name);
            fs::create_dir(&group).with_context(|| format!("make the control group {}", group.display()))?;
            groups.0.push(group);
        }
        Ok(groups)
    }

    /// Their paths, with blanks between them.
    pub fn list(&self) -> String {
        let paths: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        paths.join(" ")
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for group in &self.0 {
            if let Err(error) = remove(group) {
                eprintln!("remove the control group {}: {error}", group.display());
            }
        }
    }
}

/// Where a hierarchy is mounted that has processes in the groups of systemd: the second one, and systemd's own
/// of the first.
fn hierarchy(line: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = file_system.split(' ');
    let (fstype, options) = (fields.next()?, fields.nth(1)?);
    let is_systemd = options.split(',').any(|option| option == "name=systemd");
    let root = mount.split(' ').nth(4)?;
    (fstype == "cgroup2" || fstype == "cgroup" && is_systemd).then(|| PathBuf::from(root))
}

/// Removes a group and those in it.
fn remove(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
