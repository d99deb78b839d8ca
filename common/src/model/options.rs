//! The options of an autofs superblock.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What starts a request on a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum MountType {
    /// A name in it.
    Indirect,
    /// Its root.
    Direct,
    /// Its root; it hangs inside another autofs mount or what is mounted there.
    Offset,
}

impl MountType {
    /// The mount option that asks for this type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Indirect => "indirect",
            Self::Direct => "direct",
            Self::Offset => "offset",
        }
    }
}

impl fmt::Display for MountType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a superblock was made with, and what stays true of it whoever serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// What starts a request.
    #[serde(rename = "type")]
    pub mount_type: MountType,
    /// Seconds after which an unused mount may expire; 0: never.
    pub timeout: u64,
    /// The lowest protocol version that the master speaks.
    pub minproto: u32,
    /// The highest protocol version that the master speaks.
    pub maxproto: u32,
    /// Owner of the root, in the initial user namespace.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// Group of the root, in the initial user namespace.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// Only the last user of a mount keeps it from expiring (since Linux 4.18).
    #[serde(default, skip_serializing_if = "is_false")]
    pub strictexpire: bool,
    /// Tools shall not list it (since Linux 5.4).
    #[serde(default, skip_serializing_if = "is_false")]
    pub ignore: bool,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Options {
    /// The timeout as a duration.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Whether two superblocks were made alike: all that cannot be changed later, which is
    /// everything but the timeout.
    pub fn made_like(&self, other: &Self) -> bool {
        Self { timeout: other.timeout, ..self.clone() } == *other
    }
}

/// The super options of an autofs line in mountinfo (`autofs_show_options` in fs/autofs/inode.c).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperOptions {
    /// What the superblock was made with.
    pub options: Options,
    /// The number that the pipe's write end had in the master when it was set; -1 if catatonic.
    pub fd: i32,
    /// The process group that may walk freely, in the pid namespace of the reader of mountinfo; 0 if
    /// it is not visible there.
    pub pgrp: i32,
    /// The pipe.
    pub pipe: KernelPipe,
}

/// Reads the super options of one line of mountinfo after the other. Those of many in a row can be the same, and
/// are read once then.
#[derive(Debug, Default)]
pub struct OptionsReader {
    last: Option<(Vec<u8>, SuperOptions)>,
}

impl OptionsReader {
    /// Reads the super options field of the next line.
    pub fn read(&mut self, field: &[u8]) -> Result<SuperOptions, ParseOptionsError> {
        if let Some((_, options)) = self.last.as_ref().filter(|(text, _)| text == field) {
            return Ok(options.clone());
        }
        let options = SuperOptions::parse(&String::from_utf8_lossy(field))?;
        self.last = Some((field.to_vec(), options.clone()));
        Ok(options)
    }
}

/// What mountinfo tells of the pipe of a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelPipe {
    /// The kernel holds a write end of the pipe with this inode number.
    Inode(u64),
    /// The superblock is catatonic.
    None,
    /// The kernel does not tell: it is older than 4.14 or was built without CONFIG_CHECKPOINT_RESTORE.
    NotShown,
}

/// A super option that cannot be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseOptionsError {
    /// The value of an option is no number, or is out of range.
    #[error("autofs option '{0}' has no valid value")]
    Value(String),
    /// An option that every autofs mount has is missing.
    #[error("autofs option '{0}' is missing")]
    Missing(&'static str),
}

impl SuperOptions {
    /// Reads the super options field of a mountinfo line. Unknown options are passed over, as a newer
    /// kernel may have more.
    pub fn parse(text: &str) -> Result<Self, ParseOptionsError> {
        let mut mount_type = None;
        let mut fd = None;
        let mut pipe = KernelPipe::NotShown;
        let mut pgrp = None;
        let mut found = Options {
            mount_type: MountType::Indirect,
            timeout: 0,
            minproto: 0,
            maxproto: 0,
            uid: 0,
            gid: 0,
            strictexpire: false,
            ignore: false,
        };
        for option in text.split(',') {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let wrong = || ParseOptionsError::Value(option.to_owned());
            match name {
                "fd" => fd = Some(value.parse().map_err(|_| wrong())?),
                "pgrp" => pgrp = Some(value.parse().map_err(|_| wrong())?),
                "timeout" => found.timeout = value.parse().map_err(|_| wrong())?,
                "minproto" => found.minproto = value.parse().map_err(|_| wrong())?,
                "maxproto" => found.maxproto = value.parse().map_err(|_| wrong())?,
                "uid" => found.uid = value.parse().map_err(|_| wrong())?,
                "gid" => found.gid = value.parse().map_err(|_| wrong())?,
                "pipe_ino" => pipe = parse_pipe(value).ok_or_else(wrong)?,
                "direct" => mount_type = Some(MountType::Direct),
                "indirect" => mount_type = Some(MountType::Indirect),
                "offset" => mount_type = Some(MountType::Offset),
                "strictexpire" => found.strictexpire = true,
                "ignore" => found.ignore = true,
                _ => {}
            }
        }
        let fd = fd.ok_or(ParseOptionsError::Missing("fd"))?;
        found.mount_type = mount_type.ok_or(ParseOptionsError::Missing("direct, indirect or offset"))?;
        Ok(Self {
            options: found,
            fd,
            pgrp: pgrp.ok_or(ParseOptionsError::Missing("pgrp"))?,
            // Without pipe_ino, fd=-1 still tells that a superblock is catatonic.
            pipe: if fd < 0 { KernelPipe::None } else { pipe },
        })
    }
}

fn parse_pipe(value: &str) -> Option<KernelPipe> {
    match value {
        "-1" => Some(KernelPipe::None),
        inode => inode.parse().ok().map(KernelPipe::Inode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_line_of_options_is_read() {
        let line = "rw,fd=4,pgrp=1902,uid=5,gid=6,timeout=300,minproto=4,maxproto=5,direct,strictexpire,ignore,pipe_ino=5425";
        let read = SuperOptions::parse(line).expect("valid options");
        assert_eq!((read.fd, read.pgrp, read.pipe), (4, 1902, KernelPipe::Inode(5425)));
        let expected = Options {
            mount_type: MountType::Direct,
            timeout: 300,
            minproto: 4,
            maxproto: 5,
            uid: 5,
            gid: 6,
            strictexpire: true,
            ignore: true,
        };
        assert_eq!(read.options, expected);
    }

    #[test]
    fn catatonic_and_unknown_pipes_are_told_apart() {
        let pipe = |rest: &str| SuperOptions::parse(&format!("pgrp=1,indirect,{rest}")).map(|read| read.pipe);
        assert_eq!(pipe("fd=-1,pipe_ino=-1"), Ok(KernelPipe::None));
        assert_eq!(pipe("fd=-1"), Ok(KernelPipe::None));
        assert_eq!(pipe("fd=4"), Ok(KernelPipe::NotShown));
    }

    #[test]
    fn each_line_has_its_own_options() {
        let mut reader = OptionsReader::default();
        for (pipe, field) in [(5, "5"), (5, "5"), (6, "6"), (5, "5")] {
            let field = format!("rw,fd=4,pgrp=1,direct,pipe_ino={field}");
            let read = reader.read(field.as_bytes()).expect("valid options");
            assert_eq!(read.pipe, KernelPipe::Inode(pipe));
        }
        assert!(reader.read(b"rw,fd=x").is_err());
    }

    #[test]
    fn wrong_options_are_named() {
        assert_eq!(SuperOptions::parse("fd=x,pgrp=1,direct"), Err(ParseOptionsError::Value("fd=x".into())));
        assert_eq!(SuperOptions::parse("fd=1,direct"), Err(ParseOptionsError::Missing("pgrp")));
    }
}
