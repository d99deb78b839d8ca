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
//! jump to RECEIVE.

use std::io;

use autofs_cr_common::sys::ptrace as requests;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::batch::{Argument, Batch, Call, Descriptor};
use super::error::{Error, Result};
use super::facts::{Mapping, Memory, Status};

/// The most descriptors that one batch brings. The kernel's limit for one message is 253 (SCM_MAX_FD).
pub(super) const MOST_DESCRIPTORS: usize = 250;

/// The most room that the chain takes, in bytes; a larger message does not fit a socket's buffer.
const MOST_ROOM: u64 = 128 * 1024;
/// The part of the stack below the stack pointer that leaf functions use without moving it.
const RED_ZONE: u64 = 128;
/// What is left below the chain for the frame of a signal handler and the handler itself.
const HANDLER_RESERVE: u64 = 16 * 1024;
/// A larger inaccessible mapping is an address range that a runtime reserved, not a stack's guard.
const LARGEST_GUARD: u64 = 1024 * 1024;
/// The least room for a batch that makes an attempt worth while.
const LEAST_BATCH_ROOM: usize = 4096;

const CODE_SELECTOR_64: u64 = 0x33;
/// `mov $15, %rax; syscall` and `mov $15, %eax; syscall`: what a signal handler returns to.
const SIGRETURN_CODE: [&[u8]; 2] =
    [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];
const SYSCALL_RET_CODE: &[u8] = &[0x0f, 0x05, 0xc3];
const SYSCALL_CODE: [u8; 2] = [0x0f, 0x05];

// include/linux/errno.h of the kernel; user space never sees these.
const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;
const EINTR: i64 = libc::EINTR as i64;
const ENOSYS: i64 = libc::ENOSYS as i64;

type Registers = libc::user_regs_struct;

/// What a thread was doing when it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interrupted {
    /// A system call, that has to be made again.
    Again(i64),
    /// A system call, that has to return EINTR because a handler runs.
    Fails,
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
pub(super) fn undo_interruption(pid: Pid, tid: Pid) -> Result<()> {
    let mut registers = get_registers(tid)?;
    let call = registers.orig_rax as i64;
    if registers.rax as i64 != -EINTR || !NEVER_RESTARTED.contains(&call) {
        return Ok(());
    }
    if Status::read(pid, tid)?.deliverable != 0 || !is_after_syscall(pid, &registers) {
        return Ok(());
    }
    registers.rax = registers.orig_rax;
    registers.rip -= SYSCALL_CODE.len() as u64;
    let mask = requests::getsigmask(tid).map_err(|e| Error::call("ptrace getsigmask", tid.as_raw(), e))?;
    set_registers(tid, registers)?;
    // A signal that the call's own mask lets in must wait until the call is made again.
    requests::setsigmask(tid, mask).map_err(|e| Error::call("ptrace setsigmask", tid.as_raw(), e))
}

/// Code of the process that the chain uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gadgets {
    syscall_ret: u64,
    sigreturn: u64,
}

impl Gadgets {
    /// Looks through the process's code.
    pub fn find(pid: Pid, mappings: &[Mapping]) -> Result<Self> {
        let (mut syscall_ret, mut sigreturn) = (None, None);
        let code = |mapping: &&Mapping| {
            mapping.executable && mapping.readable && !mapping.writable && !mapping.name.is_empty()
        };
        for mapping in mappings.iter().filter(code).filter(|mapping| mapping.name != "[vsyscall]") {
            let bytes = read_code(pid, mapping);
            let find = |what: &[u8]| memchr::memmem::find(&bytes, what).map(|at| mapping.start + at as u64);
            syscall_ret = syscall_ret.or_else(|| find(SYSCALL_RET_CODE));
            sigreturn = sigreturn.or_else(|| SIGRETURN_CODE.into_iter().find_map(find));
            if let (Some(syscall_ret), Some(sigreturn)) = (syscall_ret, sigreturn) {
                return Ok(Self { syscall_ret, sigreturn });
            }
        }
        let missing = if syscall_ret.is_none() { "syscall; ret" } else { "a call of rt_sigreturn" };
        Err(unsuitable(pid, format!("its code has no place that does `{missing}`")))
    }
}

/// The code of a mapping, as much of it as can be read.
fn read_code(pid: Pid, mapping: &Mapping) -> Vec<u8> {
    let mut bytes = vec![0; mapping.size() as usize];
    match Memory(pid).read(mapping.start, &mut bytes) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

/// A stopped thread that can run the chain, and all that is needed to put it back.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    tid: Pid,
    inner_tid: i32,
    registers: Registers,
    mask: u64,
    xstate: Vec<u8>,
    /// The lowest and the highest address of the chain.
    bottom: u64,
    top: u64,
    /// Larger is better.
    rank: (bool, bool, bool),
}

impl Spot {
    /// Looks at a stopped thread; the error is the reason why it cannot be used.
    pub fn examine(
        pid: Pid,
        tid: Pid,
        mappings: &[Mapping],
        others: &[(Pid, u64)],
    ) -> Result<std::result::Result<Self, String>> {
        let registers = get_registers(tid)?;
        let status = Status::read(pid, tid)?;
        if registers.cs != CODE_SELECTOR_64 {
            return Ok(Err("runs 32-bit code".to_owned()));
        }
        if status.shadow_stack {
            return Ok(Err("has a shadow stack".to_owned()));
        }
        let interrupted = match interruption(pid, &registers, &status) {
            Ok(interrupted) => interrupted,
            Err(reason) => return Ok(Err(reason)),
        };
        if interrupted == Interrupted::Nothing && in_restartable_sequence(pid, tid, &registers) {
            return Ok(Err("is inside a restartable sequence".to_owned()));
        }
        let (bottom, top, stack) = match stack_room(pid, tid, registers.rsp, mappings, others) {
            Ok(room) => room,
            Err(reason) => return Ok(Err(reason)),
        };
        let mask =
            requests::getsigmask(tid).map_err(|e| Error::call("ptrace getsigmask", tid.as_raw(), e))?;
        let xstate = match requests::getregset_xstate(tid) {
            Ok(xstate) => signal_xstate(xstate),
            Err(error) => return Ok(Err(format!("its extended state cannot be read: {error}"))),
        };
        let rank = (interrupted != Interrupted::Nothing, stack == "[stack]", tid == pid);
        let registers = resumed(registers, interrupted);
        let spot = Self { tid, inner_tid: status.inner_tid, registers, mask, xstate, bottom, top, rank };
        if spot.layout().batch_room() < LEAST_BATCH_ROOM {
            return Ok(Err(format!("has only {} bytes of stack left", top - bottom)));
        }
        Ok(Ok(spot))
    }

    /// Which of several spots is to be preferred: a thread that waits in a call, with a main stack, the
    /// main thread; then the room.
    pub fn rank(&self) -> ((bool, bool, bool), u64) {
        (self.rank, self.top - self.bottom)
    }

    pub fn tid(&self) -> Pid {
        self.tid
    }

    pub fn layout(&self) -> Layout {
        Layout::new(self.bottom, self.top, self.xstate.len(), self.inner_tid)
    }
}

/// The stack pointer of a stopped thread.
pub(super) fn stack_pointer(tid: Pid) -> Result<u64> {
    get_registers(tid).map(|registers| registers.rsp)
}

/// The registers with which the thread goes on in the end.
fn resumed(mut registers: Registers, interrupted: Interrupted) -> Registers {
    match interrupted {
        Interrupted::Again(call) => {
            registers.rax = call as u64;
            registers.rip -= SYSCALL_CODE.len() as u64;
        }
        Interrupted::Fails => registers.rax = -EINTR as u64,
        Interrupted::Nothing => {}
    }
    registers
}

/// What the stop interrupted. The kernel would make most calls again by itself, but not after the
/// registers went through a signal frame. A call with a relative timeout starts to wait anew.
fn interruption(
    pid: Pid,
    registers: &Registers,
    status: &Status,
) -> std::result::Result<Interrupted, String> {
    let (call, result) = (registers.orig_rax as i64, registers.rax as i64);
    let handler_runs = status.caught_pending != 0;
    let interrupted = match -result {
        _ if call < 0 => Interrupted::Nothing,
        ERESTARTSYS | ERESTARTNOINTR => Interrupted::Again(call),
        ERESTARTNOHAND | ERESTART_RESTARTBLOCK if handler_runs => Interrupted::Fails,
        ERESTARTNOHAND => Interrupted::Again(call),
        ERESTART_RESTARTBLOCK if call == libc::SYS_restart_syscall => {
            Interrupted::Again(first_call(pid, registers)?)
        }
        ERESTART_RESTARTBLOCK => Interrupted::Again(call),
        _ => Interrupted::Nothing,
    };
    if matches!(interrupted, Interrupted::Again(_)) && !is_after_syscall(pid, registers) {
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
    let mut code = [0u8; SYSCALL_CODE.len()];
    let at = registers.rip.wrapping_sub(SYSCALL_CODE.len() as u64);
    Memory(pid).read(at, &mut code).is_ok() && code == SYSCALL_CODE
}

/// Whether the thread is inside a restartable sequence (rseq): the kernel would not abort it if
/// the registers are changed and changed back.
fn in_restartable_sequence(pid: Pid, tid: Pid, registers: &Registers) -> bool {
    // struct rseq: rseq_cs at 8. struct rseq_cs: start_ip at 8, post_commit_offset at 16.
    let word = |address: u64| -> Option<u64> {
        let mut bytes = [0u8; 8];
        Memory(pid).read(address, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let Ok(Some(area)) = requests::rseq_address(tid) else { return false };
    let Some(section) = word(area + 8).filter(|section| *section != 0) else { return false };
    match (word(section + 8), word(section + 16)) {
        (Some(start), Some(length)) => registers.rip.wrapping_sub(start) < length,
        _ => false,
    }
}

/// The dead part of a thread's stack: from, to, and the name of the mapping.
fn stack_room<'m>(
    pid: Pid,
    tid: Pid,
    stack_pointer: u64,
    mappings: &'m [Mapping],
    others: &[(Pid, u64)],
) -> std::result::Result<(u64, u64, &'m str), String> {
    let index = mappings
        .iter()
        .position(|mapping| mapping.contains(stack_pointer))
        .ok_or("has its stack pointer in no mapping")?;
    let stack = &mappings[index];
    if !(stack.readable && stack.writable && stack.private) {
        return Err("has a stack that is shared or cannot be written".to_owned());
    }
    if stack.name != "[stack]" && !has_guard(stack, index.checked_sub(1).map(|below| &mappings[below])) {
        return Err("has a stack of an unknown kind".to_owned());
    }
    let shared =
        others.iter().find(|(other, sp)| *other != tid && stack.contains(*sp) && *sp < stack_pointer);
    if let Some((other, _)) = shared {
        return Err(format!("shares its stack's mapping with thread {other}"));
    }
    let top = stack_pointer.saturating_sub(RED_ZONE) & !(ALIGNMENT - 1);
    let lowest = (stack.start + HANDLER_RESERVE).next_multiple_of(ALIGNMENT);
    if lowest >= top {
        return Err("has no stack left".to_owned());
    }
    let bottom = lowest.max(top.saturating_sub(MOST_ROOM));
    // A guard that is no mapping of its own (MADV_GUARD_INSTALL) shows when it is read.
    let mut probe = vec![0u8; (top - bottom) as usize];
    Memory(pid).read(bottom, &mut probe).map_err(|error| format!("has a stack with holes: {error}"))?;
    Ok((bottom, top, &stack.name))
}

fn has_guard(stack: &Mapping, below: Option<&Mapping>) -> bool {
    below.is_some_and(|below| {
        below.end == stack.start && below.is_inaccessible() && below.size() <= LARGEST_GUARD
    })
}

/// A signal frame's extended state: what XRSTOR reads, with the two marks by which the kernel
/// knows its size (struct _fpx_sw_bytes of asm/sigcontext.h).
fn signal_xstate(mut xstate: Vec<u8>) -> Vec<u8> {
    const LEGACY_AND_HEADER: usize = 512 + 64;
    const FEATURES_IN_USE: usize = 512;
    const SOFTWARE_BYTES: usize = 464;
    const MAGIC1: u32 = 0x4650_5853;
    const MAGIC2: u32 = 0x4650_5845;
    const X87_AND_SSE: u64 = 3;

    xstate.resize(xstate.len().max(LEGACY_AND_HEADER), 0);
    let mut in_use = [0u8; 8];
    in_use.copy_from_slice(&xstate[FEATURES_IN_USE..FEATURES_IN_USE + 8]);
    // A component that is not in use is in its first state, and the kernel sets it so.
    let features = u64::from_le_bytes(in_use) | X87_AND_SSE;
    let size = (2..63)
        .filter(|number| features & (1 << number) != 0)
        .filter_map(requests::xstate_component)
        .map(|(offset, size)| offset + size)
        .fold(LEGACY_AND_HEADER, usize::max);
    xstate.resize(size, 0);
    let extended_size = (size + size_of_val(&MAGIC2)) as u32;
    let marks = &mut xstate[SOFTWARE_BYTES..512];
    marks.fill(0);
    marks[0..4].copy_from_slice(&MAGIC1.to_le_bytes());
    marks[4..8].copy_from_slice(&extended_size.to_le_bytes());
    marks[8..16].copy_from_slice(&features.to_le_bytes());
    marks[16..20].copy_from_slice(&(size as u32).to_le_bytes());
    xstate.extend_from_slice(&MAGIC2.to_le_bytes());
    xstate
}

const ALIGNMENT: u64 = 64;

/// The size of a link: return address and ucontext, without the parts that rt_sigreturn does not read.
const LINK: usize = 8 + UCONTEXT;
const UCONTEXT: usize = 304;

/// Where struct msghdr (56 bytes) has the length of its control buffer.
const CONTROL_LENGTH_IN_HEADER: usize = 40;
const CONTROL_HEADER: usize = 16;
const CONTROL: usize = CONTROL_HEADER + MOST_DESCRIPTORS * 4;
/// The control buffer and the gate behind the message header.
const CONTROL_OFFSET: usize = 64;
const GATE_OFFSET: usize = (CONTROL_OFFSET + CONTROL).next_multiple_of(8);
/// What a batch changes and puts back: message header, control buffer, gate.
const MUTABLE: usize = GATE_OFFSET + LINK;
/// What the process sends to the engine at the end of a batch.
pub(super) const REPORT: usize = GATE_OFFSET;

/// Where everything is. All are addresses in the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    inner_tid: i32,
    socketpair: u64,
    copy_sockets: u64,
    close_other: u64,
    receive: u64,
    restore: u64,
    xstate: u64,
    sockets: u64,
    vectors: u64,
    pristine: u64,
    mutable: u64,
    top: u64,
}

impl Layout {
    fn new(bottom: u64, top: u64, xstate: usize, inner_tid: i32) -> Self {
        let mut next = bottom;
        let mut take = |size: usize| {
            let at = next;
            next += size.next_multiple_of(8) as u64;
            at
        };
        let (socketpair, copy_sockets, close_other) = (take(LINK), take(LINK), take(LINK));
        let (receive, restore) = (take(LINK), take(LINK));
        let xstate_space = take(xstate + ALIGNMENT as usize);
        let (sockets, vectors) = (take(8), take(VECTORS * VECTOR));
        let (pristine, mutable) = (take(MUTABLE), take(MUTABLE));
        Self {
            inner_tid,
            socketpair,
            copy_sockets,
            close_other,
            receive,
            restore,
            xstate: xstate_space.next_multiple_of(ALIGNMENT),
            sockets,
            vectors,
            pristine,
            mutable,
            top,
        }
    }

    fn gate(&self) -> u64 {
        self.mutable + GATE_OFFSET as u64
    }

    /// How large a batch may be, in bytes.
    pub fn batch_room(&self) -> usize {
        self.top.saturating_sub(self.gate()) as usize
    }

    /// Where the process keeps the numbers of its socket pair.
    pub fn sockets(&self) -> u64 {
        self.sockets
    }
}

/// struct iovec.
const VECTOR: usize = 16;
/// Those of the fixed part: four places for socket numbers and as many sources, where a message goes,
/// and the two of putting back.
const VECTORS: usize = 4 + 4 + 1 + 2;

/// Bytes at an address of the process.
struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        let at = (address - self.base) as usize;
        if self.bytes.len() < at + bytes.len() {
            self.bytes.resize(at + bytes.len(), 0);
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_vectors(&mut self, mut address: u64, vectors: &[(u64, usize)]) {
        for (base, length) in vectors {
            self.put(address, &base.to_le_bytes());
            self.put(address + 8, &(*length as u64).to_le_bytes());
            address += VECTOR as u64;
        }
    }
}

/// Offsets in a link.
mod link {
    pub const FLAGS: usize = 8;
    pub const STACK_FLAGS: usize = 32;
    const CONTEXT: usize = 48;
    pub const R8: usize = CONTEXT;
    pub const R9: usize = CONTEXT + 8;
    pub const R10: usize = CONTEXT + 16;
    pub const R11: usize = CONTEXT + 24;
    pub const R12: usize = CONTEXT + 32;
    pub const R13: usize = CONTEXT + 40;
    pub const R14: usize = CONTEXT + 48;
    pub const R15: usize = CONTEXT + 56;
    pub const RDI: usize = CONTEXT + 64;
    pub const RSI: usize = CONTEXT + 72;
    pub const RBP: usize = CONTEXT + 80;
    pub const RBX: usize = CONTEXT + 88;
    pub const RDX: usize = CONTEXT + 96;
    pub const RAX: usize = CONTEXT + 104;
    pub const RCX: usize = CONTEXT + 112;
    pub const RSP: usize = CONTEXT + 120;
    pub const RIP: usize = CONTEXT + 128;
    pub const EFLAGS: usize = CONTEXT + 136;
    pub const CS: usize = CONTEXT + 144;
    pub const SS: usize = CONTEXT + 150;
    pub const FPSTATE: usize = CONTEXT + 184;
    pub const MASK: usize = CONTEXT + 256;
    /// The arguments of a system call, in order.
    pub const ARGUMENTS: [usize; 6] = [RDI, RSI, RDX, R10, R8, R9];
}

/// Writes links.
struct Links {
    gadgets: Gadgets,
    code_selector: u16,
    stack_selector: u16,
}

impl Links {
    /// A link that makes a system call, and then goes to the link at `next`.
    fn call(&self, number: i64, arguments: &[u64], next: u64) -> [u8; LINK] {
        const INTERRUPTS_ON: u64 = 0x202;
        let mut bytes = self.empty();
        put(&mut bytes, link::RAX, number as u64);
        for (offset, argument) in link::ARGUMENTS.into_iter().zip(arguments) {
            put(&mut bytes, offset, *argument);
        }
        put(&mut bytes, link::RIP, self.gadgets.syscall_ret);
        put(&mut bytes, link::RSP, next);
        put(&mut bytes, link::EFLAGS, INTERRUPTS_ON);
        // The chain runs with all signals blocked.
        put(&mut bytes, link::MASK, u64::MAX);
        bytes
    }

    /// The last link: the thread goes on where it was.
    fn restore(&self, spot: &Spot, xstate: u64) -> [u8; LINK] {
        const FLAGS_WITH_XSTATE: u64 = 1;
        let mut bytes = self.empty();
        let flags = CONTEXT_FLAGS | FLAGS_WITH_XSTATE;
        let registers = &spot.registers;
        let values = [
            (link::FLAGS, flags),
            (link::R8, registers.r8),
            (link::R9, registers.r9),
            (link::R10, registers.r10),
            (link::R11, registers.r11),
            (link::R12, registers.r12),
            (link::R13, registers.r13),
            (link::R14, registers.r14),
            (link::R15, registers.r15),
            (link::RDI, registers.rdi),
            (link::RSI, registers.rsi),
            (link::RBP, registers.rbp),
            (link::RBX, registers.rbx),
            (link::RDX, registers.rdx),
            (link::RAX, registers.rax),
            (link::RCX, registers.rcx),
            (link::RSP, registers.rsp),
            (link::RIP, registers.rip),
            (link::EFLAGS, registers.eflags),
            (link::FPSTATE, xstate),
            (link::MASK, spot.mask),
        ];
        for (offset, value) in values {
            put(&mut bytes, offset, value);
        }
        bytes
    }

    fn empty(&self) -> [u8; LINK] {
        /// No mode of sigaltstack(2), so that the alternate stack stays as it is.
        const NO_STACK_MODE: u32 = 0x7fff_0000;
        let mut bytes = [0; LINK];
        put(&mut bytes, 0, self.gadgets.sigreturn);
        put(&mut bytes, link::FLAGS, CONTEXT_FLAGS);
        bytes[link::STACK_FLAGS..link::STACK_FLAGS + 4].copy_from_slice(&NO_STACK_MODE.to_le_bytes());
        bytes[link::CS..link::CS + 2].copy_from_slice(&self.code_selector.to_le_bytes());
        bytes[link::SS..link::SS + 2].copy_from_slice(&self.stack_selector.to_le_bytes());
        bytes
    }
}

/// UC_SIGCONTEXT_SS and UC_STRICT_RESTORE_SS of asm/ucontext.h: the stack selector is in the frame.
const CONTEXT_FLAGS: u64 = 2 | 4;

fn put(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

/// The chain of one thread.
pub(super) struct Chain {
    pub layout: Layout,
    links: Links,
    start: Registers,
    image: Vec<u8>,
}

const NO_DESCRIPTOR: u64 = u64::MAX;

impl Chain {
    /// Builds the fixed part.
    pub fn new(spot: &Spot, gadgets: Gadgets) -> Self {
        let layout = spot.layout();
        let links = Links {
            gadgets,
            code_selector: spot.registers.cs as u16,
            stack_selector: spot.registers.ss as u16,
        };
        let mut start = spot.registers;
        start.rip = gadgets.sigreturn;
        start.rsp = layout.socketpair + 8;
        start.rax = 0;
        // Not in a system call: the kernel must not make the interrupted one again here.
        start.orig_rax = u64::MAX;
        let image = fixed_part(&layout, &links, spot);
        Self { layout, links, start, image }
    }

    /// Writes the fixed part to the process: dead stack space, nothing else changes.
    pub fn write(&self, pid: Pid) -> io::Result<()> {
        Memory(pid).write(self.layout.socketpair, &self.image)
    }

    /// Starts the chain: from the first of these two calls on it runs to its end, whatever happens
    /// to this process. The second keeps signals away until the first link does.
    pub fn start(&self, tid: Pid) -> Result<()> {
        set_registers(tid, self.start)?;
        requests::setsigmask(tid, u64::MAX).map_err(|e| Error::call("ptrace setsigmask", tid.as_raw(), e))
    }

    /// The result of the call that the chain's thread just came back from, at a stop.
    pub fn call_result(&self, tid: Pid) -> Result<Option<i64>> {
        let registers = get_registers(tid)?;
        let after = self.links.gadgets.syscall_ret + SYSCALL_CODE.len() as u64;
        let result = registers.rax as i64;
        Ok((registers.rip == after && result != -ENOSYS).then_some(result))
    }

    /// The message for a batch: links and what they point to, to be received at the gate.
    pub fn encode(&self, batch: &Batch<'_>, socket: i32) -> Vec<u8> {
        encode(&self.layout, &self.links, batch, socket)
    }

    /// How many descriptors the process got, from its report.
    pub fn received(report: &[u8]) -> usize {
        let mut length = [0u8; 8];
        length.copy_from_slice(&report[CONTROL_OFFSET..CONTROL_OFFSET + 8]);
        (u64::from_le_bytes(length) as usize).saturating_sub(CONTROL_HEADER) / 4
    }
}

fn fixed_part(layout: &Layout, links: &Links, spot: &Spot) -> Vec<u8> {
    let mut image = Image { base: layout.socketpair, bytes: Vec::new() };
    let socket_type = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64;
    let rdi = link::RDI as u64;
    let gate_in_pristine = layout.pristine + GATE_OFFSET as u64;
    let vectors = layout.vectors;
    let places = [layout.close_other, layout.receive, layout.gate(), gate_in_pristine];
    let sources = [0, 4, 4, 4];
    let message_vector = vectors + 8 * VECTOR as u64;

    image.put(
        layout.socketpair,
        &links.call(
            libc::SYS_socketpair,
            &[libc::AF_UNIX as u64, socket_type, 0, layout.sockets],
            layout.copy_sockets,
        ),
    );
    image.put(
        layout.copy_sockets,
        &copy_link(links, layout, vectors, vectors + 4 * VECTOR as u64, 4, layout.close_other),
    );
    image.put(layout.close_other, &links.call(libc::SYS_close, &[NO_DESCRIPTOR], layout.receive));
    image.put(
        layout.receive,
        &links.call(
            libc::SYS_recvmsg,
            &[NO_DESCRIPTOR, layout.mutable, libc::MSG_CMSG_CLOEXEC as u64],
            layout.gate(),
        ),
    );
    image.put(layout.restore, &links.restore(spot, layout.xstate));
    image.put(layout.xstate, &spot.xstate);
    image.put(layout.sockets, &u64::MAX.to_le_bytes());
    image.put_vectors(vectors, &places.map(|link| (link + rdi, 4)));
    image.put_vectors(vectors + 4 * VECTOR as u64, &sources.map(|at| (layout.sockets + at, 4)));
    image.put_vectors(message_vector, &[(layout.gate(), layout.batch_room())]);
    image.put_vectors(put_back_vectors(layout), &[(layout.mutable, MUTABLE), (layout.pristine, MUTABLE)]);

    let mut mutable = [0u8; MUTABLE];
    put(&mut mutable, 16, message_vector);
    put(&mut mutable, 24, 1);
    put(&mut mutable, 32, layout.mutable + CONTROL_OFFSET as u64);
    put(&mut mutable, CONTROL_LENGTH_IN_HEADER, CONTROL as u64);
    mutable[CONTROL_OFFSET + CONTROL_HEADER..CONTROL_OFFSET + CONTROL].fill(0xff);
    mutable[GATE_OFFSET..].copy_from_slice(&links.call(libc::SYS_close, &[NO_DESCRIPTOR], layout.restore));
    image.put(layout.pristine, &mutable);
    image.put(layout.mutable, &mutable);
    image.bytes
}

/// The vectors of putting back: to, then from.
fn put_back_vectors(layout: &Layout) -> u64 {
    layout.vectors + 9 * VECTOR as u64
}

/// A link by which the process copies its own memory.
fn copy_link(links: &Links, layout: &Layout, to: u64, from: u64, count: usize, next: u64) -> [u8; LINK] {
    let count = count as u64;
    links.call(libc::SYS_process_vm_readv, &[layout.inner_tid as u64, to, count, from, count, 0], next)
}

/// The most vectors of one call (UIO_MAXIOV).
const MOST_VECTORS: usize = 1024;

/// The size of a batch's message, in bytes.
pub(super) fn encoded_size(batch: &Batch<'_>) -> usize {
    let numbers = count_numbers(batch);
    let data: usize = batch.calls.iter().flat_map(|call| &call.arguments).map(data_size).sum();
    link_count(batch, numbers) * LINK + data + 2 * numbers * VECTOR
}

fn data_size(argument: &Argument) -> usize {
    match argument {
        Argument::Data(data) => data.bytes.len().next_multiple_of(8),
        _ => 0,
    }
}

fn count_numbers(batch: &Batch<'_>) -> usize {
    let in_calls: usize = batch
        .calls
        .iter()
        .flat_map(|call| &call.arguments)
        .map(|argument| match argument {
            Argument::Number(Descriptor::Received(_)) => 1,
            Argument::Data(data) => data.numbers.len(),
            _ => 0,
        })
        .sum();
    in_calls + batch.descriptors.len()
}

/// The links of a batch: copies of numbers, calls, closes, the report and putting back.
fn link_count(batch: &Batch<'_>, numbers: usize) -> usize {
    numbers.div_ceil(MOST_VECTORS) + batch.calls.len() + batch.descriptors.len() + 2
}

fn encode(layout: &Layout, links: &Links, batch: &Batch<'_>, socket: i32) -> Vec<u8> {
    let numbers = count_numbers(batch);
    let count = link_count(batch, numbers);
    let mut image = Image { base: layout.gate(), bytes: Vec::new() };
    let mut at = layout.gate() + (numbers.div_ceil(MOST_VECTORS) * LINK) as u64;
    let mut data_at = layout.gate() + (count * LINK) as u64;
    // Which place in memory gets the number of which received descriptor.
    let mut copies: Vec<(u64, usize)> = Vec::with_capacity(numbers);

    for call in &batch.calls {
        let arguments = place_arguments(call, at, &mut data_at, &mut image, &mut copies);
        image.put(at, &links.call(call.number, &arguments, at + LINK as u64));
        at += LINK as u64;
    }
    for index in 0..batch.descriptors.len() {
        copies.push((at + link::RDI as u64, index));
        image.put(at, &links.call(libc::SYS_close, &[NO_DESCRIPTOR], at + LINK as u64));
        at += LINK as u64;
    }
    let flags = (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as u64;
    let report = [socket as u64, layout.mutable, REPORT as u64, flags, 0, 0];
    image.put(at, &links.call(libc::SYS_sendto, &report, at + LINK as u64));
    at += LINK as u64;
    let vectors = put_back_vectors(layout);
    image.put(at, &copy_link(links, layout, vectors, vectors + VECTOR as u64, 1, layout.receive));

    put_copies(layout, links, &mut image, data_at, &copies);
    image.bytes
}

fn place_arguments(
    call: &Call,
    at: u64,
    data_at: &mut u64,
    image: &mut Image,
    copies: &mut Vec<(u64, usize)>,
) -> Vec<u64> {
    let mut values = Vec::with_capacity(call.arguments.len());
    for (argument, offset) in call.arguments.iter().zip(link::ARGUMENTS) {
        values.push(match argument {
            Argument::Value(value) => *value,
            Argument::Number(Descriptor::Number(number)) => *number as u64,
            Argument::Number(Descriptor::Received(received)) => {
                copies.push((at + offset as u64, received.0));
                NO_DESCRIPTOR
            }
            Argument::Data(data) => {
                let address = *data_at;
                image.put(address, &data.bytes);
                copies.extend(data.numbers.iter().map(|(at, received)| (address + *at as u64, received.0)));
                *data_at += data_size(argument) as u64;
                address
            }
        });
    }
    values
}

/// The first links of a batch: they copy the numbers of the received descriptors to their places.
fn put_copies(layout: &Layout, links: &Links, image: &mut Image, vectors: u64, copies: &[(u64, usize)]) {
    let numbers = layout.mutable + (CONTROL_OFFSET + CONTROL_HEADER) as u64;
    let (mut at, mut vectors) = (layout.gate(), vectors);
    for part in copies.chunks(MOST_VECTORS) {
        let to: Vec<_> = part.iter().map(|(place, _)| (*place, 4)).collect();
        let from: Vec<_> = part.iter().map(|(_, index)| (numbers + 4 * *index as u64, 4)).collect();
        let sources = vectors + (to.len() * VECTOR) as u64;
        image.put_vectors(vectors, &to);
        image.put_vectors(sources, &from);
        image.put(at, &copy_link(links, layout, vectors, sources, part.len(), at + LINK as u64));
        at += LINK as u64;
        vectors = sources + (from.len() * VECTOR) as u64;
    }
}

fn get_registers(tid: Pid) -> Result<Registers> {
    ptrace::getregs(tid).map_err(|error| Error::call("ptrace getregs", tid.as_raw(), error))
}

fn set_registers(tid: Pid, registers: Registers) -> Result<()> {
    ptrace::setregs(tid, registers).map_err(|error| Error::call("ptrace setregs", tid.as_raw(), error))
}

fn unsuitable(pid: Pid, reason: String) -> Error {
    Error::Unsuitable { pid: pid.as_raw(), reason }
}
