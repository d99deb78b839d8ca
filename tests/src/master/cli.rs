//! The options of the reference master.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// A small autofs daemon for tests. Prints "ready" when it serves. Reads commands from standard
/// input: "report", "expire PATH", "serve",
/// "swallow", "quit".
#[derive(Debug, Parser)]
#[command(args_override_self = true)]
pub struct Cli {
    /// Mount a direct trigger here (may be given many times; the directory is made)
    #[arg(long, value_name = "PATH")]
    pub direct: Vec<PathBuf>,
    /// Mount an indirect map here
    #[arg(long, value_name = "PATH")]
    pub indirect: Vec<PathBuf>,
    /// Mount an offset trigger here
    #[arg(long, value_name = "PATH")]
    pub offset: Vec<PathBuf>,
    /// A file of lines "direct PATH", "indirect PATH" or "offset PATH"
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// Mount COUNT direct triggers at PREFIX/000000 and so on
    #[arg(long, num_args = 2, value_names = ["PREFIX", "COUNT"])]
    pub bulk: Vec<String>,
    /// Seconds after which content may expire
    #[arg(long, default_value_t = 300)]
    pub timeout: u64,
    /// Owner of the roots
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group of the roots
    #[arg(long)]
    pub gid: Option<u32>,
    /// Mount with strictexpire
    #[arg(long)]
    pub strictexpire: bool,
    /// Mount with ignore
    #[arg(long)]
    pub ignore: bool,
    /// Lowest protocol version
    #[arg(long, default_value_t = 5)]
    pub minproto: u32,
    /// Highest protocol version
    #[arg(long, default_value_t = 5)]
    pub maxproto: u32,
    /// One pipe for all mounts, as automount's direct maps; or one for each, as systemd
    #[arg(long, value_enum, default_value_t = Pipes::One)]
    pub pipes: Pipes,
    /// What becomes of the write ends when the mounts are there
    #[arg(long, value_enum, default_value_t = WriteEnd::Keep)]
    pub write_end: WriteEnd,
    /// The lowest number that a read end may have
    #[arg(long, value_name = "N")]
    pub read_fd: Option<i32>,
    /// The read ends do not block
    #[arg(long)]
    pub nonblock: bool,
    /// How it waits for requests
    #[arg(long, value_enum, default_value_t = Wait::Poll)]
    pub wait: Wait,
    /// One thread only, in the read mode too: a command is then answered after the next request
    #[arg(long)]
    pub single: bool,
    /// This many more threads, blocked in different system calls
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Keep a control descriptor for each mount, and answer through it
    #[arg(long)]
    pub control_fds: bool,
    /// How a request's mount is recognised
    #[arg(long, value_enum, default_value_t = Identity::Device)]
    pub identity: Identity,
    /// Mount nothing: serve the mounts whose pipe is at this inherited descriptor
    #[arg(long, value_name = "N")]
    pub pipe_fd: Option<i32>,
    /// Mounts that are there already are connected to this master, as automount does when it is restarted
    #[arg(long)]
    pub reconnect: bool,
    /// Stay in the process group of the parent
    #[arg(long)]
    pub no_setpgid: bool,
    /// Make this directory inside each indirect mount (browse mode)
    #[arg(long, value_name = "NAME")]
    pub subdir: Vec<String>,
    /// Make this symlink inside each indirect mount
    #[arg(long, value_name = "NAME=TARGET")]
    pub symlink: Vec<String>,
    /// Do not read, so that requests stay in the pipe, until the command "serve"
    #[arg(long)]
    pub ignore_requests: bool,
    /// Read requests, and do not answer until the command "serve"
    #[arg(long)]
    pub swallow: bool,
}

/// How many pipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pipes {
    /// One for all mounts.
    One,
    /// One for each mount.
    Each,
}

/// What becomes of the write ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WriteEnd {
    /// Kept open, as automount does.
    Keep,
    /// Closed, as systemd does.
    Close,
}

/// How requests are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// The main thread in read(2); commands in a second thread.
    Read,
    /// One thread in poll(2) without timeout.
    Poll,
    /// One thread in poll(2) with a long timeout.
    PollTimeout,
    /// One thread in epoll_wait(2).
    Epoll,
    /// The main thread in a futex, others in read(2).
    Futex,
}

/// By what a request's mount is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Identity {
    /// The device, as systemd: a packet with another is ignored.
    Device,
    /// Device and inode of the root, as automount's direct maps.
    Inode,
    /// Nothing: the mount is looked up in mountinfo.
    None,
}
