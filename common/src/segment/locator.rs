//! Where a segment is found.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, Mode};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::shm;

use crate::model::Pid;

/// Where shm_open(3) of Linux keeps its objects.
pub(super) const FOLDER: &str = "/dev/shm";

const PREFIX: &str = "/autofs-cr-";
const RANDOM: usize = 16;

/// The name of a shared memory object (shm_open(3)) that holds a segment: 128 random bits, so that
/// nobody can prepare one under it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(String);

/// Where a segment is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Locator {
    /// By its name, in this /dev/shm. Written as the name.
    Name(Name),
    /// As a descriptor that this process inherited. Written `fd:N`.
    Inherited(u32),
    /// As a descriptor of another process, which is mostly the coordinator. Written `/proc/PID/fd/N`.
    Process(Pid, u32),
}

/// The text locates no segment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' locates no segment (expected {PREFIX}HEX, fd:N or /proc/PID/fd/N)")]
pub struct ParseLocatorError(String);

impl Name {
    /// A new name.
    pub(super) fn random() -> io::Result<Self> {
        let mut bytes = [0; RANDOM];
        // Up to 256 bytes come whole (getrandom(2)).
        if getrandom(&mut bytes, GetRandomFlags::empty())? != RANDOM {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self(format!("{PREFIX}{:032x}", u128::from_ne_bytes(bytes))))
    }

    /// Makes an object that has no name yet. The descriptor is closed by execve.
    pub(super) fn unnamed() -> io::Result<File> {
        let options = &mut OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(FOLDER)
    }

    /// Gives it to such an object; nothing may have it.
    pub(super) fn give_to(&self, object: &File) -> io::Result<()> {
        let from = format!("/proc/self/fd/{}", object.as_raw_fd());
        let to = format!("{FOLDER}{}", self.0);
        Ok(rustix::fs::linkat(CWD, from, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
    }

    fn open(&self) -> io::Result<File> {
        let flags = shm::OFlags::RDWR | shm::OFlags::from_bits_retain(libc::O_NOFOLLOW as u32);
        Ok(shm::open(&*self.0, flags, Mode::empty())?.into())
    }

    /// Takes the name away; who has the object open keeps it.
    pub(super) fn unlink(&self) -> io::Result<()> {
        Ok(shm::unlink(&*self.0)?)
    }
}

impl Locator {
    /// That of a descriptor of this process.
    pub(super) fn of(file: &File) -> Self {
        Self::Inherited(file.as_raw_fd().unsigned_abs())
    }

    /// Opens what it locates, with an open file description of its own. The descriptor is closed by
    /// execve.
    pub(super) fn open(&self) -> io::Result<File> {
        match self {
            Self::Name(name) => name.open(),
            Self::Inherited(fd) => open_again(Path::new(&format!("/proc/self/fd/{fd}"))),
            Self::Process(..) => open_again(Path::new(&self.to_string())),
        }
    }
}

/// Opens what a link in /proc stands for. Only a regular file: to open a device can do anything.
fn open_again(link: &Path) -> io::Result<File> {
    if !link.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(link)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = ParseLocatorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        text.strip_prefix(PREFIX)
            .filter(|random| random.len() == 2 * RANDOM && random.bytes().all(hex))
            .map(|_| Self(text.to_owned()))
            .ok_or_else(|| ParseLocatorError(text.to_owned()))
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Inherited(fd) => write!(f, "fd:{fd}"),
            Self::Process(pid, fd) => write!(f, "/proc/{pid}/fd/{fd}"),
        }
    }
}

impl FromStr for Locator {
    type Err = ParseLocatorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fd = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|fd| digits && *fd <= i32::MAX as u32)
        };
        let inherited = || Some(Self::Inherited(fd(text.strip_prefix("fd:")?)?));
        let process = || {
            let (pid, number) = text.strip_prefix("/proc/")?.split_once("/fd/")?;
            Some(Self::Process(pid.parse().ok()?, fd(number)?))
        };
        let name = || text.parse().ok().map(Self::Name);
        name().or_else(inherited).or_else(process).ok_or_else(|| ParseLocatorError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let name = Name::random().expect("random bits").to_string();
        for text in [name.as_str(), "fd:0", "fd:12", "/proc/312/fd/7"] {
            assert_eq!(text.parse::<Locator>().map(|locator| locator.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn other_text_is_refused() {
        let hex = "0123456789abcdef0123456789abcdef";
        for text in [
            "".to_owned(),
            "fd:".into(),
            "fd:-1".into(),
            "fd:+1".into(),
            "fd:4294967296".into(),
            "/proc/0/fd/1".into(),
            "/proc/1/fd/x".into(),
            "/proc/self/fd/1".into(),
            "/proc/1/fd/1/../../2".into(),
            format!("/autofs-cr-{}", &hex[1..]),
            format!("/autofs-cr-{}G", &hex[1..]),
            format!("/autofs-cr-/{}", &hex[1..]),
            format!("/other-{hex}"),
            hex.into(),
        ] {
            assert!(text.parse::<Locator>().is_err(), "{text:?} was taken");
        }
    }
}
