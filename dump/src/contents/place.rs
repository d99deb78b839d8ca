//! Where the child is, told without a message: it writes down each place before it walks there, and
//! the parent looks only when it misses an answer.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use autofs_cr_common::sys::mmap::SharedWords;
use rustix::fs::{MemfdFlags, memfd_create};

/// A place that the child walks to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The number of the job.
    pub job: usize,
    /// The path inside the superblock; empty for its root.
    pub path: Vec<u8>,
}

/// The file in memory that parent and child share: words for the job and the length of the path, and behind
/// them the path. Most places are the root of a superblock, which takes no system call to write down.
pub struct PlaceFile {
    file: File,
    words: SharedWords,
}

/// The word with the number of the job; one more, as 0 is for no place.
const JOB: usize = 0;
/// The word with the length of the path.
const LENGTH: usize = 1;
const WORDS: NonZeroUsize = NonZeroUsize::new(2).expect("not zero");
/// Where the path begins.
const PATH: u64 = (WORDS.get() * size_of::<u32>()) as u64;

/// No path inside a superblock is longer (linux/limits.h).
const PATH_MAX: u32 = 4096;

impl PlaceFile {
    /// With no place in it.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("autofs-dump-place", MemfdFlags::CLOEXEC)?);
        file.set_len(PATH)?;
        let words = SharedWords::map(&file, WORDS)?;
        Ok(Self { file, words })
    }

    /// Writes down the place.
    pub fn write(&self, job: usize, path: &[u8]) -> io::Result<()> {
        if !path.is_empty() {
            self.file.write_all_at(path, PATH)?;
        }
        self.words[LENGTH].store(path.len() as u32, Ordering::Relaxed);
        self.words[JOB].store(job as u32 + 1, Ordering::Release);
        Ok(())
    }

    /// The place that was written last, if there is one. The writer stands still by then.
    pub fn read(&self) -> io::Result<Option<Place>> {
        let Some(job) = self.words[JOB].load(Ordering::Acquire).checked_sub(1) else { return Ok(None) };
        let length = self.words[LENGTH].load(Ordering::Relaxed).min(PATH_MAX);
        let mut path = vec![0; length as usize];
        self.file.read_exact_at(&mut path, PATH)?;
        Ok(Some(Place { job: job as usize, path }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_is_read_back() {
        let file = PlaceFile::new().expect("a file");
        assert_eq!(file.read().expect("read"), None);
        for path in [&b"a/longer/path"[..], b"b", b""] {
            file.write(7, path).expect("written");
            assert_eq!(file.read().expect("read"), Some(Place { job: 7, path: path.to_vec() }));
        }
    }
}
