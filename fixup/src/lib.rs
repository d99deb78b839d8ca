//! Connect masters to their restored autofs mounts, each from its own context: the kernel takes the pipe
//! and the process group from the process that calls.
//!
//! | stage | file | what it does |
//! |---|---|---|
//! | 1. read | `run.rs`, `source.rs` | the stage document or the environment leads to the segment |
//! | 2. choose | `side_by_side.rs`, `run.rs`, `sight.rs`, `ahead.rs` | which masters, each in a child process of its own; what they see together, and what is opened for them |
//! | 3. prepare | `live.rs`, `live/process.rs` | the process of the master, a claim on it, write ends of its pipes |
//! | 4. open | `live/open.rs`, `opener.rs`, `expires.rs`, `mounts.rs` | a child opens the mounts in the master's namespace, under a deadline |
//! | 5. connect | `live/stop.rs`, `inside.rs`, `live/connect.rs`, `live/control.rs`, [`remote`] | the master is stopped, opens what only it can open, makes the calls itself, and goes on |
//! | 6. verify | `live/verify.rs` | mountinfo tells what came of it; the segment is told |
//!
//! With `--exec` stages 3 to 6 are in `exec.rs`: this process becomes the master. With `--free` the stages are those
//! of `free.rs`.
#![forbid(unsafe_code)]

mod ahead;
pub mod cli;
mod device;
mod errno;
mod exec;
mod expires;
mod free;
mod inside;
mod live;
mod mounts;
mod opener;
pub mod remote;
mod root;
pub mod run;
mod show;
mod side_by_side;
mod sight;
mod source;
mod watch;

/// The name in messages.
pub const TOOL: &str = "autofs-fixup";
