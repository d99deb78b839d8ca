//! How much of a thread's stack is dead.

use nix::unistd::Pid;

use super::super::facts::{Mapping, Memory};
use super::ALIGNMENT;

/// The most room that the chain takes, in bytes; a larger message does not fit a socket's buffer.
const MOST_ROOM: u64 = 128 * 1024;
/// The part of the stack below the stack pointer that leaf functions use without moving it.
const RED_ZONE: u64 = 128;
/// What is left below the chain for the frame of a signal handler and the handler itself.
const HANDLER_RESERVE: u64 = 16 * 1024;
/// A larger inaccessible mapping is an address range that a runtime reserved, not a stack's guard.
const LARGEST_GUARD: u64 = 1024 * 1024;

/// The dead part of a thread's stack: from, to, and the name of the mapping.
pub fn stack_room<'m>(
    pid: Pid,
    tid: Pid,
    stack_pointer: u64,
    mappings: &'m [Mapping],
    others: &[(Pid, u64)],
) -> Result<(u64, u64, &'m str), String> {
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
