//! What /proc says about a process that the engine works on, and access to its memory.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read};

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use super::error::{Error, Result};

/// One line of /proc/PID/maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub start: u64,
    pub end: u64,
    pub readable: bool,
    pub writable: bool,
    pub executable: bool,
    pub private: bool,
    pub name: String,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let flags = fields.next()?.as_bytes();
        Some(Self {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            readable: flags.first()? == &b'r',
            writable: flags.get(1)? == &b'w',
            executable: flags.get(2)? == &b'x',
            private: flags.get(3)? == &b'p',
            name: fields.skip(3).collect::<Vec<_>>().join(" "),
        })
    }

    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Nothing may touch it: a guard against running over a stack's end.
    pub fn is_inaccessible(&self) -> bool {
        !self.readable && !self.writable && !self.executable
    }

    pub fn size(&self) -> u64 {
        self.end - self.start
    }
}

/// The mappings of a process, in the order of their addresses.
pub(super) fn mappings(pid: Pid) -> Result<Vec<Mapping>> {
    let path = format!("/proc/{pid}/maps");
    let bytes = fs::read(&path).map_err(|error| proc_error(pid, &path, error))?;
    String::from_utf8_lossy(&bytes)
        .lines()
        .map(|line| Mapping::parse(line).ok_or_else(|| invalid(&path, line)))
        .collect()
}

/// Whether a process has begun to end: it may still hold those that it traces.
pub(super) fn is_ending(tid: i32) -> bool {
    /// PF_EXITING (linux/sched.h).
    const EXITING: u64 = 4;
    // Behind the name: state, parent, group, session, terminal, its group, flags.
    let stat = fs::read(format!("/proc/{tid}/stat")).unwrap_or_default();
    let text = String::from_utf8_lossy(&stat);
    let flags = text.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & EXITING != 0)
}

/// What /proc/PID/task/TID/status says.
#[derive(Clone, Debug)]
pub(super) struct Status {
    /// The state's letter, see proc(5).
    pub state: char,
    /// The tracer, or 0.
    pub tracer: i32,
    /// The thread's number in the innermost pid namespace that it is in.
    pub inner_tid: i32,
    /// Signals that are pending for the thread or its process: bit `n - 1` is signal `n`.
    pending: u64,
    /// Signals that the thread blocks now.
    blocked: u64,
    /// Signals that have a handler.
    caught: u64,
    /// A seccomp mode is on.
    pub seccomp: bool,
    /// The processor checks return addresses (CET).
    pub shadow_stack: bool,
}

impl Status {
    pub fn read(pid: Pid, tid: Pid) -> Result<Self> {
        let path = format!("/proc/{pid}/task/{tid}/status");
        let bytes = fs::read(&path).map_err(|error| proc_error(pid, &path, error))?;
        let text = String::from_utf8_lossy(&bytes);
        Self::parse(&text).ok_or_else(|| invalid(&path, "a field is missing"))
    }

    /// A signal is about to be delivered.
    pub fn has_deliverable_signal(&self) -> bool {
        self.pending & !self.blocked != 0
    }

    /// A handler will run as soon as the thread blocks only the signals in `mask`.
    pub fn handler_runs_with(&self, mask: u64) -> bool {
        self.pending & self.caught & !mask != 0
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let signals = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        Some(Self {
            state: field("State")?.chars().next()?,
            tracer: field("TracerPid")?.parse().ok()?,
            inner_tid: field("NSpid")?.split_ascii_whitespace().next_back()?.parse().ok()?,
            pending: signals("SigPnd")? | signals("ShdPnd")?,
            blocked: signals("SigBlk")?,
            caught: signals("SigCgt")?,
            seccomp: field("Seccomp").is_some_and(|mode| mode != "0"),
            shadow_stack: field("x86_Thread_features")
                .is_some_and(|features| features.split_ascii_whitespace().any(|name| name == "shstk")),
        })
    }
}

/// Whether a process runs a program with addresses of 32 bits; false where that cannot be seen. Its file would say so
/// too, but may be on a server that does not answer.
pub(super) fn is_32_bit(pid: Pid) -> bool {
    // Pairs of a type, which is a small number, and a value that is not zero, of half the size in such a process.
    let mut first_type = [0; size_of::<u64>()];
    let read =
        fs::File::open(format!("/proc/{pid}/auxv")).and_then(|mut file| file.read_exact(&mut first_type));
    read.is_ok() && u32::try_from(u64::from_ne_bytes(first_type)).is_err()
}

/// The kernel function that a thread sleeps in; empty if it does not, or that is not to be seen.
pub(super) fn sleeps_in(pid: Pid, tid: Pid) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan")).unwrap_or_default();
    if name == "0" { String::new() } else { name }
}

/// The threads of a process.
pub(super) fn threads(pid: Pid) -> Result<Vec<Pid>> {
    let path = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&path).map_err(|error| proc_error(pid, &path, error))?;
    let mut threads = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| proc_error(pid, &path, error))?;
        threads.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw));
    }
    threads.sort();
    Ok(threads)
}

/// How many threads a process has; one that has ended counts until it is reaped.
pub(super) fn thread_count(pid: Pid) -> Result<usize> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|error| proc_error(pid, &path, error))?;
    let count = text.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok());
    count.ok_or_else(|| invalid(&path, "no line for threads"))
}

/// How many more descriptors a process may open: its soft limit less those that are open.
pub(super) fn free_descriptors(pid: Pid) -> Result<usize> {
    let path = format!("/proc/{pid}/limits");
    let text = fs::read_to_string(&path).map_err(|error| proc_error(pid, &path, error))?;
    let limit = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_ascii_whitespace().next())
        .ok_or_else(|| invalid(&path, "no line for open files"))?;
    let limit = if limit == "unlimited" {
        usize::MAX
    } else {
        limit.parse::<usize>().map_err(|_| invalid(&path, limit))?
    };
    let path = format!("/proc/{pid}/fd");
    let below = fs::read_dir(&path)
        .map_err(|error| proc_error(pid, &path, error))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<usize>().ok())
        .filter(|number| *number < limit)
        .count();
    Ok(limit - below)
}

/// The memory of another process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory(pub Pid);

impl Memory {
    /// Fills `buffer` from `address`; a short read is EFAULT.
    pub fn read(self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let remote = [RemoteIoVec { base: address as usize, len: buffer.len() }];
        let wanted = buffer.len();
        let read = process_vm_readv(self.0, &mut [IoSliceMut::new(buffer)], &remote)?;
        if read == wanted { Ok(()) } else { Err(nix::errno::Errno::EFAULT.into()) }
    }

    /// Writes all of `bytes` at `address`; the kernel respects the mapping's protection.
    pub fn write(self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let remote = [RemoteIoVec { base: address as usize, len: bytes.len() }];
        let written = process_vm_writev(self.0, &[IoSlice::new(bytes)], &remote)?;
        if written == bytes.len() { Ok(()) } else { Err(nix::errno::Errno::EFAULT.into()) }
    }
}

fn invalid(path: &str, what: &str) -> Error {
    Error::Proc { path: path.to_owned(), source: io::Error::new(io::ErrorKind::InvalidData, what.to_owned()) }
}

/// A file of a process that is gone is missing, or fails with ESRCH.
fn proc_error(pid: Pid, path: &str, source: io::Error) -> Error {
    let gone = source.kind() == io::ErrorKind::NotFound
        || source.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32);
    if gone { Error::Gone { pid: pid.as_raw() } } else { Error::Proc { path: path.to_owned(), source } }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read() {
        let stack =
            Mapping::parse("7ffd1000-7ffd5000 rw-p 00000000 00:00 0                          [stack]")
                .unwrap();
        assert_eq!((stack.start, stack.end, stack.name.as_str()), (0x7ffd_1000, 0x7ffd_5000, "[stack]"));
        assert!(stack.readable && stack.writable && stack.private && !stack.executable);
        let guard = Mapping::parse("7f00-7f01 ---p 00000000 00:00 0 ").unwrap();
        assert!(guard.is_inaccessible() && guard.name.is_empty());
        assert!(Mapping::parse("nonsense").is_none());
    }

    #[test]
    fn the_status_of_this_thread_is_read() {
        let pid = nix::unistd::getpid();
        let status = Status::read(pid, nix::unistd::gettid()).unwrap();
        assert_eq!((status.state, status.tracer), ('R', 0));
    }

    #[test]
    fn a_process_that_is_gone_is_said_to_be_gone() {
        let nobody = Pid::from_raw(i32::MAX);
        assert!(matches!(mappings(nobody), Err(Error::Gone { .. })));
        assert!(matches!(Status::read(nobody, nobody), Err(Error::Gone { .. })));
    }
}
