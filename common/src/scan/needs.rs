//! What the caller of a scan asks for: what is not needed is not looked for.

/// What a report has to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Which processes it has to tell of.
    pub processes: Processes,
    /// Whether it has to tell what waits for an answer.
    pub waiting: Waiting,
}

/// Which processes a report has to tell of. The state of each superblock, the reason and the master are the same
/// with each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Processes {
    /// The masters, with the ends of pipes that they hold. The processes of the mounts' own groups are looked at
    /// first, and the others only if these do not serve every superblock. Then others that hold an end of a pipe
    /// may be told of too.
    Masters,
    /// The same, with their control fds: what has to be known to recreate them.
    MastersInFull,
    /// Every process that holds an end of a pipe or a control fd.
    All,
}

/// What waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiting {
    /// Nothing of it.
    Nothing,
    /// The requests that wait unread.
    Requests,
    /// The requests, and the threads that wait: a look at every thread.
    Threads,
}

impl Needs {
    /// Everything.
    pub const REPORT: Self = Self { processes: Processes::All, waiting: Waiting::Threads };
    /// The state of each mount, and what waits: what people look at.
    pub const STATES: Self = Self { processes: Processes::Masters, waiting: Waiting::Threads };
    /// What an image is made of and compared with.
    pub const IMAGE: Self = Self { processes: Processes::MastersInFull, waiting: Waiting::Requests };
}
