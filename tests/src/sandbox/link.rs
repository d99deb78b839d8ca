//! The test's end of the link to a helper.

use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use autofs_cr_common::model::Pid;
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exit(i32),
    /// A signal with this number killed it.
    Signal(i32),
}

/// A socket on which one helper will call.
pub struct Listener {
    socket: UnixListener,
    name: String,
}

impl Listener {
    /// A new one under a name of its own.
    pub fn new() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("autofs-cr-tests.{}.{number}", std::process::id());
        let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        Ok(Self { socket, name })
    }

    /// What the helper needs to call.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for the helper's call.
    pub fn accept(self, deadline: Duration) -> io::Result<Link> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(deadline).unwrap_or(PollTimeout::MAX);
        if nix::poll::poll(&mut fds, timeout)? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the helper did not call"));
        }
        let (stream, _) = self.socket.accept()?;
        Ok(Link(BufReader::new(stream)))
    }
}

/// A connection to a helper. Closing it makes the helper end what it runs.
pub struct Link(BufReader<UnixStream>);

impl Link {
    /// The pid of what the helper started, in the namespace of the test.
    pub fn pid(&mut self, deadline: Duration) -> io::Result<Pid> {
        let line = self.line(deadline)?;
        line.strip_prefix("pid ")
            .and_then(|pid| pid.parse().ok())
            .ok_or_else(|| io::Error::other(format!("the helper said '{line}' instead of a pid")))
    }

    /// How it ended; fails with `TimedOut` when it has not in that time.
    pub fn end(&mut self, deadline: Duration) -> io::Result<End> {
        let line = self.line(deadline)?;
        let number = |text: &str| text.parse().map_err(io::Error::other);
        match line.split_once(' ') {
            Some(("exit", code)) => Ok(End::Exit(number(code)?)),
            Some(("signal", signal)) => Ok(End::Signal(number(signal)?)),
            _ => Err(io::Error::other(format!("the helper said '{line}' instead of an end"))),
        }
    }

    /// Asks the helper to kill what it runs.
    pub fn hang_up(&self) -> io::Result<()> {
        self.0.get_ref().shutdown(std::net::Shutdown::Write)
    }

    fn line(&mut self, deadline: Duration) -> io::Result<String> {
        // A timeout of zero is refused.
        self.0.get_ref().set_read_timeout(Some(deadline.max(Duration::from_millis(1))))?;
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the helper ended")),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the time is over"))
            }
            Err(error) => Err(error),
        }
    }
}
