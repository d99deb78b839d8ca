//! The pieces of the process's own code that the chain is made of.

use autofs_cr_common::sys::ptrace as requests;
use nix::unistd::Pid;

use super::super::error::{Error, Result};
use super::super::facts::{Mapping, Memory};
use super::get_registers;

/// `mov $15, %rax; syscall` and `mov $15, %eax; syscall`: what a signal handler returns to.
const SIGRETURN_CODE: [&[u8]; 2] =
    [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];
const SYSCALL_RET_CODE: &[u8] = &[0x0f, 0x05, 0xc3];

/// Code of the process that the chain uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gadgets {
    pub syscall_ret: u64,
    pub sigreturn: u64,
}

impl Gadgets {
    /// Looks through the process's code. That of the C library has both, and the program's own can be much larger: the
    /// process is stopped meanwhile.
    pub fn find(pid: Pid, mappings: &[Mapping]) -> Result<Self> {
        let (mut syscall_ret, mut sigreturn) = (None, None);
        let code = |mapping: &&Mapping| {
            mapping.executable && mapping.readable && !mapping.writable && !mapping.name.is_empty()
        };
        let code = mappings.iter().filter(code).filter(|mapping| mapping.name != "[vsyscall]");
        let (library, others): (Vec<&Mapping>, Vec<&Mapping>) =
            code.partition(|mapping| is_c_library(mapping));
        for mapping in library.into_iter().chain(others) {
            for (address, bytes) in pieces(pid, mapping) {
                let find = |what: &[u8]| memchr::memmem::find(&bytes, what).map(|at| address + at as u64);
                syscall_ret = syscall_ret.or_else(|| find(SYSCALL_RET_CODE));
                sigreturn = sigreturn.or_else(|| SIGRETURN_CODE.into_iter().find_map(find));
                if let (Some(syscall_ret), Some(sigreturn)) = (syscall_ret, sigreturn) {
                    return Ok(Self { syscall_ret, sigreturn });
                }
            }
        }
        let missing = if syscall_ret.is_none() { "syscall; ret" } else { "a call of rt_sigreturn" };
        Err(unsuitable(pid, format!("its code has no place that does `{missing}`")))
    }
}

impl Gadgets {
    /// Whether a stopped thread is inside a chain that another engine has started: then it blocks all signals, is at one of
    /// these places, and its stack pointer is at the next link, or behind the beginning of this one. A thread
    /// that returns from a handler of a signal can look the same for an instant.
    pub fn runs_chain(self, pid: Pid, tid: Pid) -> Result<bool> {
        /// SIGKILL and SIGSTOP cannot be blocked.
        const ALL_SIGNALS: u64 = !(1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1));
        let call = |operation, error| Error::call(operation, tid.as_raw(), error);
        let mask = requests::getsigmask(tid).map_err(|error| call("ptrace getsigmask", error))?;
        if mask & ALL_SIGNALS != ALL_SIGNALS {
            return Ok(false);
        }
        let registers = get_registers(tid)?;
        let is_near = |place: u64, length: usize| (place..=place + length as u64).contains(&registers.rip);
        if !is_near(self.syscall_ret, SYSCALL_RET_CODE.len())
            && !is_near(self.sigreturn, SIGRETURN_CODE[0].len())
        {
            return Ok(false);
        }
        let mut words = [0; 16];
        let read = Memory(pid).read(registers.rsp.wrapping_sub(8), &mut words);
        Ok(read.is_ok() && words.chunks(8).any(|word| word == self.sigreturn.to_ne_bytes()))
    }
}

fn is_c_library(mapping: &Mapping) -> bool {
    let file = mapping.name.rsplit('/').next().unwrap_or_default();
    ["libc.", "libc-", "ld-musl-"].iter().any(|start| file.starts_with(start))
}

/// The code of a mapping in pieces that overlap, without those that cannot be read.
fn pieces(pid: Pid, mapping: &Mapping) -> impl Iterator<Item = (u64, Vec<u8>)> {
    /// What a piece has of the next one, so that nothing is cut in two.
    const OVERLAP: u64 = 16;
    let end = mapping.end;
    (mapping.start..end).step_by(PIECE).filter_map(move |start| {
        let mut bytes = vec![0; (end.min(start + PIECE as u64 + OVERLAP) - start) as usize];
        Memory(pid).read(start, &mut bytes).ok().map(|()| (start, bytes))
    })
}

/// How much code is read at once, in bytes.
const PIECE: usize = 64 * 1024;

fn unsuitable(pid: Pid, reason: String) -> Error {
    Error::Unsuitable { pid: pid.as_raw(), reason }
}
