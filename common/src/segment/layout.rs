//! The bytes of a segment, and the checks that a reader makes before it believes them.
//!
//! | part | holds |
//! |---|---|
//! | header | magic, layout version, total size, counts, coordinator, deadline |
//! | words | what changes, 32 bits each: wake-up word, outcome, a claimant for each master, a progress for each superblock |
//! | masters, pipes, superblocks, control fds | records of a fixed size |
//! | strings | one after the other |
//!
//! The parts follow each other without a gap, and so do the pipes of the masters, the control fds of the
//! superblocks and the strings: a record says how many or how long, never where. So there are no
//! offsets that could be wrong or overlap; a reader walks through, and at the end nothing may be left over.
//! Numbers are in the byte order of the machine. All but the words is read once, into memory that
//! is not shared, so nothing can change between a check and a use.

use std::collections::BTreeSet;
use std::time::Duration;

use super::plan::{Master, Pipe, Plan, Process, Superblock};
use crate::doc::image::End;
use crate::masters::MasterKind;
use crate::model::{Device, FdFlags, MountType, Pid, TextPath};

const MAGIC: [u8; 8] = *b"autofscr";
const VERSION: u32 = 1;

/// The size of the header.
pub(super) const HEADER: usize = 72;
const MASTER: usize = 32;
const PIPE: usize = 16;
const SUPERBLOCK: usize = 24;
const CONTROL_FD: usize = 8;
const WORD: usize = 4;

/// The most masters, pipes, superblocks or control fds: more than a kernel can have of device numbers
/// for superblocks (2^20).
pub const MAX_RECORDS: u32 = 1 << 20;
/// The most bytes of strings.
pub const MAX_STRINGS: u32 = 1 << 28;
/// More than any segment has of bytes.
pub(super) const MAX_SIZE: u64 = 1 << 29;
/// The longest id and the longest mount point; paths end at PATH_MAX.
const MAX_STRING: usize = 4096;

/// Why bytes are no segment, or a plan does not fit into one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// It does not start as a segment does.
    #[error("it is no segment of autofs-cr")]
    Magic,
    /// Another version of the tools made it.
    #[error("it has layout version {0}, and this program knows only {VERSION}")]
    Version(u32),
    /// It is not as long as it says, or as its counts say.
    #[error("it has {actual} bytes, and should have {expected}")]
    Size {
        /// By its header.
        expected: u64,
        /// How long it is.
        actual: u64,
    },
    /// A count is too large.
    #[error("it has {count} {what}, and {max} is the most")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// The most.
        max: u32,
    },
    /// A field has a value that it cannot have.
    #[error("{record} {index} has a wrong {field}")]
    Field {
        /// The kind of record.
        record: &'static str,
        /// Which one.
        index: usize,
        /// Which field.
        field: &'static str,
    },
    /// The records use less or more than what is there.
    #[error("its {0} do not add up")]
    Sum(&'static str),
}

/// What is in a segment, as read.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) coordinator: Process,
    /// On the clock CLOCK_MONOTONIC.
    pub(super) deadline: Duration,
    pub(super) masters: Vec<Master>,
    pub(super) superblocks: Vec<Superblock>,
    /// The superblocks of each master, by their indices.
    pub(super) of_masters: Vec<Vec<usize>>,
}

/// How many of each there are.
#[derive(Clone, Copy, Debug)]
struct Counts {
    masters: u32,
    pipes: u32,
    superblocks: u32,
    control_fds: u32,
    strings: u32,
}

impl Counts {
    fn of(plan: &Plan) -> Result<Self, LayoutError> {
        let pipes = plan.masters.iter().map(|master| master.pipes.len()).sum();
        let control_fds = plan.superblocks.iter().map(|superblock| superblock.control_fds.len()).sum();
        let ids = plan.masters.iter().map(|master| master.id.len());
        let points = plan.superblocks.iter().map(|superblock| superblock.mount_point.as_bytes().len());
        Ok(Self {
            masters: limit("masters", plan.masters.len(), MAX_RECORDS)?,
            pipes: limit("pipes", pipes, MAX_RECORDS)?,
            superblocks: limit("superblocks", plan.superblocks.len(), MAX_RECORDS)?,
            control_fds: limit("control fds", control_fds, MAX_RECORDS)?,
            strings: limit("bytes of strings", ids.chain(points).sum(), MAX_STRINGS)?,
        })
    }

    fn read(header: &mut Reader<'_>) -> Result<Self, LayoutError> {
        let mut count = |what, max| limit(what, header.u32()? as usize, max);
        Ok(Self {
            masters: count("masters", MAX_RECORDS)?,
            pipes: count("pipes", MAX_RECORDS)?,
            superblocks: count("superblocks", MAX_RECORDS)?,
            control_fds: count("control fds", MAX_RECORDS)?,
            strings: count("bytes of strings", MAX_STRINGS)?,
        })
    }

    /// The sizes of the parts after the header. With the limits kept, no sum of them can overflow.
    fn sizes(self) -> [usize; 6] {
        let words = FIRST_CLAIMANT + self.masters as usize + self.superblocks as usize;
        [
            words * WORD,
            self.masters as usize * MASTER,
            self.pipes as usize * PIPE,
            self.superblocks as usize * SUPERBLOCK,
            self.control_fds as usize * CONTROL_FD,
            self.strings as usize,
        ]
    }

    fn total(self) -> u64 {
        (HEADER + self.sizes().iter().sum::<usize>()) as u64
    }
}

fn limit(what: &'static str, count: usize, max: u32) -> Result<u32, LayoutError> {
    let small = u32::try_from(count).ok().filter(|count| *count <= max);
    small.ok_or(LayoutError::TooMany { what, count: count as u64, max })
}

/// The word on which waiters sleep, as an index of 32-bit words from the start of the file.
pub(super) const WAKE: usize = HEADER / WORD;
/// The word of the outcome.
pub(super) const OUTCOME: usize = WAKE + 1;
/// How many words there are before the claimants, without those of the header.
const FIRST_CLAIMANT: usize = 2;

/// The word of the process that claimed this master.
pub(super) fn claimant(master: usize) -> usize {
    WAKE + FIRST_CLAIMANT + master
}

/// The word of the progress of this superblock.
pub(super) fn progress(masters: usize, superblock: usize) -> usize {
    claimant(masters) + superblock
}

/// The bytes of a new segment, in which all words are 0.
pub(super) fn encode(plan: &Plan, deadline: Duration) -> Result<Vec<u8>, LayoutError> {
    let counts = Counts::of(plan)?;
    let mut out = Writer(Vec::with_capacity(counts.total() as usize));
    write_header(&mut out, counts, plan.coordinator, deadline);
    out.0.resize(HEADER + counts.sizes()[0], 0);
    plan.masters.iter().for_each(|master| write_master(&mut out, master));
    for pipe in plan.masters.iter().flat_map(|master| &master.pipes) {
        out.end(Some(pipe.read_end));
        out.end(pipe.write_end);
    }
    plan.superblocks.iter().for_each(|superblock| write_superblock(&mut out, superblock));
    for control_fd in plan.superblocks.iter().flat_map(|superblock| &superblock.control_fds) {
        out.end(Some(*control_fd));
    }
    plan.masters.iter().for_each(|master| out.bytes(master.id.as_bytes()));
    plan.superblocks.iter().for_each(|superblock| out.bytes(superblock.mount_point.as_bytes()));
    // What a reader would refuse must not be published.
    decode(&out.0).map(|_| out.0)
}

fn write_header(out: &mut Writer, counts: Counts, coordinator: Process, deadline: Duration) {
    out.bytes(&MAGIC);
    out.u64(counts.total());
    out.u32(VERSION);
    for count in [counts.masters, counts.pipes, counts.superblocks, counts.control_fds, counts.strings] {
        out.u32(count);
    }
    out.pid(Some(coordinator.pid));
    out.u32(deadline.subsec_nanos());
    out.u64(deadline.as_secs());
    out.u64(coordinator.start_time);
    out.u64(0); // for later use
}

fn write_master(out: &mut Writer, master: &Master) {
    out.u32(master.id.len() as u32);
    let kind = MasterKind::ALL.iter().position(|&kind| kind == master.kind);
    // A number too large is out of range for the reader, too.
    out.u32(kind.and_then(|kind| u32::try_from(kind).ok()).unwrap_or(u32::MAX));
    out.pid(master.pid);
    out.pid(master.process.map(|process| process.pid));
    out.u64(master.process.map_or(0, |process| process.start_time));
    out.u32(master.pipes.len() as u32);
    out.u32(0); // for later use
}

fn write_superblock(out: &mut Writer, superblock: &Superblock) {
    out.u32(superblock.device.encode());
    out.u32(match superblock.mount_type {
        MountType::Indirect => 0,
        MountType::Direct => 1,
        MountType::Offset => 2,
    });
    // A number too large is out of range for the reader, too.
    out.u32(u32::try_from(superblock.master).unwrap_or(u32::MAX));
    out.u32(u32::try_from(superblock.pipe).unwrap_or(u32::MAX));
    out.u32(superblock.mount_point.as_bytes().len() as u32);
    out.u32(superblock.control_fds.len() as u32);
}

/// Checks and reads the bytes of a whole segment.
pub(super) fn decode(bytes: &[u8]) -> Result<Contents, LayoutError> {
    let (mut header, mut rest) = match bytes.split_at_checked(HEADER) {
        Some((header, rest)) if header.starts_with(&MAGIC) => (Reader(&header[MAGIC.len()..]), rest),
        _ => return Err(LayoutError::Magic),
    };
    let total = header.u64()?;
    let version = header.u32()?;
    if version != VERSION {
        return Err(LayoutError::Version(version));
    }
    let counts = Counts::read(&mut header)?;
    for expected in [total, counts.total()] {
        if expected != bytes.len() as u64 {
            return Err(LayoutError::Size { expected, actual: bytes.len() as u64 });
        }
    }
    let mut parts = [Reader(&[]); 6];
    for (part, size) in parts.iter_mut().zip(counts.sizes()) {
        let split = rest.split_at_checked(size).ok_or(LayoutError::Sum("parts"))?;
        (*part, rest) = (Reader(split.0), split.1);
    }
    let [_, masters, mut pipes, superblocks, mut control_fds, mut strings] = parts;
    let (coordinator, deadline) = read_coordinator(&mut header)?;
    let masters = read_masters(masters, &mut pipes, &mut strings)?;
    let superblocks = read_superblocks(superblocks, &masters, &mut control_fds, &mut strings)?;
    for (what, left) in [("pipes", pipes), ("control fds", control_fds), ("strings", strings)] {
        if !left.0.is_empty() {
            return Err(LayoutError::Sum(what));
        }
    }
    let mut of_masters = vec![Vec::new(); masters.len()];
    for (index, superblock) in superblocks.iter().enumerate() {
        of_masters[superblock.master].push(index);
    }
    Ok(Contents { coordinator, deadline, masters, superblocks, of_masters })
}

fn read_coordinator(header: &mut Reader<'_>) -> Result<(Process, Duration), LayoutError> {
    let wrong = |field| LayoutError::Field { record: "header", index: 0, field };
    let pid = header.pid()?.flatten().ok_or(wrong("coordinator"))?;
    let nanos = header.u32()?;
    let deadline = Duration::from_secs(header.u64()?)
        .checked_add(Duration::from_nanos(nanos.into()))
        .ok_or(wrong("deadline"))?;
    Ok((Process { pid, start_time: header.u64()? }, deadline))
}

fn read_masters(
    mut records: Reader<'_>,
    pipes: &mut Reader<'_>,
    strings: &mut Reader<'_>,
) -> Result<Vec<Master>, LayoutError> {
    let mut masters = Vec::with_capacity(records.0.len() / MASTER);
    let mut ids = BTreeSet::new();
    while !records.0.is_empty() {
        let index = masters.len();
        let wrong = |field| LayoutError::Field { record: "master", index, field };
        let id = strings.string(records.u32()?)?;
        let id = std::str::from_utf8(id).ok().filter(|id| is_id(id)).ok_or(wrong("id"))?;
        if !ids.insert(id) {
            return Err(wrong("id (another master has it too)"));
        }
        let kind = *MasterKind::ALL.get(records.u32()? as usize).ok_or(wrong("kind"))?;
        let pid = records.pid()?.ok_or(wrong("pid"))?;
        let outer = records.pid()?.ok_or(wrong("pid"))?;
        let start_time = records.u64()?;
        let pipes = read_pipes(index, records.u32()?, pipes)?;
        records.u32()?;
        let process = outer.map(|pid| Process { pid, start_time });
        masters.push(Master { id: id.to_owned(), kind, pid, process, pipes });
    }
    Ok(masters)
}

/// An id is shown in messages, so it must not be able to write anything but a word.
fn is_id(id: &str) -> bool {
    !id.is_empty() && !id.chars().any(char::is_control)
}

fn read_pipes(master: usize, count: u32, records: &mut Reader<'_>) -> Result<Vec<Pipe>, LayoutError> {
    let wrong = |field| LayoutError::Field { record: "master", index: master, field };
    let pipe = |pipes: &mut Reader<'_>| {
        let read_end = pipes.end()?.flatten().ok_or(wrong("read end"))?;
        let write_end = pipes.end()?.ok_or(wrong("write end"))?;
        Ok(Pipe { read_end, write_end })
    };
    let mut mine = records.take(count as usize * PIPE, "pipes")?;
    (0..count).map(|_| pipe(&mut mine)).collect()
}

fn read_superblocks(
    mut records: Reader<'_>,
    masters: &[Master],
    control_fds: &mut Reader<'_>,
    strings: &mut Reader<'_>,
) -> Result<Vec<Superblock>, LayoutError> {
    let mut superblocks = Vec::with_capacity(records.0.len() / SUPERBLOCK);
    while !records.0.is_empty() {
        let index = superblocks.len();
        let wrong = |field| LayoutError::Field { record: "superblock", index, field };
        let device = records.u32()?;
        let mount_type = match records.u32()? {
            0 => MountType::Indirect,
            1 => MountType::Direct,
            2 => MountType::Offset,
            _ => return Err(wrong("type")),
        };
        let master = records.u32()? as usize;
        let pipe = records.u32()? as usize;
        let pipes = &masters.get(master).ok_or(wrong("master"))?.pipes;
        pipes.get(pipe).ok_or(wrong("pipe"))?;
        let mount_point = strings.string(records.u32()?)?;
        if !mount_point.starts_with(b"/") || mount_point.contains(&0) {
            return Err(wrong("mount point"));
        }
        let control_fds = read_control_fds(index, records.u32()?, control_fds)?;
        superblocks.push(Superblock {
            device: Device::decode(device),
            mount_type,
            master,
            pipe,
            mount_point: TextPath::from_bytes(mount_point.to_vec()),
            control_fds,
        });
    }
    Ok(superblocks)
}

fn read_control_fds(index: usize, count: u32, records: &mut Reader<'_>) -> Result<Vec<End>, LayoutError> {
    let wrong = || LayoutError::Field { record: "superblock", index, field: "control fd" };
    let mut mine = records.take(count as usize * CONTROL_FD, "control fds")?;
    (0..count).map(|_| mine.end()?.flatten().ok_or_else(wrong)).collect()
}

struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u32(&mut self, number: u32) {
        self.bytes(&number.to_ne_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.bytes(&number.to_ne_bytes());
    }

    /// 0 stands for none.
    fn pid(&mut self, pid: Option<Pid>) {
        self.u32(pid.map_or(0, u32::from));
    }

    /// The number -1 stands for none.
    fn end(&mut self, end: Option<End>) {
        self.u32(end.map_or(-1, |end| end.fd) as u32);
        self.u32(end.map_or(0, |end| end.flags.bits()) as u32);
    }
}

/// Bytes still to be read. That there are too few can only be a wrong count, as the size was checked.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize, what: &'static str) -> Result<Self, LayoutError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(LayoutError::Sum(what))?;
        self.0 = rest;
        Ok(Self(taken))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LayoutError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(LayoutError::Sum("records"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, LayoutError> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, LayoutError> {
        self.array().map(u64::from_ne_bytes)
    }

    fn string(&mut self, length: u32) -> Result<&'a [u8], LayoutError> {
        let length = length as usize;
        if length > MAX_STRING {
            return Err(LayoutError::Sum("strings"));
        }
        self.take(length, "strings").map(|taken| taken.0)
    }

    /// `None` if it is no process id; `Some(None)` if none is given.
    fn pid(&mut self) -> Result<Option<Option<Pid>>, LayoutError> {
        Ok(match self.u32()? {
            0 => Some(None),
            pid => Pid::try_from(pid).ok().map(Some),
        })
    }

    /// `None` if it is no descriptor; `Some(None)` if none is given.
    fn end(&mut self) -> Result<Option<Option<End>>, LayoutError> {
        let (fd, bits) = (self.u32()? as i32, self.u32()? as i32);
        let flags = FdFlags::from_bits(bits);
        Ok(match fd {
            _ if flags.bits() != bits => None,
            -1 if bits == 0 => Some(None),
            0.. => Some(Some(End { fd, flags })),
            _ => None,
        })
    }
}
