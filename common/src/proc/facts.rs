//! What /proc/PID/stat and /proc/PID/status say.

use super::parse_number;
use crate::model::TextPath;

/// From /proc/PID/stat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name, which can have any byte in it, also spaces and parentheses.
    pub command: TextPath,
    /// One letter: `R`, `S`, `D`, `Z`...
    pub state: u8,
    /// The process group, for the reader; 0 or below if it is not visible.
    pub group: i32,
    /// How many threads its process has.
    pub threads: u64,
    /// When the process started, in clock ticks since boot.
    pub start_time: u64,
    /// Its flags (`PF_*` in include/linux/sched.h).
    pub flags: u64,
    /// The processor that it ran on last.
    pub processor: Option<u32>,
}

impl Stat {
    /// Reads the one line of the file.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|&byte| byte == b'(')?;
        // The name may hold the same characters, but nothing behind it does.
        let close = line.iter().rposition(|&byte| byte == b')')?;
        let command = line.get(open + 1..close)?;
        let fields: Vec<&[u8]> = line[close + 1..].trim_ascii().split(|&byte| byte == b' ').collect();
        // proc(5) counts from 1, and the first field here is number 3.
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            command: TextPath::from_bytes(command.to_vec()),
            state: *field(3)?.first()?,
            group: std::str::from_utf8(field(5)?).ok()?.parse().ok()?,
            threads: parse_number(field(20)?)?,
            start_time: parse_number(field(22)?)?,
            flags: parse_number(field(9)?)?,
            processor: field(39).and_then(parse_number).and_then(|number| u32::try_from(number).ok()),
        })
    }

    /// It has ended, and its parent has not asked for its exit code yet.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// It is a part of the kernel.
    pub fn is_kernel_thread(&self) -> bool {
        const PF_KTHREAD: u64 = 0x0020_0000;
        self.flags & PF_KTHREAD != 0
    }

    /// It waits, and only what it waits for or SIGKILL ends that.
    pub fn is_blocked(&self) -> bool {
        self.state == b'D'
    }
}

/// From /proc/PID/status: ids from the reader's pid namespace down to the process's own. In the directory of a
/// thread (/proc/PID/task/TID/status) `ids` are those of the thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The ids of the process or thread.
    pub ids: Vec<u32>,
    /// The ids of the process, in the directory of a thread too.
    pub process_ids: Vec<u32>,
    /// The ids of its process group; 0 where it is not visible.
    pub group_ids: Vec<u32>,
    /// The ids of its session; 0 where it is not visible.
    pub session_ids: Vec<u32>,
    /// The real user id, for the reader.
    pub uid: Option<u32>,
    /// The capabilities that it can use in its own user namespace: bit `n` is capability `n`.
    pub effective: Option<u64>,
}

impl Status {
    /// Reads the lines of the file.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut status = Self::default();
        for line in text.split(|&byte| byte == b'\n') {
            if let Some(value) = line.strip_prefix(b"Uid:") {
                status.uid = numbers(value)?.first().copied();
                continue;
            }
            if let Some(value) = line.strip_prefix(b"CapEff:") {
                let digits = std::str::from_utf8(value.trim_ascii()).ok()?;
                status.effective = Some(u64::from_str_radix(digits, 16).ok()?);
                continue;
            }
            let (list, value) = match line {
                [b'N', b'S', b't', b'g', b'i', b'd', b':', value @ ..] => (&mut status.process_ids, value),
                [b'N', b'S', b'p', b'i', b'd', b':', value @ ..] => (&mut status.ids, value),
                [b'N', b'S', b'p', b'g', b'i', b'd', b':', value @ ..] => (&mut status.group_ids, value),
                [b'N', b'S', b's', b'i', b'd', b':', value @ ..] => (&mut status.session_ids, value),
                _ => continue,
            };
            *list = numbers(value)?;
        }
        (!status.ids.is_empty()).then_some(status)
    }
}

fn numbers(text: &[u8]) -> Option<Vec<u32>> {
    let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.map(|word| parse_number(word).and_then(|number| u32::try_from(number).ok())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "S 1 5314 5310 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 11 12";

    #[test]
    fn a_name_with_parentheses_and_spaces_is_read() {
        let stat = Stat::parse(format!("5314 (a) S (b c) {TAIL}\n").as_bytes()).expect("valid");
        assert_eq!(stat.command.as_bytes(), b"a) S (b c");
        assert_eq!((stat.group, stat.start_time, stat.state), (5314, 98765, b'S'));
    }

    #[test]
    fn a_name_that_is_no_text_is_read() {
        let mut line = b"7 (\xff\n".to_vec();
        line.extend_from_slice(format!(") {TAIL}").as_bytes());
        assert_eq!(Stat::parse(&line).expect("valid").command.to_string(), "\\xff\\x0a");
    }

    #[test]
    fn what_is_no_stat_is_refused() {
        for line in ["", "1", "1 (x", "1 )x(", "1 (x) S 1", "1 (x) S 1 a 3 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 5"]
        {
            assert_eq!(Stat::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn status_gives_the_ids_of_every_level() {
        let text = b"Name:\tx\nUid:\t7\t0\t0\t0\nNStgid:\t8\t1\nNSpid:\t9\t2\nNSpgid:\t9\t2\nNSsid:\t4\t0\nVmPeak:\t 1 kB\n\
            CapEff:\t0000000000200001\n";
        let status = Status::parse(text).expect("valid");
        assert_eq!((status.ids, status.process_ids, status.uid), (vec![9, 2], vec![8, 1], Some(7)));
        assert_eq!((status.group_ids, status.session_ids), (vec![9, 2], vec![4, 0]));
        assert_eq!(status.effective, Some(0x20_0001));
        assert_eq!(Status::parse(b"Name:\tx\n"), None);
        assert_eq!(Status::parse(b"NSpid:\t-1\n"), None);
    }
}
