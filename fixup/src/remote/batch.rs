//! A batch: descriptors that are sent to the process, and the calls it makes with them.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::seccomp::Asked;

/// The most descriptors that one batch brings. The kernel's limit for one message is 253 (SCM_MAX_FD).
pub(super) const MOST_DESCRIPTORS: usize = 250;

/// A descriptor that the process gets with a batch. It has a number there only while the batch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received(pub(super) usize);

/// A descriptor of the process, as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// One that it gets with this batch.
    Received(Received),
    /// One that it has, by its number.
    Number(RawFd),
}

impl From<Received> for Descriptor {
    fn from(received: Received) -> Self {
        Self::Received(received)
    }
}

/// Memory that is passed to a call by its address, for example the argument of an ioctl.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data {
    pub(super) bytes: Vec<u8>,
    pub(super) numbers: Vec<(usize, Received)>,
}

impl Data {
    /// Memory with these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), numbers: Vec::new() }
    }

    /// Puts the number that a received descriptor has in the process at `offset`, as a 32-bit
    /// integer. Until it arrives the place holds -1.
    ///
    /// # Panics
    /// If the four bytes at `offset` are not inside the data.
    #[must_use]
    pub fn with_number(mut self, offset: usize, received: Received) -> Self {
        self.bytes[offset..offset + size_of::<RawFd>()].copy_from_slice(&(-1i32).to_ne_bytes());
        self.numbers.push((offset, received));
        self
    }
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    Value(u64),
    Number(Descriptor),
    Data(Data),
}

/// One system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub number: i64,
    pub arguments: Vec<Argument>,
    /// Where in its data the kernel writes the number of a descriptor that the call opens.
    pub opens: Option<usize>,
}

impl Call {
    /// For a seccomp filter: what of it is known before it is made.
    pub fn asked(&self) -> Asked {
        let mut arguments = [Some(0); 6];
        for (place, argument) in arguments.iter_mut().zip(&self.arguments) {
            *place = match argument {
                Argument::Value(value) => Some(*value),
                Argument::Number(Descriptor::Number(number)) => Some(*number as u64),
                Argument::Number(Descriptor::Received(_)) | Argument::Data(_) => None,
            };
        }
        let name = if self.number == libc::SYS_ioctl { "ioctl" } else { "dup3" };
        Asked { name, number: self.number, arguments }
    }
}

/// Descriptors to send, and the calls that the process makes with them, one after the other. A call
/// that fails does not end the batch, and its result is not known: look from outside at what it
/// should have done. All descriptors that the batch brings are closed again at its end, and each that it
/// opens as soon as it is sent to the engine.
#[derive(Clone, Debug, Default)]
pub struct Batch<'fd> {
    pub(super) descriptors: Vec<BorrowedFd<'fd>>,
    pub(super) calls: Vec<Call>,
}

impl<'fd> Batch<'fd> {
    /// A batch that does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The process gets a copy of `descriptor`, close-on-exec.
    pub fn receive(&mut self, descriptor: BorrowedFd<'fd>) -> Received {
        self.descriptors.push(descriptor);
        Received(self.descriptors.len() - 1)
    }

    /// The number of descriptors that the batch brings.
    pub fn received(&self) -> usize {
        self.descriptors.len()
    }

    /// `ioctl(descriptor, request, &data)`.
    pub fn ioctl(&mut self, descriptor: impl Into<Descriptor>, request: u64, data: Data) {
        self.call(
            libc::SYS_ioctl,
            vec![Argument::Number(descriptor.into()), Argument::Value(request), Argument::Data(data)],
        );
    }

    /// `ioctl(descriptor, request, &data)` for a request that opens something, and writes the number of the new
    /// descriptor at `offset` of its data, where -1 has to stand until then. The process sends the
    /// descriptor to the engine and closes its own: see [`super::Session::run`].
    ///
    /// # Panics
    /// If the four bytes at `offset` are not inside the data.
    pub fn open(&mut self, descriptor: impl Into<Descriptor>, request: u64, data: Data, offset: usize) {
        assert!(offset + size_of::<RawFd>() <= data.bytes.len(), "the number is outside of the data");
        self.ioctl(descriptor, request, data);
        if let Some(call) = self.calls.last_mut() {
            call.opens = Some(offset);
        }
    }

    /// How many calls of the batch open something.
    pub fn openings(&self) -> usize {
        self.calls.iter().filter(|call| call.opens.is_some()).count()
    }

    /// `dup3(received, number, flags)`: the process's descriptor `number`, which must be open, becomes
    /// the received one.
    pub fn replace(&mut self, number: RawFd, received: Received, close_on_exec: bool) {
        let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
        self.call(
            libc::SYS_dup3,
            vec![
                Argument::Number(received.into()),
                Argument::Value(number as u64),
                Argument::Value(flags as u64),
            ],
        );
    }

    fn call(&mut self, number: i64, arguments: Vec<Argument>) {
        self.calls.push(Call { number, arguments, opens: None });
    }

    pub(super) fn raw_descriptors(&self) -> Vec<RawFd> {
        self.descriptors.iter().map(AsRawFd::as_raw_fd).collect()
    }
}
