//! What a restore works in, and leaves behind when it is killed: a tmpfs that is mounted before the first change and
//! unmounted after the last. Where it is, a restore is at work or has not come to its end.
//!
//! How far it is, everybody sees without a walk to it, which would keep it from being unmounted: while the restore lives it
//! holds a lock that /proc/locks shows, and when nothing is left to do it makes the tmpfs read-only, before it
//! lets go of the lock.

use std::collections::HashSet;
use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};

use crate::advice::shell_word;
use crate::doc::report::{Life, Namespace, Unfinished};
use crate::model::{Device, Pid, TextPath};
#[cfg(doc)]
use crate::proc::Proc;
use crate::proc::mountinfo::{self, unescape};

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

/// The restore that has not come to its end, by what is mounted: one that lives before one that was killed. `locked` are
/// the devices with locked files ([`Proc::locked`]), if these can be seen.
pub fn find(lines: &[mountinfo::Line<'_>], locked: Option<&HashSet<Device>>) -> Option<Unfinished> {
    let life = |line: &mountinfo::Line<'_>| match (locked, line.device()) {
        (Some(locked), Some(device)) if locked.contains(&device) => Life::AtWork,
        (Some(_), Some(_)) => Life::Killed,
        _ => Life::Unknown,
    };
    let holds_any = |place: &mountinfo::Line<'_>| lines.iter().any(|line| line.parent == place.id);
    let places = lines.iter().filter(|line| is_work_place(line));
    let unfinished = places.filter(|line| !line.is_read_only() || holds_any(line)).map(|line| Unfinished {
        work_place: TextPath::from_bytes(unescape(line.mount_point).into_owned()),
        restore: life(line),
    });
    unfinished.min_by_key(|unfinished| unfinished.restore)
}

/// Says by a lock on the image in a work place that this process is at work there, until all descriptors of `image` are closed.
pub fn hold(image: &File) -> io::Result<()> {
    // One for reading: a file that is open for writing would keep the tmpfs from becoming read-only.
    let lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // A lock of the open file description: others are shown only in pid namespaces that their owner is in.
    fcntl(image, FcntlArg::F_OFD_SETLK(&lock))?;
    Ok(())
}

/// Whether a restore is at work in a namespace, and lives.
pub fn is_at_work(namespace: &Namespace) -> bool {
    namespace.unfinished.as_ref().is_some_and(|unfinished| unfinished.restore == Life::AtWork)
}

/// What to tell of a namespace in which a restore has not come to its end.
pub fn describe(namespace: &Namespace) -> Option<String> {
    let Unfinished { work_place, restore } = namespace.unfinished.as_ref()?;
    let what = format!("{work_place}: an autofs-restore");
    let place = format!("in the mount namespace of process {}", namespace.process);
    let left =
        format!("and has left mounts out of their places; to finish: {}", finishing(namespace, work_place));
    Some(match restore {
        Life::AtWork => format!("{what} is at work {place}: look again when it has ended"),
        Life::Killed => format!("{what} was killed {place} {left}"),
        Life::Unknown => format!("{what} is at work {place}, or was killed {left}"),
    })
}

/// How a restore that was killed is brought to its end.
fn finishing(namespace: &Namespace, work_place: &TextPath) -> String {
    let process = namespace.process;
    let root = if process == Pid::this() { String::new() } else { format!("/proc/{process}/root") };
    let image =
        TextPath::from_bytes([root.as_bytes(), work_place.as_bytes(), b"/", IMAGE.as_bytes()].concat());
    format!(
        "run the same command again, whose image is also at {image}: autofs-restore -p {process} -i {word} (with the \
        options that it had)",
        word = shell_word(image.as_bytes()),
    )
}
