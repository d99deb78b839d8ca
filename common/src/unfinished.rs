//! What a restore works in, and leaves behind when it is killed: a tmpfs that is mounted before the first change and
//! unmounted after the last. Where it is, a restore is at work or has not come to its end.

use crate::advice::shell_word;
use crate::doc::report::Namespace;
use crate::model::{Pid, TextPath};
use crate::proc::mountinfo;

/// The source of the tmpfs in mountinfo.
pub const SOURCE: &str = "autofs-cr-parking";

/// The source of the autofs mounts in it, whose only use is that each keeps a pipe of a master open.
pub const PIPE_SOURCE: &str = "autofs-cr-pipe";

/// The file in it that has the image, for a user who has lost it.
pub const IMAGE: &str = "image.yaml";

/// Whether a mount is such a tmpfs.
pub fn is_work_place(line: &mountinfo::Line<'_>) -> bool {
    line.source == SOURCE.as_bytes() && line.root == b"/"
}

/// Whether a mount is an empty directory of such a tmpfs, which covers an autofs mount.
pub fn is_cover(line: &mountinfo::Line<'_>) -> bool {
    line.source == SOURCE.as_bytes() && line.root != b"/"
}

/// Whether a mount is an autofs mount in such a tmpfs, which keeps a pipe open and is nobody's to use.
pub fn is_pipe(line: &mountinfo::Line<'_>) -> bool {
    line.source == PIPE_SOURCE.as_bytes()
}

/// What to tell of a namespace in which a restore has not come to its end.
pub fn describe(namespace: &Namespace) -> Option<String> {
    let place = namespace.unfinished.as_ref()?;
    let is_other = namespace.process != Pid::this();
    let root = if is_other { format!("/proc/{}/root", namespace.process) } else { String::new() };
    let image = TextPath::from_bytes([root.as_bytes(), place.as_bytes(), b"/", IMAGE.as_bytes()].concat());
    Some(format!(
        "{place}: an autofs-restore is at work in the mount namespace of process {process}, or was killed and has left \
        mounts out of their places; to finish: run the same command again, whose image is also at {image}: \
        autofs-restore -p {process} -i {word} (with the options that it had)",
        process = namespace.process,
        word = shell_word(image.as_bytes()),
    ))
}
