//! What the tools may leave behind.

use std::fs;

use super::Inside;

impl Inside {
    /// What restores and fixups have left: their mounts, their directories and files, their segments.
    pub fn left_behind(&self) -> Vec<String> {
        let mounts = self.mountinfo();
        let is_ours = |line: &&str| line.contains("autofs-cr-parking") || line.contains("autofs-cr-pipe");
        let mounts = mounts.lines().filter(is_ours).map(str::to_owned);
        let folders = ["/run", "/tmp", "/", "/dev/shm"].into_iter().flat_map(|folder| {
            let names = fs::read_dir(self.outside(folder)).into_iter().flatten().flatten();
            names.map(move |name| format!("{folder}: {}", name.file_name().to_string_lossy()))
        });
        mounts.chain(folders.filter(|name| name.contains("autofs-cr"))).collect()
    }
}
