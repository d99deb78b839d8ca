//! Segments whose restore was killed: nobody needs them, and nobody else takes them away.

use std::fs::{self, DirEntry};

use super::locator::FOLDER;
use super::{Locator, Name, Segment};

/// Takes the names of segments away whose coordinator is dead, and gives their number. What cannot be
/// opened, or belongs to another user, is left alone.
pub fn sweep() -> usize {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    entries.filter_map(|entry| stale(&entry)).filter(|name| name.unlink().is_ok()).count()
}

fn stale(entry: &DirEntry) -> Option<Name> {
    let name: Name = format!("/{}", entry.file_name().to_str()?).parse().ok()?;
    // One that has a name has its lock already.
    let segment = Segment::open(&Locator::Name(name.clone())).ok()?;
    (!segment.coordinator_lives().ok()?).then_some(name)
}
