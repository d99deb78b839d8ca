//! What the seccomp filters of a thread say to system calls that it is to make: asked before it makes any, as
//! many filters end the process for a call that they do not know.

use autofs_cr_common::sys::ptrace as requests;
use libc::sock_filter;
use nix::errno::Errno;
use nix::unistd::Pid;

use super::bpf::{self, Word};

/// A system call that a filter is asked about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub name: &'static str,
    pub number: i64,
    /// None for those that are not known before: addresses and descriptors.
    pub arguments: [Option<u64>; 6],
}

/// What filters do with a call; the worst of all counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// It is made.
    Allowed,
    /// It fails.
    Refused,
    /// It ends the thread or its process, another process decides, or it cannot be told.
    Deadly,
}

/// The filters of a thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters(Vec<Vec<sock_filter>>);

impl Filters {
    /// Those of a stopped thread with a seccomp mode; the error is the reason why they are not known.
    pub fn of(tid: Pid) -> Result<Self, String> {
        let mut programs = Vec::new();
        loop {
            match requests::seccomp_filter(tid, programs.len()) {
                Ok(Some(program)) => programs.push(program),
                Ok(None) => return Ok(Self(programs)),
                Err(error) => return Err(unknown(&error)),
            }
        }
    }

    /// What they do with a call.
    pub fn verdict(&self, call: &Asked) -> Verdict {
        let verdict = |program: &Vec<sock_filter>| {
            let results = bpf::results(program, |offset| call.word(offset));
            results.map_or(Verdict::Deadly, |results| worst(&results))
        };
        self.0.iter().map(verdict).max().unwrap_or(Verdict::Allowed)
    }
}

fn worst(results: &[Word]) -> Verdict {
    results.iter().map(|result| result.map_or(Verdict::Deadly, of_action)).max().unwrap_or(Verdict::Deadly)
}

fn of_action(result: u32) -> Verdict {
    match result & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG => Verdict::Allowed,
        // Without a tracer that listens for it the call fails.
        libc::SECCOMP_RET_ERRNO | libc::SECCOMP_RET_TRACE => Verdict::Refused,
        _ => Verdict::Deadly,
    }
}

impl Asked {
    /// A word of `struct seccomp_data` (linux/seccomp.h): number, architecture, address of the code (8 bytes), six
    /// arguments of 8 bytes.
    fn word(&self, offset: u32) -> Word {
        const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
        match offset {
            0 => Some(self.number as u32),
            4 => Some(AUDIT_ARCH_X86_64),
            16.. => {
                let argument = (*self.arguments.get((offset as usize - 16) / 8)?)?;
                Some(if offset % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 })
            }
            _ => None,
        }
    }
}

fn unknown(error: &std::io::Error) -> String {
    let why = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES) => {
            "this needs CAP_SYS_ADMIN in the initial user namespace, and that autofs-fixup itself has no seccomp filter"
        }
        Some(Errno::EINVAL) => {
            "it is in seccomp's strict mode, or the kernel was built without CONFIG_CHECKPOINT_RESTORE"
        }
        _ => return format!("has seccomp filters that cannot be read: {error}"),
    };
    format!("has seccomp filters that cannot be read: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
        sock_filter { code: code as u16, jt, jf, k }
    }

    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

    fn asked(number: i64, arguments: [Option<u64>; 6]) -> Asked {
        Asked { name: "call", number, arguments }
    }

    /// Allows `close`, and `ioctl` but with one request; all else ends the process.
    fn filter() -> Filters {
        Filters(vec![vec![
            instruction(LOAD, 0, 0, 4),
            instruction(EQUAL, 0, 6, 0xc000_003e),
            instruction(LOAD, 0, 0, 0),
            instruction(EQUAL, 3, 0, libc::SYS_close as u32),
            instruction(EQUAL, 0, 3, libc::SYS_ioctl as u32),
            instruction(LOAD, 0, 0, 24),
            instruction(EQUAL, 2, 0, libc::TIOCSTI as u32),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | 1),
        ]])
    }

    #[test]
    fn an_argument_that_is_known_decides() {
        let request = |request: Option<u64>| {
            filter().verdict(&asked(libc::SYS_ioctl, [None, request, None, None, None, None]))
        };
        assert_eq!(filter().verdict(&asked(libc::SYS_close, [None; 6])), Verdict::Allowed);
        assert_eq!(filter().verdict(&asked(libc::SYS_read, [None; 6])), Verdict::Deadly);
        assert_eq!(request(Some(0x1234)), Verdict::Allowed);
        assert_eq!(request(Some(libc::TIOCSTI)), Verdict::Refused);
    }

    #[test]
    fn of_an_argument_that_is_not_known_the_worst_is_taken() {
        assert_eq!(filter().verdict(&asked(libc::SYS_ioctl, [None; 6])), Verdict::Refused);
    }

    #[test]
    fn of_several_filters_the_worst_counts() {
        let mut two = filter();
        two.0.push(vec![instruction(RETURN, 0, 0, libc::SECCOMP_RET_TRACE)]);
        assert_eq!(two.verdict(&asked(libc::SYS_close, [None; 6])), Verdict::Refused);
        two.0.push(vec![instruction(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF)]);
        assert_eq!(two.verdict(&asked(libc::SYS_close, [None; 6])), Verdict::Deadly);
        assert_eq!(Filters::default().verdict(&asked(libc::SYS_read, [None; 6])), Verdict::Allowed);
    }
}
