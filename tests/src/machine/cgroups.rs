//! A control group of its own for each machine: systemd-nspawn makes groups of fixed names in the one that it
//! is in.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Groups, one in each hierarchy that systemd uses. Dropping it takes them away.
pub(super) struct Cgroups {
    groups: Vec<PathBuf>,
    watch: Option<Child>,
}

/// Waits for the end of its input, which is also that of a test that is killed. Then it kills what is in the groups
/// that are its arguments, and takes them away. systemd-nspawn does not: what it has booted survives it.
const WATCH: &str = r#"
read -r _
for group; do
    [ -w "$group/cgroup.kill" ] && echo 1 >"$group/cgroup.kill"
done
for group; do
    for try in $(seq 50); do
        [ -d "$group" ] || break
        find "$group" -depth -type d -exec rmdir {} + || sleep 0.1
    done
done
"#;

impl Cgroups {
    /// Makes groups of this name, below the roots of the hierarchies.
    pub fn new(name: &str) -> Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
        let mut cgroups = Self { groups: Vec::new(), watch: None };
        for root in mountinfo.lines().filter_map(hierarchy) {
            let group = root.join(name);
            match fs::create_dir(&group) {
                // Names have the pid of the test: this is of one with the same pid that was killed.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => made.with_context(|| format!("make the control group {}", group.display()))?,
            }
            cgroups.groups.push(group);
        }
        cgroups.watch = Some(watch(&cgroups.groups).context("start a shell")?);
        Ok(cgroups)
    }

    /// Their paths, with blanks between them.
    pub fn list(&self) -> String {
        let paths: Vec<_> = self.groups.iter().map(|path| path.display().to_string()).collect();
        paths.join(" ")
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for group in &self.groups {
            if let Err(error) = remove(group) {
                eprintln!("remove the control group {}: {error}", group.display());
            }
        }
        if let Some(watch) = &mut self.watch {
            drop(watch.stdin.take());
            let _ = watch.wait();
        }
    }
}

/// Starts what takes the groups away if this process is killed.
fn watch(groups: &[PathBuf]) -> std::io::Result<Child> {
    // In a group of its own, which no Ctrl-C reaches.
    let mut command = Command::new("sh");
    command.args(["-c", WATCH, "watch"]).args(groups).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
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
