//! restore killed at every system call (SIGKILL): what is there goes on; the same command run again ends in the finished
//! state; an undo ends in the state before.
//!
//! Without more, a sample of the points is tried; `scripts/sweep` tries all of them.
//!
//! | file | what it has |
//! |---|---|
//! | `scene.rs` | a world with masters, and a restore that is killed in it |
//! | `plans.rs` | a scene for each plan |
//! | `again.rs` | the same command is run again |
//! | `undo.rs` | it is undone, and the undo is killed too |
//! | `pile.rs` | killed over and over |
//! | `unfinished.rs` | what inspect and dump say |

mod again;
mod pile;
mod plans;
mod scene;
mod undo;
mod unfinished;
