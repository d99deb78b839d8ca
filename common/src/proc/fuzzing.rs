//! All files of a process, each read from the same bytes.

use super::{FdInfo, Stat, Status, Syscall, Target, cgroup, mountinfo, schedule};
use crate::model::SuperOptions;

/// Reads `text` as each of the files of /proc/PID.
pub fn texts(text: &[u8]) {
    for line in mountinfo::lines(text).flatten() {
        let path = mountinfo::unescape(line.mount_point);
        assert!(line.is_at(&path) && path.len() <= line.mount_point.len());
        let _ = (line.device(), line.is_autofs());
        let propagation = line.propagation().to_string();
        assert!(propagation.parse::<crate::model::Propagation>().is_ok(), "{propagation}");
        let _ = SuperOptions::parse(&String::from_utf8_lossy(line.super_options));
    }
    let _ = SuperOptions::parse(&String::from_utf8_lossy(text));
    let _ = Stat::parse(text).map(|stat| (stat.is_dead(), stat.command.to_string()));
    let _ = Status::parse(text);
    let _ = FdInfo::parse(text).map(|info| (info.access(), info.fd_flags()));
    let _ = Syscall::parse(text);
    let _ = cgroup::parse(text);
    let _ = schedule::parse(text);
    let _ = Target::of_link(text);
}
