//! What a restore works in, and leaves behind when it is killed: a tmpfs that is mounted before the first change and
//! unmounted after the last. Where it is, a restore is at work or has not come to its end.

use crate::proc::mountinfo;

/// The source of the tmpfs in mountinfo.
pub const SOURCE: &str = "autofs-cr-parking";

/// The source of the autofs mounts in it, whose only use is that each keeps a pipe of a master open.
pub const PIPE_SOURCE: &str = "autofs-cr-pipe";

/// Whether a mount is such a tmpfs.
pub fn is_work_place(line: &mountinfo::Line<'_>) -> bool {
    line.source == SOURCE.as_bytes() && line.root == b"/"
}

/// Whether a mount is an empty directory of such a tmpfs, which covers an autofs mount.
pub fn is_cover(line: &mountinfo::Line<'_>) -> bool {
    line.source == SOURCE.as_bytes() && line.root != b"/"
}
