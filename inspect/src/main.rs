//! Show every autofs mount, its master and its state.
#![forbid(unsafe_code)]
fn main() {}
