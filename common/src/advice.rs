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

/// A word as the shell reads it as one: in quotes if it needs them. What cannot be shown is written as `$'\OOO'`, which
/// POSIX has since 2024, and most shells longer. In octal, as that ends after three digits: how many digits `\xHH` has if
/// one more follows depends on the shell.
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
            _ => escaped.push_str(&format!("\\{byte:03o}")),
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
            ("a\nb'\\", r"$'a\012b\'\\'"),
        ] {
            assert_eq!(shell_word(word.as_bytes()), shown);
        }
        assert_eq!(shell_word(b"/\xff a"), r"$'/\377 a'");
    }

    #[test]
    fn a_shell_reads_every_word_as_it_was() {
        arbtest::arbtest(|u| {
            let words: Vec<Vec<u8>> = u.arbitrary()?;
            let words: Vec<_> = words.into_iter().map(|word| [&word[..], b"0"].concat()).collect();
            let words: Vec<_> = words.into_iter().filter(|word| !word.contains(&0)).collect();
            let shown: Vec<_> = words.iter().map(|word| shell_word(word)).collect();
            assert!(!shown.iter().any(|word| word.contains(char::is_control)), "{shown:?}");
            let script = format!("printf '%s\\0' {}", shown.join(" "));
            let read = std::process::Command::new("bash").args(["-c", &script]).output().expect("bash");
            let expected: Vec<u8> = if words.is_empty() { vec![0] } else { joined(&words) };
            assert_eq!(read.stdout, expected, "{script}");
            Ok(())
        });
    }

    fn joined(words: &[Vec<u8>]) -> Vec<u8> {
        words.iter().flat_map(|word| word.iter().copied().chain([0])).collect()
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
