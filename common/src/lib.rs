//! What two or more of the autofs-cr tools need. The folders name roles:
//!
//! | module | role |
//! |---|---|
//! | [`sys`] | the system calls; the only place with `unsafe` |
//! | [`model`] | the words of the project as types: device, path, options |
//! | [`advice`] | the commands that messages tell a user to type next |
//! | [`pipe`] | a write end for a read end of another process |
//! | [`proc`] | reading /proc |
//! | [`scan`] | from /proc to a report |
//! | [`doc`] | the documents: report, image, stage |
//! | [`segment`] | the shared memory by which restore and the fixups work together |
//! | [`masters`] | what each kind of master needs to recognise its mounts |
//! | [`target`] | a process whose namespaces a tool works in |
//! | [`power`] | which capabilities a tool has use for; dropping all others |
//! | [`unfinished`] | what a restore works in, and leaves behind when it is killed |
//! | [`channel`] | typed messages between a tool and its children |
//! | [`child`] | steps that may block, run in a child process with a deadline |
//! | [`limits`] | how many descriptors a process may have open |
//! | [`cli`], [`exit`] | one command-line dialect |

pub mod advice;
pub mod channel;
pub mod child;
pub mod cli;
pub mod doc;
pub mod exit;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod limits;
pub mod masters;
pub mod model;
pub mod pipe;
pub mod power;
pub mod proc;
pub mod progress;
pub mod scan;
pub mod segment;
pub mod sys;
pub mod target;
pub mod threads;
pub mod unfinished;
