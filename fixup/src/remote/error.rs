//! What can stop the engine. Every refusal comes before anything in the process was changed.

use std::io;

use thiserror::Error;

/// Why system calls could not be run inside a process.
#[derive(Debug, Error)]
pub enum Error {
    /// The process is gone, or went away meanwhile.
    #[error("process {pid} is gone")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The engine was asked to work on its own process.
    #[error("process {pid} is this process itself")]
    Myself {
        /// The process.
        pid: i32,
    },
    /// Another tracer is there.
    #[error("process {pid} is traced by process {tracer}")]
    Traced {
        /// The process.
        pid: i32,
        /// Its tracer.
        tracer: i32,
    },
    /// Another engine has calls made in it.
    #[error(
        "system calls are being made in process {pid} for another autofs-fixup; run this again when that has ended"
    )]
    Busy {
        /// The process.
        pid: i32,
    },
    /// The process is stopped by a signal.
    #[error("process {pid} is stopped; continue it with kill -CONT {pid}")]
    GroupStopped {
        /// The process.
        pid: i32,
    },
    /// The process is in a control group that is frozen.
    #[error("process {pid} is frozen by its control group; thaw it first")]
    Frozen {
        /// The process.
        pid: i32,
    },
    /// A thread did not stop: it sleeps where no signal reaches it.
    #[error(
        "thread {tid} of process {pid} does not stop (it sleeps in {place} of the kernel, where no signal reaches it)"
    )]
    Unstoppable {
        /// The process.
        pid: i32,
        /// The thread.
        tid: i32,
        /// The kernel function that it sleeps in.
        place: String,
    },
    /// The process uses something that the engine does not handle.
    #[error("cannot run system calls in process {pid}: {reason}")]
    Unsuitable {
        /// The process.
        pid: i32,
        /// What it is.
        reason: String,
    },
    /// No thread has what is needed; the reasons are one for each thread.
    #[error("no thread of process {pid} can run system calls: {reasons}")]
    NoThread {
        /// The process.
        pid: i32,
        /// Thread numbers and reasons.
        reasons: String,
    },
    /// This architecture has no engine yet.
    #[error("running system calls in a live process is not implemented for this architecture")]
    Architecture,
    /// A batch is too large for the dead stack space of the thread.
    #[error("the calls need {needed} bytes of stack in process {pid}, which has room for {room}")]
    NoRoom {
        /// The process.
        pid: i32,
        /// What the batch takes, in bytes.
        needed: usize,
        /// What there is, in bytes.
        room: usize,
    },
    /// The process may not have as many descriptors as a batch brings.
    #[error("process {pid} has {free} free descriptors under its limit (RLIMIT_NOFILE), and needs {needed}")]
    NoDescriptors {
        /// The process.
        pid: i32,
        /// How many a batch needs.
        needed: usize,
        /// How many are free.
        free: usize,
    },
    /// More descriptors than one message can carry.
    #[error("a batch cannot bring {count} descriptors; the most is {most}")]
    TooManyDescriptors {
        /// How many the batch has.
        count: usize,
        /// How many it may have.
        most: usize,
    },
    /// The kernel gave the process fewer descriptors than were sent; the calls on the others failed.
    #[error("process {pid} received {received} of {sent} descriptors")]
    Truncated {
        /// The process.
        pid: i32,
        /// How many arrived.
        received: usize,
        /// How many were sent.
        sent: usize,
    },
    /// The seccomp filters of the process do not allow a call.
    #[error(
        "the seccomp filters of process {pid} do not allow {call}, which has to be made inside of it: allow that, or \
        restart the process"
    )]
    Filtered {
        /// The process.
        pid: i32,
        /// The name of the call.
        call: &'static str,
    },
    /// The socket pair of the chain could not be made inside the process.
    #[error("process {pid} cannot make a socket pair")]
    SocketPair {
        /// The process.
        pid: i32,
        /// The error of the call.
        source: io::Error,
    },
    /// The chain ended although nobody told it to.
    #[error("the calls in process {pid} ended early")]
    Ended {
        /// The process.
        pid: i32,
    },
    /// The deadline passed.
    #[error("{what} in process {pid} did not happen in time")]
    Timeout {
        /// The process.
        pid: i32,
        /// What was waited for.
        what: &'static str,
    },
    /// A system call of this process failed.
    #[error("{operation} (thread {tid})")]
    Call {
        /// Which call.
        operation: &'static str,
        /// The thread or process it was for.
        tid: i32,
        /// Its error.
        source: io::Error,
    },
    /// Something in /proc could not be read, or made no sense.
    #[error("{path}")]
    Proc {
        /// The file.
        path: String,
        /// The error.
        source: io::Error,
    },
}

/// The result of this module's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(super) fn call(operation: &'static str, tid: i32, error: impl Into<io::Error>) -> Self {
        Self::Call { operation, tid, source: error.into() }
    }
}
