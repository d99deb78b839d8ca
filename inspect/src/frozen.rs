//! Which control group of the second hierarchy is frozen (cgroup.freeze in the kernel's Documentation/admin-guide/cgroup-v2.rst).

use std::fs;
use std::path::{Path, PathBuf};

use autofs_cr_common::model::Pid;

/// The file by which the control group of a process is thawed: its own, or the first above it that somebody froze. `None`
/// where none is, or the hierarchy is not mounted here as a whole.
pub fn group(pid: Pid) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mountinfo = fs::read("/proc/self/mountinfo").ok()?;
    // Names of other mounts may be no UTF-8.
    let mountinfo = String::from_utf8_lossy(&mountinfo);
    let root = mountinfo.lines().find_map(hierarchy)?;
    let own = Path::new(root).join(group);
    let above = own.ancestors().take_while(|path| path.starts_with(root));
    above.map(|path| path.join("cgroup.freeze")).find(|file| is_set(file))
}

fn is_set(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
}

/// Where a line of mountinfo has the whole hierarchy.
fn hierarchy(line: &str) -> Option<&str> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (top, mount_point) = (fields.next()?, fields.next()?);
    (top == "/" && file_system.starts_with("cgroup2 ")).then_some(mount_point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_hierarchy_is_found_where_all_of_it_is_mounted() {
        assert_eq!(
            hierarchy("30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"),
            Some("/sys/fs/cgroup")
        );
        assert_eq!(hierarchy("30 20 0:26 /part /x rw - cgroup2 cgroup2 rw"), None);
        assert_eq!(hierarchy("30 20 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw"), None);
        assert_eq!(hierarchy(""), None);
    }
}
