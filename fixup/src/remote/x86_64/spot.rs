//! A thread that can run the chain.

use autofs_cr_common::sys::ptrace as requests;
use nix::unistd::Pid;

use super::super::error::{Error, Result};
use super::super::facts::{Mapping, Memory, Status};
use super::super::seccomp::Filters;
use super::calls::needs_suspension;
use super::interruption::{Interrupted, failed, interruption, resumed};
use super::layout::Layout;
use super::stack::stack_room;
use super::xstate::signal_xstate;
use super::{CODE_SELECTOR_64, Registers, get_registers};

/// The least room for a batch that makes an attempt worth while.
const LEAST_BATCH_ROOM: usize = 4096;

/// A stopped thread that can run the chain, and all that is needed to put it back.
#[derive(Clone, Debug)]
pub struct Spot {
    tid: Pid,
    pub inner_tid: i32,
    /// With which the thread goes on.
    pub registers: Registers,
    /// The same if a signal handler runs then, where that makes a difference.
    pub registers_if_handled: Option<Registers>,
    pub mask: u64,
    pub xstate: Vec<u8>,
    pub filters: Filters,
    /// The filters do not allow all that the chain does.
    pub needs_suspension: bool,
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
        let filters = if status.seccomp { Filters::of(tid) } else { Ok(Filters::default()) };
        let (filters, needs_suspension) =
            match filters.and_then(|found| Ok((needs_suspension(&found)?, found))) {
                Ok((needs_suspension, filters)) => (filters, needs_suspension),
                Err(reason) => return Ok(Err(reason)),
            };
        let interrupted = match interruption(pid, &registers) {
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
        let spot = Self {
            tid,
            inner_tid: status.inner_tid,
            registers: resumed(registers, interrupted),
            registers_if_handled: failed(registers, interrupted),
            mask,
            xstate,
            filters,
            needs_suspension,
            bottom,
            top,
            rank,
        };
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
