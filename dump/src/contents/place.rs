//! Where the child is, told without a message: it writes down each place before it walks there, and
//! the parent looks only when it misses an answer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

/// A place that the child walks to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The number of the job.
    pub job: usize,
    /// The path inside the superblock; empty for its root.
    pub path: Vec<u8>,
}

/// The file in memory that parent and child share.
pub struct PlaceFile(File);

/// Job number and length of the path, before the path.
const HEAD: usize = 16;

/// No path inside a superblock is longer (linux/limits.h).
const PATH_MAX: usize = 4096;

impl PlaceFile {
    /// With no place in it.
    pub fn new() -> io::Result<Self> {
        Ok(Self(memfd_create("autofs-dump-place", MemfdFlags::CLOEXEC)?.into()))
    }

    /// Writes down the place.
    pub fn write(&self, job: usize, path: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEAD + path.len());
        bytes.extend_from_slice(&(job as u64).to_ne_bytes());
        bytes.extend_from_slice(&(path.len() as u64).to_ne_bytes());
        bytes.extend_from_slice(path);
        self.0.write_all_at(&bytes, 0)
    }

    /// The place that was written last, if there is one.
    pub fn read(&self) -> io::Result<Option<Place>> {
        let mut head = [0; HEAD];
        if self.0.read_at(&mut head, 0)? < HEAD {
            return Ok(None);
        }
        let [job, length] = [0, 8].map(|at| {
            let mut number = [0; 8];
            number.copy_from_slice(&head[at..at + 8]);
            u64::from_ne_bytes(number) as usize
        });
        let mut path = vec![0; length.min(PATH_MAX)];
        self.0.read_exact_at(&mut path, HEAD as u64)?;
        Ok(Some(Place { job, path }))
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
