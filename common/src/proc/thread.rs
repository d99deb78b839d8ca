//! The threads of a process, and what they wait in: /proc/PID/task and what is only of use there.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat, readlinkat};

use super::{Proc, ProcessDir, Stat, for_each_number, malformed};
use crate::doc::report::Halt;
use crate::model::Pid;

/// More than the line of `stat` needs.
const STAT_SIZE: usize = 1024;

impl Proc {
    /// The `stat` of a process by its path, for who looks at every process: it takes one open and one read.
    pub fn stat(&self, pid: Pid) -> io::Result<Stat> {
        read_stat(&self.dir, &format!("{pid}/stat"))
    }
}

impl ProcessDir {
    /// The threads of the process, by id.
    pub fn threads(&self) -> io::Result<Vec<Pid>> {
        let dir = self.open("task", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut threads = Vec::new();
        for_each_number(dir.as_fd(), |number| {
            threads.extend(Pid::new(number));
            Ok(())
        })?;
        threads.sort_unstable();
        Ok(threads)
    }

    /// The `stat` of one of its threads, in one open and one read.
    pub fn thread_stat(&self, tid: Pid) -> io::Result<Stat> {
        read_stat(&self.dir, &format!("task/{tid}/stat"))
    }

    /// The directory of one of its threads, which has the same files as that of a process.
    pub fn thread(&self, tid: Pid) -> io::Result<Self> {
        Ok(Self { dir: self.open(&format!("task/{tid}"), OFlags::PATH | OFlags::DIRECTORY)? })
    }

    /// The kernel function that a thread sleeps in; `None` if it does not sleep, or this process may not know.
    pub fn wchan(&self) -> io::Result<Option<Vec<u8>>> {
        let name = self.read("wchan", 64)?;
        Ok((!name.is_empty() && name != b"0").then_some(name))
    }

    /// What keeps a process in this state from running, if that is visible.
    pub fn halt(&self, state: u8) -> Option<Halt> {
        match state {
            b'T' => Some(Halt::Stopped),
            b't' => Some(Halt::Traced),
            // `do_freezer_trap`, which is most often a part of `get_signal` (kernel/signal.c). Nothing else sleeps there
            // but who is stopped.
            b'S' => {
                let function = self.wchan().ok().flatten()?;
                let is_frozen = [&b"get_signal"[..], b"do_freezer_trap"].contains(&&*function);
                is_frozen.then_some(Halt::Frozen)
            }
            _ => None,
        }
    }

    /// The kernel functions that a thread is in, innermost first, a line each. For root alone.
    pub fn stack(&self) -> io::Result<Vec<u8>> {
        self.read("stack", 2048)
    }

    /// The system call that a thread sleeps in; `None` if it runs, or sleeps in none.
    pub fn syscall(&self) -> io::Result<Option<Syscall>> {
        Ok(Syscall::parse(&self.read("syscall", 256)?))
    }

    /// Where its working directory is, from the root of the reader.
    pub fn cwd(&self) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.dir, "cwd", Vec::new())?.into_bytes())
    }

    /// What the link of a descriptor reads: a path from the root of the reader, or a text as `pipe:[32411]`.
    pub fn descriptor_link(&self, fd: i32) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.dir, format!("fd/{fd}"), Vec::new())?.into_bytes())
    }
}

fn read_stat(dir: impl AsFd, path: &str) -> io::Result<Stat> {
    let file = openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0_u8; STAT_SIZE];
    let length = rustix::io::read(file, &mut buffer)?;
    Stat::parse(&buffer[..length]).ok_or_else(|| malformed("stat"))
}

/// A system call, from /proc/PID/syscall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// Its number.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl Syscall {
    /// Reads the one line of the file; `None` where that says that there is no system call.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
        let number = words.next()?.parse().ok().filter(|number| *number >= 0)?;
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
        }
        Some(Self { number, arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_call_is_read() {
        let line = b"257 0xffffff9c 0x7ffd8b2a 0x80000 0x0 0x0 0x0 0x7ffd8a10 0x7f1c6e\n";
        let arguments = [0xffff_ff9c, 0x7ffd_8b2a, 0x80000, 0, 0, 0];
        assert_eq!(Syscall::parse(line), Some(Syscall { number: 257, arguments }));
        for none in ["running\n", "-1 0x7ffd8a10 0x7f1c6e\n", "", "257 0x1 0x2\n", "257 1 2 3 4 5 6 7 8\n"] {
            assert_eq!(Syscall::parse(none.as_bytes()), None, "{none}");
        }
    }
}
