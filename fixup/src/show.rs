//! What is said to people.

use std::fmt::Write;

use autofs_cr_common::cli::count;
use autofs_cr_common::doc::image::End;
use autofs_cr_common::segment::{Master, Segment, VARIABLE};

/// A word that can be given to a shell.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.escape_debug().to_string().replace('\'', "'\\''"))
}

/// How a master that is not there yet is started.
pub fn absent(segment: &Segment, master: usize, name: Option<&str>) -> String {
    let id = quoted(&segment.masters()[master].id);
    let variable = name.map(|name| format!("{VARIABLE}={name} ")).unwrap_or_default();
    format!(
        "master {id} is not there yet (it has {} to serve): start it with {variable}autofs-fixup --master {id} \
        --exec -- CMD",
        count(segment.superblocks_of(master).count(), "mount")
    )
}

/// A master, by its id and its process.
pub fn master(master: &Master) -> String {
    let process = master.process.map(|process| format!(" (process {})", process.pid));
    format!("master {}{}", quoted(&master.id), process.unwrap_or_default())
}

/// The masters of a segment.
pub fn masters(segment: &Segment) -> String {
    let described: Vec<String> = segment
        .masters()
        .iter()
        .map(|master| match master.process {
            Some(process) => format!("{} (process {})", quoted(&master.id), process.pid),
            None => format!("{} (not there yet)", quoted(&master.id)),
        })
        .collect();
    match described.as_slice() {
        [] => "it has no masters".to_owned(),
        [one] => format!("its only master is {one}"),
        all => format!("its masters are {}", all.join(", ")),
    }
}

/// What would be done for a master, a line for each superblock.
pub fn plan(segment: &Segment, master: usize) -> String {
    let described = &segment.masters()[master];
    let process = described.process.map(|process| format!(" (process {})", process.pid)).unwrap_or_default();
    let mut text = String::new();
    for (index, superblock) in segment.superblocks_of(master) {
        let pipe = &described.pipes[superblock.pipe];
        let progress =
            segment.progress(index).map_or_else(|error| error.to_string(), |found| found.to_string());
        let _ = write!(
            text,
            "connect {} {} {} to {}{process} by pipe {}",
            superblock.mount_type,
            superblock.mount_point,
            superblock.device,
            quoted(&described.id),
            pipe.read_end.fd
        );
        let numbers: Vec<String> =
            superblock.control_fds.iter().map(|end: &End| end.fd.to_string()).collect();
        if !numbers.is_empty() {
            let _ = write!(text, ", control fd {}", numbers.join(", "));
        }
        let _ = writeln!(text, "; it is {progress} now");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("automount-12"), "automount-12");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("a\nb"), "'a\\nb'");
        assert_eq!(quoted(""), "''");
    }
}
