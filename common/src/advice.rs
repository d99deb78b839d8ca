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

/// The command that frees a hung mount in the mount namespace of a process.
pub fn free(process: Option<Pid>, mount_point: &TextPath) -> String {
    let option =
        process.filter(|pid| *pid != Pid::this()).map(|pid| format!("-p {pid} ")).unwrap_or_default();
    format!("autofs-fixup --free {option}{}", shell_word(&mount_point.to_string_lossy()))
}

/// A word as the shell reads it as one: in quotes if it needs them.
pub fn shell_word(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/_.,:=+@%-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
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
        ] {
            assert_eq!(shell_word(word), shown);
        }
    }

    #[test]
    fn commands_for_other_namespaces_name_the_process() {
        let place = TextPath::from_bytes(b"/a b".to_vec());
        let other = Pid::new(1).filter(|pid| *pid != Pid::this());
        assert_eq!(free(other, &place), "autofs-fixup --free -p 1 '/a b'");
        assert_eq!(free(Some(Pid::this()), &place), "autofs-fixup --free '/a b'");
        assert_eq!(at(other, "systemctl restart x"), "nsenter -t 1 -a systemctl restart x");
        assert_eq!(at(None, "true"), "true");
    }
}
