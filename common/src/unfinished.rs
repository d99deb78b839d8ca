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

/// How the source of the tmpfs in mountinfo begins. The options of the restore follow.
const SOURCE: &str = "autofs-cr-parking";

/// The source of the autofs mounts in it, whose only use is that each keeps a pipe of a master open.
pub const PIPE_SOURCE: &str = "autofs-cr-pipe";

/// The file in it that has the image, for a user who has lost it.
pub const IMAGE: &str = "image.yaml";

/// The source of the tmpfs of a restore with these options.
pub fn source(options: &[String]) -> String {
    std::iter::once(SOURCE).chain(options.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}

/// The options of the restore that such a tmpfs or a cover of it is from; none if it is neither.
fn options(line: &mountinfo::Line<'_>) -> Option<Vec<String>> {
    let source = unescape(line.source);
    let mut words = source.split(|&byte| byte == b' ');
    words.next().filter(|first| *first == SOURCE.as_bytes())?;
    // Whoever may mount can choose a source, and these are shown to a user.
    let is_option =
        |word: &&[u8]| word.iter().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'-' | b'='));
    let words = words.filter(is_option).filter_map(|word| String::from_utf8(word.to_vec()).ok());
    Some(words.filter(|word| word.starts_with("--")).collect())
}

/// The options of the restore whose work place this is.
pub fn options_of(work_place: &mountinfo::Line<'_>) -> Vec<String> {
    options(work_place).unwrap_or_default()
}

/// Whether a mount is such a tmpfs.
pub fn is_work_place(line: &mountinfo::Line<'_>) -> bool {
    line.root == b"/" && options(line).is_some()
}

/// Whether a mount is an empty directory of such a tmpfs, which covers an autofs mount.
pub fn is_cover(line: &mountinfo::Line<'_>) -> bool {
    line.root != b"/" && options(line).is_some()
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
    let places = lines.iter().filter(|line| is_work_place(line) && !is_finished(line, lines));
    let unfinished = places.map(|line| Unfinished {
        work_place: TextPath::from_bytes(unescape(line.mount_point).into_owned()),
        restore: life(line),
        options: options_of(line),
    });
    unfinished.min_by_key(|unfinished| unfinished.restore)
}

/// Whether nothing is left to do in a work place but to take it away.
pub fn is_finished(work_place: &mountinfo::Line<'_>, lines: &[mountinfo::Line<'_>]) -> bool {
    work_place.is_read_only() && !lines.iter().any(|line| line.parent == work_place.id)
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

/// What to tell of a restore that has not come to its end in a namespace.
pub fn describe(namespace: &Namespace, unfinished: &Unfinished) -> String {
    let Unfinished { work_place, restore, options } = unfinished;
    let what = format!("{work_place}: an autofs-restore");
    let place = format!("in the mount namespace of process {}", namespace.process);
    let left =
        format!("and has left mounts out of their places; {}", ways_out(namespace, work_place, options));
    match restore {
        Life::AtWork => format!("{what} is at work {place}: look again when it has ended"),
        Life::Killed => format!("{what} was killed {place} {left}"),
        Life::Unknown => format!("{what} is at work {place}, or was killed {left}"),
    }
}

/// How a restore that was killed is brought to its end, and how it is undone.
fn ways_out(namespace: &Namespace, work_place: &TextPath, options: &[String]) -> String {
    let process = namespace.process;
    let root = if process == Pid::this() { String::new() } else { format!("/proc/{process}/root") };
    let image = [root.as_bytes(), work_place.as_bytes(), b"/", IMAGE.as_bytes()].concat();
    let image = shell_word(&image);
    let words = std::iter::once(&*image).chain(options.iter().map(String::as_str));
    format!(
        "to finish: autofs-restore -p {process} -i {} | autofs-fixup; to go back: autofs-restore -p {process} --undo | \
        autofs-fixup",
        words.collect::<Vec<_>>().join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(source: &str) -> String {
        format!("30 20 0:41 / /run/x rw - tmpfs {source} rw")
    }

    fn options_in(source: &str) -> Option<Vec<String>> {
        let text = line(source);
        let line = mountinfo::lines(text.as_bytes()).next().expect("a line").expect(&text);
        is_work_place(&line).then(|| options_of(&line))
    }

    #[test]
    fn the_options_of_a_restore_are_in_the_source() {
        let options = ["--replace".to_owned(), "--identity=device".to_owned()];
        assert_eq!(source(&options), "autofs-cr-parking --replace --identity=device");
        assert_eq!(source(&[]), "autofs-cr-parking");
        assert_eq!(options_in("autofs-cr-parking"), Some(Vec::new()));
        assert_eq!(
            options_in(r"autofs-cr-parking\040--replace\040--identity=device").as_deref(),
            Some(&options[..])
        );
    }

    #[test]
    fn what_is_no_option_is_not_shown() {
        assert_eq!(options_in(r"autofs-cr-parking\040$(rm)\040-x\040--a;b"), Some(Vec::new()));
        assert_eq!(options_in("autofs-cr-parking2"), None);
        assert_eq!(options_in("other"), None);
    }
}
