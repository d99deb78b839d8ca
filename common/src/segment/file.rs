//! The file behind a segment: who may have written it, and its bytes.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::layout::MAX_SIZE;

/// Writes the bytes, which also takes the memory for them: an access to the mapping cannot fail later.
pub(super) fn fill(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.write_all(bytes)
}

const MODE: u32 = 0o600;
/// The file system of shared memory (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Only what nobody else can write to is worth checking: the inner error says what is wrong. A file on another
/// file system than tmpfs could belong to a server that answers as it likes.
pub(super) fn check_trust(file: &File, again: &File) -> io::Result<Result<(), String>> {
    let (found, other) = (file.metadata()?, again.metadata()?);
    let user = nix::unistd::geteuid().as_raw();
    let mode = found.mode() & 0o7777;
    Ok(if (found.dev(), found.ino()) != (other.dev(), other.ino()) {
        Err("it was exchanged while it was opened".to_owned())
    } else if !found.is_file() || rustix::fs::fstatfs(file)?.f_type as i64 != TMPFS_MAGIC {
        Err("it is no shared memory (a file on tmpfs)".to_owned())
    } else if found.uid() != user {
        Err(format!("it belongs to user {}, not to {user}", found.uid()))
    } else if mode != MODE {
        Err(format!("its mode is {mode:04o}, not {MODE:04o}"))
    } else {
        Ok(())
    })
}

/// The whole file, but not much more than the longest segment.
pub(super) fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut bytes)?;
    Ok(bytes)
}
