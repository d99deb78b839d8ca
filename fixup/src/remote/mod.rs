//! Running system calls inside a live process that is never harmed.
//!
//! ```text
//! Stopped::attach   every thread is stopped                      nothing changed yet
//! Stopped::start    one thread makes a socket pair; the engine   from here on the chain runs to its
//!                   takes one end, the thread waits on the other end, with or without the engine
//! Session::run      a batch: descriptors, and calls on them      as often as wanted
//! Session::finish   the thread closes its socket and goes on where it was; so do the others
//! ```
//!
//! However the engine ends, the kernel detaches the threads and closes its end of the socket pair. The
//! process then goes on as if nothing had been, or with the batch that it already got done: no register,
//! signal mask, alternate stack or descriptor is changed. What is left is this: a call that the kernel
//! does not make again after a stop (epoll_wait) fails with EINTR if the engine dies in the moment
//! between stopping the thread and correcting that; a relative timeout of the one thread that ran the
//! chain starts anew; and a signal that comes while the chain runs is delivered at its end, as if it had
//! come just before the interrupted call (poll, epoll_wait, sleeps and the like then fail with
//! EINTR as always; read and the like are made again).
//!
//! The engine knows nothing of autofs. It does not see the results of the calls, but gets what they open.
//!
//! Use a thread or a process of its own for each process that is worked on: the end of that thread
//! detaches everything, also what could not be detached otherwise (a thread that does not stop).
//! No child that is forked during a session may keep the session's descriptors.

// Where nothing can be made, nothing is used.
#![cfg_attr(not(target_arch = "x86_64"), allow(unused, unreachable_code))]

mod batch;
mod bpf;
mod error;
mod facts;
mod seccomp;
mod session;
mod tracees;

#[cfg(target_arch = "x86_64")]
#[path = "x86_64/mod.rs"]
mod arch;
#[cfg(not(target_arch = "x86_64"))]
#[path = "unsupported.rs"]
mod arch;

pub use batch::{Batch, Data, Descriptor, Received};
pub use error::{Error, Result};
pub use session::{Session, Stopped};
