//! Connect a master to its restored autofs mounts.
#![forbid(unsafe_code)]
fn main() {}
