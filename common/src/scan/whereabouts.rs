//! Where in autofs a thread sleeps (fs/autofs of Linux).
//!
//! Most wait for an answer. But a request has to be written first, and a pipe has room for 16 of them: of those who find no
//! room one sleeps in the code of pipes, interruptible, and the others behind it on the mutex of the superblock
//! (`autofs_write` in fs/autofs/waitq.c), where not even SIGKILL ends the wait.

use std::io;

use super::asked;
use crate::doc::report::WaiterRole;
use crate::proc::ProcessDir;

/// Where a thread sleeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sleep {
    /// In autofs.
    Autofs,
    /// Somewhere else.
    Elsewhere,
    /// It does not sleep, or where is not visible.
    Unknown,
}

/// Where a thread sleeps: two reads at most.
pub(super) fn sleep(thread: &ProcessDir) -> io::Result<Sleep> {
    Ok(match thread.wchan()? {
        None => Sleep::Unknown,
        Some(function) if function.starts_with(b"autofs_") => Sleep::Autofs,
        // `pipe_write`, or since Linux 6.14 `anon_pipe_write`.
        Some(function) if function.ends_with(b"pipe_write") && writes_a_request(thread) => Sleep::Autofs,
        Some(_) => Sleep::Elsewhere,
    })
}

/// Whether a thread that writes to a pipe was sent there by autofs: by its stack, or where that is not visible because its
/// system call walks a path.
fn writes_a_request(thread: &ProcessDir) -> bool {
    match thread.stack() {
        Ok(stack) => words(&stack).any(|word| word == b"autofs_wait"),
        Err(_) => matches!(thread.syscall(), Ok(Some(call)) if asked::names_a_file(&call)),
    }
}

/// What a thread in autofs does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub role: WaiterRole,
    /// Its request is not in the pipe yet.
    pub is_unsent: bool,
}

/// The part of a thread, by the functions on its kernel stack.
pub(super) fn part(thread: &ProcessDir) -> Part {
    let Ok(stack) = thread.stack() else {
        // Where it sleeps can be visible where its stack is not.
        let function = thread.wchan().ok().flatten().unwrap_or_default();
        return Part { role: WaiterRole::Unknown, is_unsent: is_sending(&function) };
    };
    part_by_stack(&stack)
}

pub(super) fn part_by_stack(stack: &[u8]) -> Part {
    let has = |function: &[u8]| words(stack).any(|word| word == function);
    let role = if has(b"autofs_expire_wait") || has(b"autofs_do_expire_multi") {
        WaiterRole::Expire
    } else if has(b"autofs_d_automount") {
        WaiterRole::First
    } else if has(b"autofs_wait") {
        WaiterRole::Joined
    } else {
        WaiterRole::Unknown
    };
    Part { role, is_unsent: words(stack).any(is_sending) }
}

/// The functions by which a request is written; compilers put some of them into others, and names get an ending.
fn is_sending(function: &[u8]) -> bool {
    function.starts_with(b"autofs_write") || function.starts_with(b"autofs_notify_daemon") || {
        function.ends_with(b"pipe_write")
    }
}

/// The names in the text of a stack.
fn words(stack: &[u8]) -> impl Iterator<Item = &[u8]> {
    stack.split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
}

/// Whether a thread waits in autofs to write a request.
pub fn is_sending_request(thread: &ProcessDir) -> bool {
    sleep(thread).is_ok_and(|sleep| sleep == Sleep::Autofs) && part(thread).is_unsent
}
