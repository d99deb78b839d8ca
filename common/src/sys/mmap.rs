//! Words of memory that several processes share.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The first words of a file, mapped shared (mmap(2)): what one process stores, the others load.
///
/// Who can write to the file can also shrink it; a later access then ends the process with SIGBUS.
/// So it is only for files that no one else can open for writing.
#[derive(Debug)]
pub struct SharedWords {
    start: NonNull<AtomicU32>,
    count: usize,
}

// SAFETY: the words are only ever reached as atomics, which threads may share, and the mapping
// belongs to the process, not to a thread.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `count` words of `file`, which must be that long and open for reading and writing.
    pub fn map(file: &File, count: NonZeroUsize) -> io::Result<Self> {
        let bytes = count.checked_mul(WORD).ok_or(io::ErrorKind::InvalidInput)?;
        if file.metadata()?.len() < bytes.get() as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so the kernel chooses one where nothing else is mapped.
        let start = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, file.as_fd(), 0) }?;
        Ok(Self { start: start.cast(), count: count.get() })
    }
}

const WORD: NonZeroUsize = NonZeroUsize::new(size_of::<AtomicU32>()).expect("a word has bytes");

impl Deref for SharedWords {
    type Target = [AtomicU32];

    fn deref(&self) -> &[AtomicU32] {
        // SAFETY: mmap gave this many words, aligned to a page, readable and writable; they stay mapped
        // until drop, which the borrow of self rules out. Any bits are a valid AtomicU32, and all
        // other access, by this process and by others, is atomic too.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the range is the one that mmap gave, and no borrow of the words outlives self.
        // It can only fail for a range that is none.
        let _ = unsafe { munmap(self.start.cast(), self.count * WORD.get()) };
    }
}
