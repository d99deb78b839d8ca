//! Typed messages, and descriptors with them, between a tool and its children.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message, in bytes; well below the default send buffer (net.core.wmem_default).
pub const MAX_MESSAGE: usize = 128 << 10;

/// The most descriptors that one message can carry (SCM_MAX_FD in net/scm.h).
pub const MAX_DESCRIPTORS: usize = 253;

/// Why no message came or went.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side is gone.
    #[error("the other side ended")]
    Closed,
    /// The deadline passed.
    #[error("no answer before the deadline")]
    TimedOut,
    /// The message is none that was expected here.
    #[error("unexpected message: {0}")]
    Unexpected(String),
    /// The system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One end of a channel. Messages keep their bounds and their order.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// For what is received; kept, as most messages are much shorter than it has to be.
    buffer: RefCell<Vec<u8>>,
}

impl Channel {
    /// Two ends that speak to each other.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let channel = |socket| Self { socket, buffer: RefCell::default() };
        Ok((channel(one), channel(other)))
    }

    /// Sends a message, and descriptors with it. Blocks while the other side has many unread.
    pub fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(message).map_err(io::Error::from)?;
        if bytes.len() > MAX_MESSAGE || fds.len() > MAX_DESCRIPTORS {
            return Err(io::Error::from(nix::errno::Errno::EMSGSIZE).into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        });
        match sent {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(ChannelError::Closed),
            Err(error) => Err(ChannelError::Io(error.into())),
        }
    }

    /// Waits for the next message, at most until `deadline`.
    pub fn receive<T: DeserializeOwned>(
        &self,
        deadline: Option<Instant>,
    ) -> Result<(T, Vec<OwnedFd>), ChannelError> {
        self.await_input(deadline)?;
        let mut bytes = self.buffer.borrow_mut();
        bytes.resize(MAX_MESSAGE, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        let received = match received {
            Ok(received) if received.bytes == 0 => return Err(ChannelError::Closed),
            Ok(received) => received,
            Err(rustix::io::Errno::CONNRESET) => return Err(ChannelError::Closed),
            Err(error) => return Err(ChannelError::Io(error.into())),
        };
        if received.flags.contains(ReturnFlags::CTRUNC) {
            // The kernel drops what does not fit into this process's descriptor limit.
            return Err(io::Error::from(nix::errno::Errno::EMFILE).into());
        }
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let text = &bytes[..received.bytes];
        let message = serde_json::from_slice(text).map_err(|error| {
            ChannelError::Unexpected(format!("{error} in '{}'", String::from_utf8_lossy(text)))
        })?;
        Ok((message, fds))
    }

    /// Whether the other end is gone.
    pub fn is_closed(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = poll(&mut polled, Some(&now));
        polled[0].revents().contains(PollFlags::HUP)
    }

    fn await_input(&self, deadline: Option<Instant>) -> Result<(), ChannelError> {
        loop {
            let timeout =
                deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
            let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut polled, timeout.as_ref()) {
                Ok(0) => return Err(ChannelError::TimedOut),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ChannelError::Io(error.into())),
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_descriptors() {
        let (one, other) = Channel::pair().expect("a channel");
        one.send(&"hello", &[one.as_fd()]).expect("sent");
        let (text, fds): (String, _) = other.receive(None).expect("received");
        assert_eq!((text.as_str(), fds.len()), ("hello", 1));
        assert!(rustix::io::fcntl_getfd(&fds[0]).expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn the_end_of_the_other_side_and_a_deadline_are_told_apart() {
        let (one, other) = Channel::pair().expect("a channel");
        let passed = one.receive::<u32>(Some(Instant::now()));
        assert!(matches!(passed, Err(ChannelError::TimedOut)), "{passed:?}");
        other.send(&"text", &[]).expect("sent");
        let wrong = one.receive::<u32>(None);
        assert!(matches!(wrong, Err(ChannelError::Unexpected(_))), "{wrong:?}");
        drop(other);
        let closed = one.receive::<u32>(None);
        assert!(matches!(closed, Err(ChannelError::Closed)), "{closed:?}");
        assert!(matches!(one.send(&1, &[]), Err(ChannelError::Closed)));
    }
}
