//! One link of the chain: a signal frame that makes a system call.

use super::Registers;
use super::gadgets::Gadgets;

/// The size of a link: return address and ucontext, without the parts that rt_sigreturn does not read.
pub const LINK: usize = 8 + UCONTEXT;
const UCONTEXT: usize = 304;

/// Offsets in a link.
pub mod offset {
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
pub struct Links {
    pub gadgets: Gadgets,
    pub code_selector: u16,
    pub stack_selector: u16,
}

impl Links {
    /// A link that makes a system call, and then goes to the link at `next`.
    pub fn call(&self, number: i64, arguments: &[u64], next: u64) -> [u8; LINK] {
        const INTERRUPTS_ON: u64 = 0x202;
        let mut bytes = self.empty();
        put(&mut bytes, offset::RAX, number as u64);
        for (offset, argument) in offset::ARGUMENTS.into_iter().zip(arguments) {
            put(&mut bytes, offset, *argument);
        }
        put(&mut bytes, offset::RIP, self.gadgets.syscall_ret);
        put(&mut bytes, offset::RSP, next);
        put(&mut bytes, offset::EFLAGS, INTERRUPTS_ON);
        // The chain runs with all signals blocked.
        put(&mut bytes, offset::MASK, u64::MAX);
        bytes
    }

    /// The last link: the thread goes on where it was.
    pub fn restore(&self, registers: &Registers, mask: u64, xstate: u64) -> [u8; LINK] {
        const FLAGS_WITH_XSTATE: u64 = 1;
        let mut bytes = self.empty();
        let flags = CONTEXT_FLAGS | FLAGS_WITH_XSTATE;
        let values = [
            (offset::FLAGS, flags),
            (offset::R8, registers.r8),
            (offset::R9, registers.r9),
            (offset::R10, registers.r10),
            (offset::R11, registers.r11),
            (offset::R12, registers.r12),
            (offset::R13, registers.r13),
            (offset::R14, registers.r14),
            (offset::R15, registers.r15),
            (offset::RDI, registers.rdi),
            (offset::RSI, registers.rsi),
            (offset::RBP, registers.rbp),
            (offset::RBX, registers.rbx),
            (offset::RDX, registers.rdx),
            (offset::RAX, registers.rax),
            (offset::RCX, registers.rcx),
            (offset::RSP, registers.rsp),
            (offset::RIP, registers.rip),
            (offset::EFLAGS, registers.eflags),
            (offset::FPSTATE, xstate),
            (offset::MASK, mask),
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
        put(&mut bytes, offset::FLAGS, CONTEXT_FLAGS);
        bytes[offset::STACK_FLAGS..offset::STACK_FLAGS + 4].copy_from_slice(&NO_STACK_MODE.to_le_bytes());
        bytes[offset::CS..offset::CS + 2].copy_from_slice(&self.code_selector.to_le_bytes());
        bytes[offset::SS..offset::SS + 2].copy_from_slice(&self.stack_selector.to_le_bytes());
        bytes
    }
}

/// UC_SIGCONTEXT_SS and UC_STRICT_RESTORE_SS of asm/ucontext.h: the stack selector is in the frame.
const CONTEXT_FLAGS: u64 = 2 | 4;

pub fn put(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}
