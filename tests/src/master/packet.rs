//! The kernel's requests: `struct autofs_v5_packet` of linux/auto_fs.h.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use autofs_cr_common::model::Device;

/// The size of a packet on 64-bit machines, in bytes.
pub const SIZE: usize = 304;
const NAME_AT: usize = 44;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A key of an indirect mount shall be mounted.
    MissingIndirect,
    /// A key of an indirect mount shall be unmounted.
    ExpireIndirect,
    /// A direct or offset trigger shall be mounted.
    MissingDirect,
    /// The content of a direct or offset trigger shall be unmounted.
    ExpireDirect,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What is asked for.
    pub kind: Kind,
    /// What the answer must name.
    pub token: u32,
    /// The superblock.
    pub device: Device,
    /// The inode of the superblock's root.
    pub inode: u64,
    /// Who asks, in the master's pid namespace.
    pub pid: u32,
    /// The process of the asking thread.
    pub tgid: u32,
    /// The key, of an indirect mount only.
    pub name: OsString,
}

impl Packet {
    /// Reads the bytes of one packet; `None` when they are none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let kind = match word(4)? {
            3 => Kind::MissingIndirect,
            4 => Kind::ExpireIndirect,
            5 => Kind::MissingDirect,
            6 => Kind::ExpireDirect,
            _ => return None,
        };
        let length = word(40)? as usize;
        let name = match kind {
            Kind::MissingIndirect | Kind::ExpireIndirect => bytes.get(NAME_AT..NAME_AT + length)?.to_vec(),
            Kind::MissingDirect | Kind::ExpireDirect => Vec::new(),
        };
        Some(Self {
            kind,
            token: word(8)?,
            device: Device::decode(word(12)?),
            inode: u64::from_ne_bytes(bytes.get(16..24)?.try_into().ok()?),
            pid: word(32)?,
            tgid: word(36)?,
            name: OsString::from_vec(name),
        })
    }
}
