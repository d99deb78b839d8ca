//! Any bytes as a segment: refused, or all of it can be asked for.
#![no_main]

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use autofs_cr_common::segment::{Locator, Segment};
use rustix::fs::{MemfdFlags, memfd_create};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.set_permissions(Permissions::from_mode(0o600)).expect("its mode");
    file.write_all(bytes).expect("room for it");
    let Ok(segment) = Segment::open(&Locator::Inherited(file.as_raw_fd().unsigned_abs())) else { return };
    for (index, superblock) in segment.superblocks().iter().enumerate() {
        assert!(superblock.pipe < segment.masters()[superblock.master].pipes.len());
        assert!(segment.superblocks_of(superblock.master).any(|(other, _)| other == index));
        let _ = segment.progress(index);
    }
    for (index, master) in segment.masters().iter().enumerate() {
        assert_eq!(segment.master_index(&master.id), Some(index));
        let _ = (segment.claimant(index), segment.claim(index).expect("nobody has it"));
    }
    let _ = (segment.outcome(), segment.time_left());
});
