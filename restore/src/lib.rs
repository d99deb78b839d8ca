//! Recreate the autofs mounts of an image, and wait until their masters are connected.
//!
//! | stage | file | what it does |
//! |---|---|---|
//! | 1. read | `check.rs` | reads the image, and checks that it makes sense |
//! | 2. look | `survey.rs`, `copies.rs`, `live.rs` | what is there in the target and in other mount namespaces, and which masters live |
//! | 3. plan | `plan/`, `layout.rs` | what is done with each superblock; nothing is changed yet |
//! | 3. plan | `walks.rs` | nothing is planned that needs a walk which could not be ended |
//! | 4. mount | `mounter/` | the child in the target's namespaces finds everything, then makes it |
//! | 5. stage | `stage.rs` | publishes the segment, prints the stage document |
//! | 6. wait | `wait.rs`, `events.rs` | one loop over progress, child exits, signals and the deadline |
//! | 7. end | `verify.rs`, `run.rs` | checks with the kernel what came of it, or undoes it |
#![forbid(unsafe_code)]

mod attributes;
mod before;
mod check;
pub mod cli;
mod copies;
mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod layout;
mod live;
mod mounter;
mod parked;
mod plan;
pub mod run;
mod show;
mod signals;
mod stage;
mod survey;
mod undo;
mod verify;
mod wait;
mod walks;
mod worker;

/// The name in messages.
pub const TOOL: &str = "autofs-restore";
