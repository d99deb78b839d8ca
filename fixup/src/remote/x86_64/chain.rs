//! The fixed part of the chain, and its start.

use std::io;

use autofs_cr_common::sys::ptrace as requests;
use nix::unistd::Pid;

use super::super::batch::Batch;
use super::super::error::{Error, Result};
use super::super::facts::{Memory, Status};
use super::encode::encode;
use super::gadgets::Gadgets;
use super::layout::{
    CONTROL, CONTROL_HEADER, CONTROL_LENGTH_IN_HEADER, CONTROL_OFFSET, GATE_OFFSET, Layout, MUTABLE, VECTOR,
};
use super::link::{LINK, Links, offset, put};
use super::spot::Spot;
use super::{Registers, SYSCALL_CODE, get_registers, set_registers};

const ENOSYS: i64 = libc::ENOSYS as i64;

/// Bytes at an address of the process.
pub struct Image {
    pub base: u64,
    pub bytes: Vec<u8>,
}

impl Image {
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        let at = (address - self.base) as usize;
        if self.bytes.len() < at + bytes.len() {
            self.bytes.resize(at + bytes.len(), 0);
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn put_vectors(&mut self, mut address: u64, vectors: &[(u64, usize)]) {
        for (base, length) in vectors {
            self.put(address, &base.to_le_bytes());
            self.put(address + 8, &(*length as u64).to_le_bytes());
            address += VECTOR as u64;
        }
    }
}

/// The chain of one thread.
pub struct Chain {
    pub layout: Layout,
    links: Links,
    start: Registers,
    image: Vec<u8>,
    tid: Pid,
    mask: u64,
    /// The part of RESTORE from rax to rip that makes the interrupted call fail.
    failing: Option<Vec<u8>>,
}

/// rax, rcx, rsp and rip.
const RESULT_TO_ADDRESS: std::ops::Range<usize> = offset::RAX..offset::EFLAGS;

pub const NO_DESCRIPTOR: u64 = u64::MAX;

impl Chain {
    /// Builds the fixed part.
    pub fn new(spot: &Spot, gadgets: Gadgets) -> Self {
        let layout = spot.layout();
        let links = Links {
            gadgets,
            code_selector: spot.registers.cs as u16,
            stack_selector: spot.registers.ss as u16,
        };
        let mut start = spot.registers;
        start.rip = gadgets.sigreturn;
        start.rsp = layout.socketpair + 8;
        start.rax = 0;
        // Not in a system call: the kernel must not make the interrupted one again here.
        start.orig_rax = u64::MAX;
        let image = fixed_part(&layout, &links, spot);
        let failing = spot.registers_if_handled.map(|registers| {
            let link = links.restore(&registers, spot.mask, layout.xstate);
            link[RESULT_TO_ADDRESS].to_vec()
        });
        Self { layout, links, start, image, tid: spot.tid(), mask: spot.mask, failing }
    }

    /// Writes the fixed part to the process: dead stack space, nothing else changes.
    pub fn write(&self, pid: Pid) -> io::Result<()> {
        Memory(pid).write(self.layout.socketpair, &self.image)
    }

    /// To be called before the end: if a signal came meanwhile whose handler will run then, a call
    /// that fails with EINTR in that case does so.
    pub fn respect_signals(&self, pid: Pid) -> Result<()> {
        let Some(failing) = &self.failing else { return Ok(()) };
        if !Status::read(pid, self.tid)?.handler_runs_with(self.mask) {
            return Ok(());
        }
        // The kernel copies this as a whole, also when this process is killed meanwhile.
        Memory(pid)
            .write(self.layout.restore + RESULT_TO_ADDRESS.start as u64, failing)
            .map_err(|e| Error::call("write to the stack of", self.tid.as_raw(), e))
    }

    /// Starts the chain: from the first of these two calls on it runs to its end, whatever happens
    /// to this process. The second keeps signals away until the first link does.
    pub fn start(&self, tid: Pid) -> Result<()> {
        set_registers(tid, self.start)?;
        requests::setsigmask(tid, u64::MAX).map_err(|e| Error::call("ptrace setsigmask", tid.as_raw(), e))
    }

    /// The result of the call that the chain's thread just came back from, at a stop.
    pub fn call_result(&self, tid: Pid) -> Result<Option<i64>> {
        let registers = get_registers(tid)?;
        let after = self.links.gadgets.syscall_ret + SYSCALL_CODE.len() as u64;
        let result = registers.rax as i64;
        Ok((registers.rip == after && result != -ENOSYS).then_some(result))
    }

    /// The message for a batch: links and what they point to, to be received at the gate.
    pub fn encode(&self, batch: &Batch<'_>, socket: i32) -> Vec<u8> {
        encode(&self.layout, &self.links, batch, socket)
    }

    /// How many descriptors the process got, from its report.
    pub fn received(report: &[u8]) -> usize {
        let mut length = [0u8; 8];
        length.copy_from_slice(&report[CONTROL_OFFSET..CONTROL_OFFSET + 8]);
        (u64::from_le_bytes(length) as usize).saturating_sub(CONTROL_HEADER) / 4
    }
}

fn fixed_part(layout: &Layout, links: &Links, spot: &Spot) -> Vec<u8> {
    let mut image = Image { base: layout.socketpair, bytes: Vec::new() };
    let socket_type = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64;
    let rdi = offset::RDI as u64;
    let gate_in_pristine = layout.pristine + GATE_OFFSET as u64;
    let vectors = layout.vectors;
    let places = [layout.close_other, layout.receive, layout.gate(), gate_in_pristine];
    let sources = [0, 4, 4, 4];
    let message_vector = vectors + 8 * VECTOR as u64;

    image.put(
        layout.socketpair,
        &links.call(
            libc::SYS_socketpair,
            &[libc::AF_UNIX as u64, socket_type, 0, layout.sockets],
            layout.copy_sockets,
        ),
    );
    image.put(
        layout.copy_sockets,
        &copy_link(links, layout, vectors, vectors + 4 * VECTOR as u64, 4, layout.close_other),
    );
    image.put(layout.close_other, &links.call(libc::SYS_close, &[NO_DESCRIPTOR], layout.receive));
    image.put(
        layout.receive,
        &links.call(
            libc::SYS_recvmsg,
            &[NO_DESCRIPTOR, layout.mutable, libc::MSG_CMSG_CLOEXEC as u64],
            layout.gate(),
        ),
    );
    image.put(layout.restore, &links.restore(&spot.registers, spot.mask, layout.xstate));
    image.put(layout.xstate, &spot.xstate);
    image.put(layout.sockets, &u64::MAX.to_le_bytes());
    image.put_vectors(vectors, &places.map(|link| (link + rdi, 4)));
    image.put_vectors(vectors + 4 * VECTOR as u64, &sources.map(|at| (layout.sockets + at, 4)));
    image.put_vectors(message_vector, &[(layout.gate(), layout.batch_room())]);
    image.put_vectors(put_back_vectors(layout), &[(layout.mutable, MUTABLE), (layout.pristine, MUTABLE)]);

    let mut mutable = [0u8; MUTABLE];
    put(&mut mutable, 16, message_vector);
    put(&mut mutable, 24, 1);
    put(&mut mutable, 32, layout.mutable + CONTROL_OFFSET as u64);
    put(&mut mutable, CONTROL_LENGTH_IN_HEADER, CONTROL as u64);
    mutable[CONTROL_OFFSET + CONTROL_HEADER..CONTROL_OFFSET + CONTROL].fill(0xff);
    mutable[GATE_OFFSET..].copy_from_slice(&links.call(libc::SYS_close, &[NO_DESCRIPTOR], layout.restore));
    image.put(layout.pristine, &mutable);
    image.put(layout.mutable, &mutable);
    image.bytes
}

/// The vectors of putting back: to, then from.
pub fn put_back_vectors(layout: &Layout) -> u64 {
    layout.vectors + 9 * VECTOR as u64
}

/// A link by which the process copies its own memory.
pub fn copy_link(links: &Links, layout: &Layout, to: u64, from: u64, count: usize, next: u64) -> [u8; LINK] {
    let count = count as u64;
    links.call(libc::SYS_process_vm_readv, &[layout.inner_tid as u64, to, count, from, count, 0], next)
}
