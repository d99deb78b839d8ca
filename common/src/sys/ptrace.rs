//! The ptrace requests that nix does not wrap, and what the processor says about its extended state.
//! All of them need the calling thread to be the tracer and the other thread to be stopped.

use std::io;

use nix::errno::Errno;
use nix::unistd::Pid;

const PTRACE_GETREGSET: libc::c_int = 0x4204;
const PTRACE_GETSIGMASK: libc::c_int = 0x420a;
const PTRACE_SETSIGMASK: libc::c_int = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: libc::c_int = 0x420c;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_int = 0x420f;

const NT_X86_XSTATE: usize = 0x202;

/// `PTRACE_O_SUSPEND_SECCOMP`: the tracee's seccomp filters are off while it is traced. Needs
/// CAP_SYS_ADMIN in the initial user namespace and a kernel with CONFIG_CHECKPOINT_RESTORE.
pub const O_SUSPEND_SECCOMP: libc::c_int = 1 << 21;

/// The size of the kernel's signal set, in bytes: 64 signals.
const SIGNAL_SET_SIZE: usize = size_of::<u64>();

/// More than the extended state of any processor today (11 KiB with AMX).
const XSTATE_CAPACITY: usize = 64 * 1024;

/// The signals that a thread blocks: bit `n - 1` is signal `n`. For a thread that is inside a call
/// with a mask of its own (ppoll, sigsuspend) it is the mask that the call puts back.
pub fn getsigmask(tid: Pid) -> io::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: the kernel writes SIGNAL_SET_SIZE bytes, the size of `mask`, which outlives the call.
    let result =
        unsafe { libc::ptrace(PTRACE_GETSIGMASK as _, tid.as_raw(), SIGNAL_SET_SIZE, &raw mut mask) };
    Errno::result(result)?;
    Ok(mask)
}

/// Sets the signals that a thread blocks; a mask that its interrupted call would put back is forgotten.
pub fn setsigmask(tid: Pid, mask: u64) -> io::Result<()> {
    // SAFETY: the kernel reads SIGNAL_SET_SIZE bytes, the size of `mask`, which outlives the call.
    let result =
        unsafe { libc::ptrace(PTRACE_SETSIGMASK as _, tid.as_raw(), SIGNAL_SET_SIZE, &raw const mask) };
    Errno::result(result)?;
    Ok(())
}

/// The extended state (x87, SSE, AVX and so on) of a thread, as the standard form of XSAVE.
/// EINVAL or ENODEV on a processor without it.
pub fn getregset_xstate(tid: Pid) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; XSTATE_CAPACITY];
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the kernel writes at most `iov_len` bytes to `iov_base`, which is all of `buffer`, and
    // then changes `iov_len`; both outlive the call.
    let result = unsafe { libc::ptrace(PTRACE_GETREGSET as _, tid.as_raw(), NT_X86_XSTATE, &raw mut vector) };
    Errno::result(result)?;
    buffer.truncate(vector.iov_len);
    Ok(buffer)
}

/// The address of a thread's `struct rseq`, or none if it has not registered one. EIO on kernels
/// without restartable sequences or older than 5.13.
pub fn rseq_address(tid: Pid) -> io::Result<Option<u64>> {
    // struct ptrace_rseq_configuration: pointer (8), size (4), signature (4), flags (4), pad (4).
    let mut configuration = [0u64; 3];
    let size = size_of_val(&configuration);
    // SAFETY: the kernel writes at most `size` bytes, the size of `configuration`.
    let result = unsafe {
        libc::ptrace(PTRACE_GET_RSEQ_CONFIGURATION as _, tid.as_raw(), size, configuration.as_mut_ptr())
    };
    Errno::result(result)?;
    Ok((configuration[0] != 0).then_some(configuration[0]))
}

/// The most instructions of a seccomp filter (BPF_MAXINSNS).
const MOST_INSTRUCTIONS: usize = 4096;

/// A seccomp filter of a thread, as it was installed; none if it does not have so many. EACCES without CAP_SYS_ADMIN
/// or for a tracer that has a filter itself, EINVAL in strict mode and on kernels without CONFIG_CHECKPOINT_RESTORE.
pub fn seccomp_filter(tid: Pid, index: usize) -> io::Result<Option<Vec<libc::sock_filter>>> {
    let empty = libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
    let mut program = vec![empty; MOST_INSTRUCTIONS];
    // SAFETY: the kernel writes one filter, which has at most MOST_INSTRUCTIONS instructions: the size of `program`.
    let result =
        unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER as _, tid.as_raw(), index, program.as_mut_ptr()) };
    match Errno::result(result) {
        Ok(count) => {
            program.truncate(count as usize);
            Ok(Some(program))
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where the standard form of XSAVE keeps component `number` (2 to 62): offset and size in bytes.
/// None if the processor does not have it.
#[cfg(target_arch = "x86_64")]
pub fn xstate_component(number: u32) -> Option<(usize, usize)> {
    const XSTATE_LEAF: u32 = 0xd;
    // Newer compilers have this function as a safe one.
    #[allow(unused_unsafe)]
    // SAFETY: every x86_64 processor has the CPUID instruction; an unknown leaf gives zeroes or
    // another leaf's data, never a fault.
    let (highest, leaf) =
        unsafe { (std::arch::x86_64::__cpuid(0).eax, std::arch::x86_64::__cpuid_count(XSTATE_LEAF, number)) };
    (highest >= XSTATE_LEAF && leaf.eax != 0).then_some((leaf.ebx as usize, leaf.eax as usize))
}
