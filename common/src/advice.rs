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

/// Commands for a shell, of which each is only run if the one before did not fail, for where process `at` is.
pub fn shell_at(process: Option<Pid>, commands: &str) -> String {
    at(
        process,
        &match process.filter(|pid| *pid != Pid::this()) {
            Some(_) => format!("sh -c {}", shell_word(commands.as_bytes())),
            None => commands.to_owned(),
        },
    )
}

/// Whether a command may kill who asked first, where a mount cannot be reached otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Force {
    /// It may not.
    No,
    /// It may.
    Kill,
}

/// The command that frees hung mounts in the mount namespace of a process: these, or without any all whose master is
/// gone.
pub fn free(process: Option<Pid>, force: Force, mount_points: &[&TextPath]) -> String {
    let mut command = "autofs-fixup --free".to_owned();
    if force == Force::Kill {
        command.push_str(" --kill");
    }
    if let Some(pid) = process.filter(|pid| *pid != Pid::this()) {
        command.push_str(&format!(" -p {pid}"));
    }
    for mount_point in mount_points {
        command.push(' ');
        command.push_str(&shell_word(mount_point.as_bytes()));
    }
    command
}

/// A word as the shell reads it as one: in quotes if it needs them. What cannot be shown is written by printf(1), which every
/// shell has had for long; `$'\OOO'` is younger. In octal, as that ends after three digits.
pub fn shell_word(word: &[u8]) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/_.,:=+@%-".contains(c);
    match std::str::from_utf8(word) {
        Ok(text) if !text.is_empty() && text.chars().all(is_plain) => Cow::Borrowed(text),
        Ok(text) if !text.contains(char::is_control) => {
            Cow::Owned(format!("'{}'", text.replace('\'', r"'\''")))
        }
        // The shell takes away newlines at the end of what a command writes. A path with a slash behind it is the same path.
        _ if word.ends_with(b"\n") => Cow::Owned(format!("\"$(printf '{}/')\"", escape(word))),
        _ => Cow::Owned(format!("\"$(printf '{}')\"", escape(word))),
    }
}

/// As the format of printf(1), between single quotes.
fn escape(word: &[u8]) -> String {
    let mut escaped = String::new();
    for (at, &byte) in word.iter().enumerate() {
        match byte {
            // It would begin an option.
            b'-' if at == 0 => escaped.push_str("\\055"),
            b'%' => escaped.push_str("%%"),
            b'\\' => escaped.push_str("\\\\"),
            b'\'' => escaped.push_str("\\047"),
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
            ("a\nb'\\%", r#""$(printf 'a\012b\047\\%%')""#),
            ("a\n", r#""$(printf 'a\012/')""#),
        ] {
            assert_eq!(shell_word(word.as_bytes()), shown);
        }
        assert_eq!(shell_word(b"/\xff a"), r#""$(printf '/\377 a')""#);
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
            let read = std::process::Command::new("sh").args(["-c", &script]).output().expect("sh");
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
        assert_eq!(free(other, Force::No, &[&place]), "autofs-fixup --free -p 1 '/a b'");
        let own = Some(Pid::this());
        assert_eq!(free(own, Force::Kill, &[&place, &place]), "autofs-fixup --free --kill '/a b' '/a b'");
        assert_eq!(free(None, Force::No, &[]), "autofs-fixup --free");
        assert_eq!(shell_at(other, "a && b"), "nsenter -t 1 -a sh -c 'a && b'");
        assert_eq!(shell_at(None, "a && b"), "a && b");
        assert_eq!(at(other, "systemctl restart x"), "nsenter -t 1 -a systemctl restart x");
        assert_eq!(at(None, "true"), "true");
    }
}
