//! Error numbers: what the segment says of a failure.

use autofs_cr_common::channel::ChannelError;
use nix::errno::Errno;

use crate::remote;

/// The error number that tells most about an error.
pub fn of(error: &anyhow::Error) -> Errno {
    error.chain().find_map(of_cause).unwrap_or(Errno::EIO)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    if let Some(errno) = cause.downcast_ref::<Errno>() {
        return Some(*errno);
    }
    if let Some(error) = cause.downcast_ref::<std::io::Error>() {
        return error.raw_os_error().map(Errno::from_raw);
    }
    if let Some(error) = cause.downcast_ref::<remote::Error>() {
        return Some(of_engine(error));
    }
    matches!(cause.downcast_ref::<ChannelError>()?, ChannelError::TimedOut).then_some(Errno::ETIMEDOUT)
}

fn of_engine(error: &remote::Error) -> Errno {
    use remote::Error;
    match error {
        Error::Gone { .. } => Errno::ESRCH,
        Error::Traced { .. } | Error::Busy { .. } | Error::GroupStopped { .. } | Error::Frozen { .. } => {
            Errno::EBUSY
        }
        Error::Unstoppable { .. } | Error::Timeout { .. } => Errno::ETIMEDOUT,
        Error::NoDescriptors { .. } | Error::Truncated { .. } => Errno::EMFILE,
        Error::NoRoom { .. } => Errno::ENOMEM,
        Error::Filtered { .. } => Errno::EPERM,
        Error::SocketPair { source, .. } | Error::Call { source, .. } | Error::Proc { source, .. } => {
            source.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
        }
        _ => Errno::ENOTSUP,
    }
}
