//! Where everything of the chain is in the stack.

use super::super::batch::MOST_DESCRIPTORS;
use super::ALIGNMENT;
use super::link::LINK;

/// Where struct msghdr (56 bytes) has the length of its control buffer.
pub const CONTROL_LENGTH_IN_HEADER: usize = 40;
pub const CONTROL_HEADER: usize = 16;
pub const CONTROL: usize = CONTROL_HEADER + MOST_DESCRIPTORS * 4;
/// The control buffer and the gate behind the message header.
pub const CONTROL_OFFSET: usize = 64;
pub const GATE_OFFSET: usize = (CONTROL_OFFSET + CONTROL).next_multiple_of(8);
/// What a batch changes and puts back: message header, control buffer, gate.
pub const MUTABLE: usize = GATE_OFFSET + LINK;
/// What the process sends to the engine at the end of a batch.
pub const REPORT: usize = GATE_OFFSET;

/// Where everything is. All are addresses in the process.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub inner_tid: i32,
    pub socketpair: u64,
    pub copy_sockets: u64,
    pub close_other: u64,
    pub receive: u64,
    pub restore: u64,
    pub xstate: u64,
    pub sockets: u64,
    pub vectors: u64,
    pub pristine: u64,
    pub mutable: u64,
    top: u64,
}

impl Layout {
    pub fn new(bottom: u64, top: u64, xstate: usize, inner_tid: i32) -> Self {
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

    pub fn gate(&self) -> u64 {
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
pub const VECTOR: usize = 16;
/// Those of the fixed part: four places for socket numbers and as many sources, where a message goes,
/// and the two of putting back.
const VECTORS: usize = 4 + 4 + 1 + 2;
