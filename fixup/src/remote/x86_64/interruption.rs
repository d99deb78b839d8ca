//! What a stop interrupted, and how a thread goes on with it.

use autofs_cr_common::sys::ptrace as requests;
use nix::unistd::Pid;

use super::super::error::{Error, Result};
use super::super::facts::{Memory, Status};
use super::{CODE_SELECTOR_64, Registers, SYSCALL_CODE, get_registers, set_registers};

// include/linux/errno.h of the kernel; user space never sees these.
const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;
const EINTR: i64 = libc::EINTR as i64;

/// What a thread was doing when it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// A system call, that has to be made again.
    Again(i64),
    /// The same, but it fails with EINTR if a signal handler runs.
    AgainUnlessHandled(i64),
    /// The same, and the registers are already such that it is made again.
    Undone,
    /// Nothing: it was in user space, or its call was over.
    Nothing,
}

/// The kernel makes these calls fail with EINTR after a mere stop, see signal(7). None has had an
/// effect when it does, so it can be made again.
const NEVER_RESTARTED: &[i64] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    libc::SYS_io_uring_enter,
    // On sockets with a timeout of their own (SO_RCVTIMEO, SO_SNDTIMEO).
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// Those that restart_syscall stands for: their timeout is kept by the kernel.
const WITH_RESTART_BLOCK: &[i64] =
    &[libc::SYS_poll, libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_futex];

/// After a stop: makes a call again that the kernel would let fail with EINTR because of it.
pub fn undo_interruption(pid: Pid, tid: Pid) -> Result<()> {
    let mut registers = get_registers(tid)?;
    let call = registers.orig_rax as i64;
    // 32-bit code has other numbers for the calls.
    if registers.cs != CODE_SELECTOR_64 || registers.rax as i64 != -EINTR || !NEVER_RESTARTED.contains(&call)
    {
        return Ok(());
    }
    if Status::read(pid, tid)?.has_deliverable_signal() || !is_after_syscall(pid, &registers) {
        return Ok(());
    }
    registers.rax = registers.orig_rax;
    registers.rip -= SYSCALL_CODE.len() as u64;
    let mask = requests::getsigmask(tid).map_err(|e| Error::call("ptrace getsigmask", tid.as_raw(), e))?;
    set_registers(tid, registers)?;
    // A signal that the call's own mask lets in must wait until the call is made again.
    requests::setsigmask(tid, mask).map_err(|e| Error::call("ptrace setsigmask", tid.as_raw(), e))
}

/// The registers with which the thread goes on in the end.
pub fn resumed(mut registers: Registers, interrupted: Interrupted) -> Registers {
    match interrupted {
        Interrupted::Again(call) | Interrupted::AgainUnlessHandled(call) => {
            registers.rax = call as u64;
            registers.rip -= SYSCALL_CODE.len() as u64;
        }
        Interrupted::Undone | Interrupted::Nothing => {}
    }
    registers
}

/// The registers with which the thread goes on if a handler runs then, where that makes a difference.
pub fn failed(mut registers: Registers, interrupted: Interrupted) -> Option<Registers> {
    match interrupted {
        Interrupted::AgainUnlessHandled(_) => {}
        Interrupted::Undone => registers.rip += SYSCALL_CODE.len() as u64,
        Interrupted::Again(_) | Interrupted::Nothing => return None,
    }
    registers.rax = -EINTR as u64;
    Some(registers)
}

/// What the stop interrupted. The kernel would make most calls again by itself, but not after the
/// registers went through a signal frame. A call with a relative timeout starts to wait anew.
pub fn interruption(pid: Pid, registers: &Registers) -> std::result::Result<Interrupted, String> {
    let (call, result) = (registers.orig_rax as i64, registers.rax as i64);
    let interrupted = match -result {
        _ if call < 0 => Interrupted::Nothing,
        _ if call == result && is_code(pid, registers.rip, &SYSCALL_CODE) => Interrupted::Undone,
        ERESTARTSYS | ERESTARTNOINTR => Interrupted::Again(call),
        ERESTART_RESTARTBLOCK if call == libc::SYS_restart_syscall => {
            Interrupted::AgainUnlessHandled(first_call(pid, registers)?)
        }
        ERESTARTNOHAND | ERESTART_RESTARTBLOCK => Interrupted::AgainUnlessHandled(call),
        _ => Interrupted::Nothing,
    };
    let again = matches!(interrupted, Interrupted::Again(_) | Interrupted::AgainUnlessHandled(_));
    if again && !is_after_syscall(pid, registers) {
        return Err("made its system call in an unknown way".to_owned());
    }
    Ok(interrupted)
}

/// The call that restart_syscall stands for. The kernel does not tell; the code before the call does
/// if it is `mov $number, %eax; syscall`.
fn first_call(pid: Pid, registers: &Registers) -> std::result::Result<i64, String> {
    const MOV_EAX: u8 = 0xb8;
    let mut code = [0u8; 7];
    let known = Memory(pid)
        .read(registers.rip - code.len() as u64, &mut code)
        .is_ok()
        .then(|| i64::from(u32::from_le_bytes([code[1], code[2], code[3], code[4]])))
        .filter(|number| code[0] == MOV_EAX && WITH_RESTART_BLOCK.contains(number));
    known.ok_or_else(|| "is in a call that was already interrupted once".to_owned())
}

fn is_after_syscall(pid: Pid, registers: &Registers) -> bool {
    is_code(pid, registers.rip.wrapping_sub(SYSCALL_CODE.len() as u64), &SYSCALL_CODE)
}

fn is_code(pid: Pid, address: u64, wanted: &[u8]) -> bool {
    let mut code = vec![0; wanted.len()];
    Memory(pid).read(address, &mut code).is_ok() && code == wanted
}
