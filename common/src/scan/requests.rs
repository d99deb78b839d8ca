//! Requests that wait unread in a pipe: copied by tee(2), not consumed.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, tee};

use super::holders::Holders;
use crate::doc::report::{PipeEnd, Process, Request, RequestKind};
use crate::model::{Device, TextPath};
use crate::proc::{Absence, Descriptors, Proc, absence};

/// `struct autofs_v5_packet` of linux/auto_fs.h up to the end of its last field. The kernel pads it to
/// 304 bytes where 64-bit numbers are aligned to 8.
const PACKET_SIZE: usize = 300;
const NAME_OFFSET: usize = 44;
const NAME_SIZE: usize = 256;

/// The largest packet of any protocol.
const LARGEST_PACKET: usize = 4096;

/// The requests that nobody has read.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// By pipe and in the order of the pipe.
    pub list: Vec<Request>,
    /// A pipe was full: others may wait to write theirs.
    pub have_no_room: bool,
}

/// The requests in all pipes that have a reader.
pub(super) fn waiting(proc: &Proc, holders: &Holders, hidden: &mut Vec<String>) -> Requests {
    let mut found = Found::default();
    let mut left: HashSet<u64> = holders.readers.keys().copied().collect();
    // Process by process, so that each is opened once, whatever number of pipes it has.
    for process in &holders.processes {
        let ends = process.pipe_ends.iter().filter(|end| end.reads());
        let ends: Vec<&PipeEnd> = ends.filter(|end| left.contains(&end.pipe)).collect();
        if let Err(error) = found.read_process(proc, process, &ends, &mut left) {
            hidden.push(format!("the requests that wait for {}[{}]: {error}", process.command, process.pid));
        }
    }
    if found.not_understood > 0 {
        hidden.push(format!(
            "{} waiting requests of a protocol older than 5, which are not understood",
            found.not_understood
        ));
    }
    found.requests.sort_by_key(|request| request.pipe);
    Requests { list: found.requests, have_no_room: found.have_no_room }
}

#[derive(Default)]
struct Found {
    requests: Vec<Request>,
    not_understood: usize,
    have_no_room: bool,
    /// The pipe that they are copied into, made when the first is found.
    copy: Option<Duplicate>,
}

impl Found {
    fn read_process(
        &mut self,
        proc: &Proc,
        process: &Process,
        ends: &[&PipeEnd],
        left: &mut HashSet<u64>,
    ) -> io::Result<()> {
        let done = proc.process(process.pid).and_then(|dir| {
            // The process may have ended, and another one have its id.
            if ends.is_empty() || dir.stat()?.start_time != process.start_time {
                return Ok(());
            }
            let descriptors = dir.descriptors()?;
            for end in ends {
                if left.contains(&end.pipe) && self.read_pipe(&descriptors, end)? {
                    left.remove(&end.pipe);
                }
            }
            Ok(())
        });
        match done {
            Err(error) if absence(&error) == Some(Absence::Gone) => Ok(()),
            done => done,
        }
    }

    /// Whether the pipe was still there.
    fn read_pipe(&mut self, descriptors: &Descriptors<'_>, end: &PipeEnd) -> io::Result<bool> {
        let source = match descriptors.reopen_for_reading(end.fd) {
            Err(error) if absence(&error) == Some(Absence::Gone) => return Ok(false),
            source => source?,
        };
        if rustix::io::ioctl_fionread(&source)? == 0 {
            return Ok(true);
        }
        // The process may have closed the pipe and opened another there.
        if rustix::fs::fstat(&source)?.st_ino != end.pipe {
            return Ok(false);
        }
        self.copy_from(&source, end.pipe).map(|()| true)
    }

    fn copy_from(&mut self, source: &OwnedFd, pipe: u64) -> io::Result<()> {
        let copy = match &mut self.copy {
            Some(copy) => copy,
            none => none.insert(Duplicate::new()?),
        };
        copy.fill(source)?;
        let mut count = 0;
        while let Some(packet) = copy.next()? {
            count += 1;
            match parse(packet, pipe) {
                Some(request) => self.requests.push(request),
                None => self.not_understood += 1,
            }
        }
        // Each packet has a page of its own.
        self.have_no_room |= count >= fcntl_getpipe_size(source)? / rustix::param::page_size();
        Ok(())
    }
}

/// A pipe of our own, in which packets keep their bounds.
struct Duplicate {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
    buffer: Vec<u8>,
}

impl Duplicate {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let size = fcntl_getpipe_size(&write)?;
        Ok(Self { read, write, size, buffer: vec![0; LARGEST_PACKET] })
    }

    /// Copies all that is in `source`. Each packet takes a slot, so this pipe needs as many of them.
    fn fill(&mut self, source: &OwnedFd) -> io::Result<()> {
        let needed = fcntl_getpipe_size(source)?;
        if needed > self.size {
            self.size = fcntl_setpipe_size(&self.write, needed)?;
        }
        match tee(source.as_fd(), self.write.as_fd(), i32::MAX as usize, SpliceFlags::NONBLOCK) {
            // Somebody has read them meanwhile.
            Err(rustix::io::Errno::AGAIN) => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        match rustix::io::read(&self.read, &mut self.buffer) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => Ok(None),
            Ok(length) => Ok(Some(&self.buffer[..length])),
            Err(error) => Err(error.into()),
        }
    }
}

/// Understands a packet; `None` if it is of a protocol older than 5, or damaged.
pub(super) fn parse(packet: &[u8], pipe: u64) -> Option<Request> {
    if packet.len() < PACKET_SIZE {
        return None;
    }
    // The values of linux/auto_fs.h.
    let (kind, has_name) = match word(packet, 4) {
        3 => (RequestKind::Mount, true),
        4 => (RequestKind::Expire, true),
        5 => (RequestKind::Mount, false),
        6 => (RequestKind::Expire, false),
        _ => return None,
    };
    let length = word(packet, 40) as usize;
    let name = packet.get(NAME_OFFSET..NAME_OFFSET + length.min(NAME_SIZE))?;
    Some(Request {
        pipe,
        device: Device::decode(word(packet, 12)),
        kind,
        token: word(packet, 8),
        inode: long(packet, 16),
        uid: word(packet, 24),
        gid: word(packet, 28),
        pid: word(packet, 32),
        tgid: word(packet, 36),
        name: has_name.then(|| TextPath::from_bytes(name.to_vec())),
    })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(long)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u32, name: &[u8]) -> Vec<u8> {
        let words = [5, kind, 77, 0x2d, 1234, 0, 1000, 1001, 42, 41, name.len() as u32];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        bytes.extend_from_slice(name);
        bytes.resize(304, 0);
        bytes
    }

    #[test]
    fn a_request_for_a_key_has_its_name() {
        let request = parse(&packet(3, b"home/\xff"), 9).expect("a request");
        assert_eq!(request.name.as_ref().map(|name| name.as_bytes()), Some(&b"home/\xff"[..]));
        assert_eq!((request.pipe, request.token, request.device), (9, 77, Device::anonymous(45)));
        assert_eq!((request.uid, request.gid, request.pid, request.tgid), (1000, 1001, 42, 41));
    }

    #[test]
    fn the_name_of_a_direct_request_means_nothing() {
        let request = parse(&packet(6, b"ffff8881"), 9).expect("a request");
        assert_eq!((request.kind, request.name), (RequestKind::Expire, None));
    }

    #[test]
    fn older_and_damaged_packets_are_passed_over() {
        assert_eq!(parse(&packet(0, b"x"), 9), None);
        assert_eq!(parse(&packet(3, b"x")[..299], 9), None);
        assert_eq!(parse(&[], 9), None);
        let mut lying = packet(3, b"x");
        lying[40..44].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(
            parse(&lying, 9).and_then(|request| request.name).map(|name| name.as_bytes().len()),
            Some(256)
        );
    }
}
