//! Where the segment comes from: a stage document, or the environment.

use std::env;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, bail};
use autofs_cr_common::doc::stage::SegmentAddress;
use autofs_cr_common::segment::{Locator, Segment, SegmentError, VARIABLE};
use autofs_cr_common::sys::inherited;

/// A way to open the segment, as often as needed: every process opens it for itself, as a claim belongs
/// to what was opened.
#[derive(Debug)]
pub enum Source {
    /// As a stage document says.
    Address(SegmentAddress),
    /// As the environment says.
    Locator(Locator),
    /// A descriptor that this process inherited.
    Inherited(OwnedFd),
}

impl Source {
    /// From the environment; `None` if the variable is not set.
    pub fn of_environment() -> anyhow::Result<Option<Self>> {
        let Some(value) = env::var_os(VARIABLE) else { return Ok(None) };
        let text = value.into_string().ok().with_context(|| format!("{VARIABLE} is no text"))?;
        let locator = text.parse().with_context(|| format!("{VARIABLE} is wrong"))?;
        Ok(Some(match locator {
            Locator::Inherited(number) => Self::Inherited(take(VARIABLE, number)?),
            locator => Self::Locator(locator),
        }))
    }

    /// Opens and checks it.
    pub fn open(&self) -> anyhow::Result<Segment> {
        let opened = match self {
            Self::Address(address) => Segment::open_address(address),
            Self::Locator(locator) => Segment::open(locator),
            Self::Inherited(fd) => Segment::open(&Locator::Inherited(fd.as_raw_fd().unsigned_abs())),
        };
        let is_gone = matches!(&opened, Err(SegmentError::Open { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)));
        match opened {
            Err(error) if is_gone => Err(error).context("the restore that made the segment has ended"),
            opened => Ok(opened?),
        }
    }

    /// Moves an inherited descriptor to a number from `lowest` on.
    pub fn move_above(&mut self, lowest: i32) -> anyhow::Result<()> {
        if let Self::Inherited(fd) = self {
            *fd = rustix::io::fcntl_dupfd_cloexec(&*fd, lowest).context("cannot copy a descriptor")?;
        }
        Ok(())
    }

    /// As the environment of another process names it; `None` for a descriptor.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Address(address) => Some(address.name.clone()),
            Self::Locator(locator) => Some(locator.to_string()),
            Self::Inherited(_) => None,
        }
    }
}

/// Takes an inherited descriptor that a variable of the environment names.
pub fn take(variable: &str, number: u32) -> anyhow::Result<OwnedFd> {
    let taken = i32::try_from(number).ok().map(inherited::take);
    match taken {
        Some(Ok(fd)) => Ok(fd),
        Some(Err(error)) => Err(error)
            .with_context(|| format!("{variable} names descriptor {number}, which was not inherited")),
        None => bail!("{variable} names descriptor {number}, and there is no such number"),
    }
}
