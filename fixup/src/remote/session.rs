//! From a running process to a session in it, and back.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use autofs_cr_common::sys::ptrace as requests;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::ptrace::{self, Options};
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, sendmsg, setsockopt, shutdown, sockopt};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::arch::{self, Chain, Gadgets, Spot};
use super::batch::{Batch, Call, MOST_DESCRIPTORS};
use super::error::{Error, Result};
use super::facts::{self, Memory};
use super::seccomp::{Asked, Filters, Verdict};
use super::tracees::{Stop, Tracees, pid_of, resume, wait_for_stop};

/// Before a process is looked at again that another engine has just left.
const PAUSE: Duration = Duration::from_millis(1);

/// How often a process without a fit thread is looked at.
const MOST_TRIES: usize = 50;

/// A socket must hold a whole batch.
const SOCKET_BUFFER: usize = 512 * 1024;

/// A process with all threads stopped, one of which can run system calls for us. Dropping it lets it go
/// on with everything as it was.
#[derive(Debug)]
pub struct Stopped<'fd> {
    pidfd: BorrowedFd<'fd>,
    pid: Pid,
    tracees: Tracees,
    spot: Spot,
    gadgets: Gadgets,
}

impl<'fd> Stopped<'fd> {
    /// Stops every thread of the process that `pidfd` stands for, and looks for one that can run calls.
    ///
    /// # Errors
    /// Refused are, with nothing changed: a process that is gone, traced, stopped by a signal, or in which another engine
    /// is at work until `deadline`; a thread
    /// that does not stop before `deadline`; a process without what the chain is built from (32-bit
    /// code, a shadow stack, seccomp filters that do not tolerate its calls, no thread with room on a stack of a known
    /// kind).
    pub fn attach(pidfd: BorrowedFd<'fd>, deadline: Instant) -> Result<Self> {
        let pid = pid_of(pidfd)?;
        let mut waited_for = None;
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match Self::attach_once(pidfd, pid, deadline) {
                Ok(stopped) => return Ok(stopped),
                Err(error) => error,
            };
            if !passes(&error, tries) {
                let is_time = matches!(error, Error::Timeout { .. } | Error::Unstoppable { .. });
                return Err(waited_for.filter(|_| is_time).unwrap_or(error));
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            waited_for = Some(error);
            sleep(PAUSE);
        }
    }

    fn attach_once(pidfd: BorrowedFd<'fd>, pid: Pid, deadline: Instant) -> Result<Self> {
        let tracees = Tracees::attach(pid, deadline)?;
        // The number could have been given to another process before its threads were seized.
        if pid_of(pidfd)? != pid {
            return Err(Error::Gone { pid: pid.as_raw() });
        }
        let mappings = facts::mappings(pid)?;
        let gadgets = Gadgets::find(pid, &mappings)?;
        for tid in tracees.threads() {
            if gadgets.runs_chain(pid, tid)? {
                return Err(Error::Busy { pid: pid.as_raw() });
            }
        }
        let spot = choose(pid, &tracees, &mappings)?;
        Ok(Self { pidfd, pid, tracees, spot, gadgets })
    }

    /// The room for one batch, in bytes; see [`Batch::size`].
    pub fn room(&self) -> usize {
        self.spot.layout().batch_room()
    }

    /// How many descriptors one batch may bring: by the process's limit and by what a message carries.
    pub fn descriptors(&self) -> Result<usize> {
        most_descriptors(self.pid)
    }

    /// Starts a session. An error leaves the process as it was.
    pub fn start(mut self, deadline: Instant) -> Result<Session<'fd>> {
        let tid = self.spot.tid();
        if self.spot.needs_suspension {
            suspend_seccomp(tid)?;
        }
        let chain = Chain::new(&self.spot, self.gadgets);
        chain.write(self.pid).map_err(|e| Error::call("write to the stack of", tid.as_raw(), e))?;
        chain.start(tid)?;
        let result = self.run_to_socketpair(&chain, deadline)?;
        if result != 0 {
            return Err(self.no_sockets(Errno::from_raw(-result as i32)));
        }
        let (socket, number) = self.take_socket(&chain)?;
        // From here on the end of `socket` is what ends the chain.
        if self.spot.needs_suspension {
            // Its filters are off only while it is attached.
            resume(tid, None)?;
        } else {
            self.tracees.release(tid)?;
        }
        let mut session = Session {
            pidfd: self.pidfd,
            pid: self.pid,
            filters: self.spot.filters,
            tracees: self.tracees,
            chain,
            socket,
            number,
            free: 0,
            in_flight: VecDeque::new(),
        };
        // When an empty batch is done, the thread waits for the next and has closed what it does not need.
        session.run(&Batch::new(), deadline)?;
        session.free = facts::free_descriptors(session.pid)?;
        Ok(session)
    }

    fn no_sockets(&self, error: Errno) -> Error {
        let pid = self.pid.as_raw();
        match (error, facts::free_descriptors(self.pid)) {
            (Errno::EMFILE, Ok(free)) => Error::NoDescriptors { pid, needed: 2, free },
            (error, _) => Error::SocketPair { pid, source: error.into() },
        }
    }

    /// Follows the thread until it made the socket pair; its result.
    fn run_to_socketpair(&self, chain: &Chain, deadline: Instant) -> Result<i64> {
        let tid = self.spot.tid();
        let mut signal = None;
        loop {
            ptrace::syscall(tid, signal.take())
                .map_err(|error| Error::call("ptrace syscall", tid.as_raw(), error))?;
            match wait_for_stop(self.pid, tid, deadline)? {
                Stop::Call | Stop::Interrupted => {}
                // All signals are blocked, but SIGSTOP cannot be.
                Stop::Signal(stop) => signal = stop,
                // The chain goes on to its end when the process is continued.
                Stop::Group => return Err(Error::GroupStopped { pid: self.pid.as_raw() }),
                Stop::Ended => return Err(Error::Gone { pid: self.pid.as_raw() }),
            }
            if let Some(result) = chain.call_result(tid)? {
                return Ok(result);
            }
        }
    }

    /// A copy of the engine's end of the socket pair, and the number of the process's end.
    fn take_socket(&self, chain: &Chain) -> Result<(OwnedFd, i32)> {
        let pid = self.pid.as_raw();
        let mut numbers = [0u8; 8];
        Memory(self.pid)
            .read(chain.layout.sockets(), &mut numbers)
            .map_err(|e| Error::call("read from the stack of", pid, e))?;
        let [ours, theirs] = [0, 4]
            .map(|at| i32::from_ne_bytes([numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]]));
        let socket = pidfd_getfd(self.pidfd, ours, PidfdGetfdFlags::empty())
            .map_err(|e| Error::call("pidfd_getfd", pid, e))?;
        // Needs CAP_NET_ADMIN; without it the usual size has to do.
        let _ = setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER);
        Ok((socket, theirs))
    }
}

/// Whether this is soon over: what another engine leaves for a moment when it is killed, as its chain still runs to its end, and
/// the kernel lets go of the threads only after it has let go of its claim; or a handler of a signal that has little stack.
fn passes(error: &Error, tries: usize) -> bool {
    match error {
        Error::Busy { .. } => true,
        Error::Traced { tracer, .. } => facts::is_ending(*tracer),
        Error::NoThread { .. } => tries < MOST_TRIES,
        _ => false,
    }
}

fn most_descriptors(pid: Pid) -> Result<usize> {
    facts::free_descriptors(pid).map(|free| free.min(MOST_DESCRIPTORS))
}

/// The stopped thread that is best for the chain.
fn choose(pid: Pid, tracees: &Tracees, mappings: &[facts::Mapping]) -> Result<Spot> {
    let stacks = tracees
        .threads()
        .map(|tid| arch::stack_pointer(tid).map(|pointer| (tid, pointer)))
        .collect::<Result<Vec<_>>>()?;
    let mut reasons = Vec::new();
    let mut best: Option<Spot> = None;
    for tid in tracees.threads() {
        match Spot::examine(pid, tid, mappings, &stacks)? {
            Ok(spot) if best.as_ref().is_none_or(|best| spot.rank() > best.rank()) => best = Some(spot),
            Ok(_) => {}
            Err(reason) => reasons.push(format!("thread {tid} {reason}")),
        }
    }
    best.ok_or_else(|| Error::NoThread { pid: pid.as_raw(), reasons: reasons.join("; ") })
}

fn suspend_seccomp(tid: Pid) -> Result<()> {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::from_bits_retain(requests::O_SUSPEND_SECCOMP);
    ptrace::setoptions(tid, options).map_err(|e| Error::call("ptrace suspend seccomp", tid.as_raw(), e))
}

/// What is expected from the process for a batch.
#[derive(Clone, Copy)]
struct InFlight {
    /// How many descriptors it should have got.
    sent: usize,
    /// How many calls open something.
    openings: usize,
}

/// A process one of whose threads waits for batches, while all others are stopped. Dropping it ends
/// the chain as well, without waiting for that.
pub struct Session<'fd> {
    pidfd: BorrowedFd<'fd>,
    pid: Pid,
    filters: Filters,
    chain: Chain,
    socket: OwnedFd,
    /// The number of the other end, in the process.
    number: i32,
    /// How many more descriptors the process may open. It is stopped, so that stays so.
    free: usize,
    /// The batches that were sent and not waited for yet.
    in_flight: VecDeque<InFlight>,
    /// Dropped after the socket: a thread with seccomp stays attached while it runs the chain.
    tracees: Tracees,
}

impl Session<'_> {
    /// The room for one batch, in bytes; see [`Batch::size`].
    pub fn room(&self) -> usize {
        self.chain.layout.batch_room()
    }

    /// How many descriptors one batch may bring.
    pub fn descriptors(&self) -> usize {
        self.free.min(MOST_DESCRIPTORS)
    }

    /// Lets the process make the calls of a batch, and waits until it made them all. Gives what they
    /// opened, in the order of [`Batch::open`]; none where a call failed.
    ///
    /// # Errors
    /// A batch that is too large, or has a call that the seccomp filters do not allow, is refused before it is sent. After a timeout the calls may still be
    /// made.
    pub fn run(&mut self, batch: &Batch<'_>, deadline: Instant) -> Result<Vec<Option<OwnedFd>>> {
        while !self.in_flight.is_empty() {
            self.wait(deadline)?;
        }
        if !self.send(batch)? {
            return Err(Error::call("sendmsg", self.pid.as_raw(), Errno::EAGAIN));
        }
        self.wait(deadline)
    }

    /// Sends a batch, which the process runs when it is done with those before: so this one works for the next batch
    /// while the process works on one. False if there is no room for it now: those before have to be waited for.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn send(&mut self, batch: &Batch<'_>) -> Result<bool> {
        self.check(batch)?;
        let message = self.chain.encode(batch, self.number);
        debug_assert_eq!(message.len(), batch.size());
        let descriptors = batch.raw_descriptors();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        match sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&message)], control, flags, None) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(false),
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(self.ended()),
            Err(error) => return Err(Error::call("sendmsg", self.pid.as_raw(), error)),
        }
        self.in_flight.push_back(InFlight { sent: descriptors.len(), openings: batch.openings() });
        Ok(true)
    }

    /// Waits until the process has made all calls of the first batch that was sent and not waited for. Gives what they
    /// opened; nothing if there is no such batch.
    pub fn wait(&mut self, deadline: Instant) -> Result<Vec<Option<OwnedFd>>> {
        let Some(InFlight { sent, openings }) = self.in_flight.pop_front() else { return Ok(Vec::new()) };
        let mut opened: Vec<Option<OwnedFd>> = std::iter::repeat_with(|| None).take(openings).collect();
        let report = self.receive_report(&mut opened, deadline)?;
        let received = Chain::received(&report);
        if received < sent {
            return Err(Error::Truncated { pid: self.pid.as_raw(), received, sent });
        }
        Ok(opened)
    }

    /// Ends the session: waits until the thread closed its end of the socket pair and is about to go on
    /// where it was, and lets all others go.
    pub fn finish(self, deadline: Instant) -> Result<()> {
        self.chain.respect_signals(self.pid)?;
        // An error means that the other end is closed already.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
        self.wait_for(PollFlags::empty(), "the end of the calls", deadline)?;
        drop(self.tracees);
        Ok(())
    }

    /// Whether a batch can be run, now.
    ///
    /// # Errors
    /// It has not room, brings too many descriptors for the process, or has a call that its seccomp filters do not allow.
    pub fn check(&self, batch: &Batch<'_>) -> Result<()> {
        let pid = self.pid.as_raw();
        let (needed, room) = (batch.size(), self.room());
        if needed > room {
            return Err(Error::NoRoom { pid, needed, room });
        }
        let is_forbidden = |asked: &Asked| self.filters.verdict(asked) != Verdict::Allowed;
        if let Some(call) = batch.calls.iter().map(Call::asked).find(is_forbidden) {
            return Err(Error::Filtered { pid, call: call.name });
        }
        let (count, most) = (batch.received(), MOST_DESCRIPTORS);
        if count > most {
            return Err(Error::TooManyDescriptors { count, most });
        }
        if count > self.free {
            return Err(Error::NoDescriptors { pid, needed: count, free: self.free });
        }
        Ok(())
    }

    /// Receives what was opened, and the report at the end.
    fn receive_report(
        &self,
        opened: &mut [Option<OwnedFd>],
        deadline: Instant,
    ) -> Result<[u8; arch::REPORT]> {
        loop {
            self.wait_for(PollFlags::POLLIN, "the end of a batch", deadline)?;
            let mut message = [0; arch::REPORT];
            match self.receive(&mut message)? {
                (arch::REPORT, _) => return Ok(message),
                (arch::INDEX, Some(descriptor)) => {
                    let mut index = [0; arch::INDEX];
                    index.copy_from_slice(&message[..arch::INDEX]);
                    let place = opened.get_mut(u64::from_ne_bytes(index) as usize);
                    *place.ok_or_else(|| self.ended())? = Some(descriptor);
                }
                _ => return Err(self.ended()),
            }
        }
    }

    /// One message: its length, and the descriptor that came with it.
    fn receive(&self, message: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(message)], &mut ancillary, flags);
        let length = received.map_err(|_| self.ended())?.bytes;
        let rights = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        Ok((length, rights))
    }

    /// Waits until the socket is ready for `events`, or the other end is closed.
    fn wait_for(&self, events: PollFlags, what: &'static str, deadline: Instant) -> Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that no time is spent in a busy loop before the deadline.
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), events)], timeout) {
                Ok(0) if left.is_zero() => return Err(Error::Timeout { pid: self.pid.as_raw(), what }),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(Error::call("poll", self.pid.as_raw(), error)),
            }
        }
    }

    /// The other end is closed: because the process is gone, or because a call of a batch closed it.
    fn ended(&self) -> Error {
        let pid = self.pid.as_raw();
        if pid_of(self.pidfd).is_ok() { Error::Ended { pid } } else { Error::Gone { pid } }
    }
}

impl Batch<'_> {
    /// What the batch takes of a session's room, in bytes.
    pub fn size(&self) -> usize {
        arch::encoded_size(self)
    }
}
