//! Segments whose restore was killed: nobody needs them, and nobody else takes them away.

use std::fs::{self, DirEntry};
use std::time::Duration;

use super::{Locator, Name, Segment};

/// Where shm_open(3) of Linux keeps its objects.
const FOLDER: &str = "/dev/shm";

/// How old a segment is at least when it is looked at: one that is being made has no lock yet.
const AGE: Duration = Duration::from_secs(10);

/// Takes the names of segments away whose coordinator is dead, and gives their number. What cannot be
/// opened, or belongs to another user, is left alone.
pub fn sweep() -> usize {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    entries.filter_map(|entry| stale(&entry)).filter(|name| name.unlink().is_ok()).count()
}

fn stale(entry: &DirEntry) -> Option<Name> {
    let name: Name = format!("/{}", entry.file_name().to_str()?).parse().ok()?;
    let age = entry.metadata().ok()?.modified().ok()?.elapsed().ok()?;
    if age < AGE {
        return None;
    }
    let segment = Segment::open(&Locator::Name(name.clone())).ok()?;
    (!segment.coordinator_lives().ok()?).then_some(name)
}
