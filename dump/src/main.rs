//! Write the autofs mounts of a mount namespace to an image.
#![forbid(unsafe_code)]
fn main() {}
