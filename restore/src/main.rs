//! Recreate the autofs mounts of an image.
#![forbid(unsafe_code)]
fn main() {}
