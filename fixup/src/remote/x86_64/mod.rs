//! The chain for x86_64.
//!
//! A link of the chain is a signal frame (`struct rt_sigframe` of the kernel: a return address, then a
//! `struct ucontext`). rt_sigreturn loads all registers from it, so that the thread makes one system
//! call with `syscall; ret`, and `ret` goes to the return address of the next link, which is again
//! a call of rt_sigreturn. Nothing but the process's own code is executed, and nothing but dead stack
//! space is written.
//!
//! ```text
//! rsp - 128 (red zone) ->  +--------------------------------------+
//!                          | room for the rest of a batch         |
//!                          | GATE: close(socket), then RESTORE    |  <- a batch is received to here
//!                          | message header, control buffer       |
//!                          | pristine copy of the two above       |
//!                          | vectors, numbers of the sockets      |
//!                          | RESTORE: the registers, mask, FPU    |
//!                          | RECEIVE: recvmsg(socket)             |
//!                          | close(other socket)                  |
//!                          | copy the sockets' numbers into place |
//! start of the chain   ->  | socketpair                           |
//!                          +--------------------------------------+
//! ```
//!
//! No descriptor number is guessed: socketpair and recvmsg write the numbers into memory, and the
//! process copies them (process_vm_readv on itself) to where the links need them. Every such place
//! holds -1 before, so that a call whose descriptor did not come fails. A batch is one message: it
//! is there as a whole or not at all. When the engine dies, recvmsg sees the end of file, the gate is as
//! it was, and the chain ends. A batch ends with a report to the engine, the pristine copy put back, and a
//! jump to RECEIVE. What a call opens is sent to the engine and closed at once, by links of the same batch.

mod calls;
mod chain;
mod encode;
mod gadgets;
mod interruption;
mod layout;
mod link;
mod spot;
mod stack;
mod xstate;

use nix::sys::ptrace;
use nix::unistd::Pid;

pub(super) use self::chain::Chain;
pub(super) use self::encode::{INDEX, encoded_size};
pub(super) use self::gadgets::Gadgets;
pub(super) use self::interruption::undo_interruption;
pub(super) use self::layout::REPORT;
pub(super) use self::spot::Spot;
use super::error::{Error, Result};

type Registers = libc::user_regs_struct;

/// The code segment of 64-bit code.
const CODE_SELECTOR_64: u64 = 0x33;
const SYSCALL_CODE: [u8; 2] = [0x0f, 0x05];
/// That XRSTOR wants; the chain keeps it as a whole.
const ALIGNMENT: u64 = 64;

/// The stack pointer of a stopped thread.
pub(super) fn stack_pointer(tid: Pid) -> Result<u64> {
    get_registers(tid).map(|registers| registers.rsp)
}

fn get_registers(tid: Pid) -> Result<Registers> {
    ptrace::getregs(tid).map_err(|error| Error::call("ptrace getregs", tid.as_raw(), error))
}

fn set_registers(tid: Pid, registers: Registers) -> Result<()> {
    ptrace::setregs(tid, registers).map_err(|error| Error::call("ptrace setregs", tid.as_raw(), error))
}
