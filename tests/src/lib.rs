//! The sandbox in which the tests meet the real kernel, and the reference master that serves them.
//!
//! | module | role |
//! |---|---|
//! | [`sandbox`] | what a test uses: a private world, a master in it, the tools, touches |
//! | [`stepper`] | runs a tool up to its n-th system call, and does something there |
//! | [`machine`] | a booted Debian with the real systemd and automount(8) |
//! | [`guard`] | tests that need what this machine lacks are skipped, and counted |
//! | [`master`] | the reference master: a small autofs daemon |
//! | [`init`] | the helper that makes the namespaces and runs processes in them |
//!
//! `tests/README.md` shows how a test looks.
#![forbid(unsafe_code)]

pub mod guard;
pub mod init;
pub mod machine;
pub mod master;
pub mod sandbox;
pub mod stepper;
