//! The commands that messages tell a user to type next.

use std::borrow::Cow;

use crate::model::{Pid, TextPath};

/// `command`, for where process `at` is: as it is for this process.
pub fn at(process: Option<Pid>, command: &str) -> String {
    match process.filter(|pid| *pid != Pid::this()) {
        Some(pid) => format!("nsenter -t {pid} -a {command}"),
        None => command.to_owned(),
    }
}

/// The command that frees hung mounts in the mount namespace of a process: these, or without any all whose master is
/// gone.
pub fn free(process: Option<Pid>, mount_points: &[&TextPath]) -> String {
    let mut command = "autofs-fixup --free".to_owned();
    if let Some(pid) = process.filter(|pid| *pid != Pid::this()) {
        command.push_str(&format!(" -p {pid}"));
    }
    for mount_point in mount_points {
        command.push(' ');
        command.push_str(&shell_word(mount_point.as_bytes()));
    }
    command
}

/// A word as the shell reads it as one: in quotes if it needs them. What cannot be shown is written as `$'\xHH'`, which
/// POSIX has since 2024, and most shells longer.
pub fn shell_word(word: &[u8]) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/_.,:=+@%-".contains(c);
    match std::str::from_utf8(word) {
        Ok(text) if !text.is_empty() && text.chars().all(is_plain) => Cow::Borrowed(text),
        Ok(text) if !text.contains(char::is_control) => {
            Cow::Owned(format!("'{}'", text.replace('\'', r"'\''")))
        }
        _ => Cow::Owned(format!("$'{}'", escape(word))),
    }
}

fn escape(word: &[u8]) -> String {
    let mut escaped = String::new();
    for &byte in word {
        match byte {
            b'\'' | b'\\' => escaped.extend(['\\', byte.into()]),
            b' '..=b'~' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("\\x{byte:02x}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_in_the_shell() {
        for (word, shown) in [
            ("/net/a-b_c.d", "/net/a-b_c.d"),
            ("", "''"),
            ("/a b", "'/a b'"),
            ("it's", r"'it'\''s'"),
            (r"a\x2db", r"'a\x2db'"),
            ("$(x)", "'$(x)'"),
            ("größe", "'größe'"),
            ("a\nb'\\", r"$'a\x0ab\'\\'"),
        ] {
            assert_eq!(shell_word(word.as_bytes()), shown);
        }
        assert_eq!(shell_word(b"/\xff a"), r"$'/\xff a'");
    }

    #[test]
    fn commands_for_other_namespaces_name_the_process() {
        let place = TextPath::from_bytes(b"/a b".to_vec());
        let other = Pid::new(1).filter(|pid| *pid != Pid::this());
        assert_eq!(free(other, &[&place]), "autofs-fixup --free -p 1 '/a b'");
        assert_eq!(free(Some(Pid::this()), &[&place, &place]), "autofs-fixup --free '/a b' '/a b'");
        assert_eq!(free(None, &[]), "autofs-fixup --free");
        assert_eq!(at(other, "systemctl restart x"), "nsenter -t 1 -a systemctl restart x");
        assert_eq!(at(None, "true"), "true");
    }
}
