//! What the kernel tells of a request, and of a thread.

use crate::doc::report::{Request, WaiterRole};

/// What a packet in a pipe says.
pub fn packet(bytes: &[u8]) -> Option<Request> {
    super::requests::parse(bytes, 1)
}

/// What a thread with this kernel stack waits for.
pub fn stack(text: &[u8]) -> WaiterRole {
    super::whereabouts::part_by_stack(text).role
}
