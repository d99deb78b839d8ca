//! A segment that another one changes all the time while it is worked with. The input is what is written, word by word.
#![no_main]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use autofs_cr_common::doc::image::End;
use autofs_cr_common::masters::MasterKind;
use autofs_cr_common::model::{Device, FdFlags, MountType, Pid, TextPath};
use autofs_cr_common::segment::{Master, Outcome, Pipe, Plan, Process, Progress, Segment, Superblock};

fn plan() -> Plan {
    let end = End { fd: 5, flags: FdFlags::default() };
    let master = |id: &str| Master {
        id: id.to_owned(),
        kind: MasterKind::Unknown,
        pid: None,
        process: None,
        pipes: vec![Pipe { read_end: end, write_end: None }],
    };
    let superblock = |minor, master| Superblock {
        device: Device::anonymous(minor),
        mount_type: MountType::Direct,
        master,
        pipe: 0,
        mount_point: TextPath::from_bytes(b"/m".to_vec()),
        control_fds: Vec::new(),
    };
    Plan {
        coordinator: Process { pid: Pid::this(), start_time: 1 },
        timeout: Duration::from_secs(1),
        masters: vec![master("a"), master("b")],
        superblocks: vec![superblock(45, 0), superblock(46, 1), superblock(47, 1)],
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let segment = Segment::create(&plan()).expect("a segment");
    // So that nothing is left wherever this ends.
    segment.hide().expect("its name");
    let file = File::from(segment.as_fd().try_clone_to_owned().expect("a copy"));
    let size = file.metadata().expect("its size").len();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for write in input.chunks_exact(5).cycle().take(input.len() / 5 * 20) {
                let at = 4 * u64::from(write[0]) % (size - 3);
                file.write_all_at(&write[1..], at).expect("written");
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        work(&segment, input.len());
        is_over.store(true, Ordering::Relaxed);
    });
    let _ = segment.finish(Outcome::Finished);
});

/// What a fixup does, and what restore does.
fn work(segment: &Segment, rounds: usize) {
    assert_eq!((segment.masters().len(), segment.superblocks().len()), (2, 3));
    for _ in 0..rounds.min(50) {
        for master in 0..2 {
            let Ok(claim) = segment.claim(master) else { continue };
            let _ = (claim.left_by(), segment.claimant(master), segment.is_claimed(master));
            for (index, _) in segment.superblocks_of(master) {
                let _ = segment.progress(index).map(|progress| progress.to_string());
                for next in [Progress::Created, Progress::Claimed, Progress::Connected] {
                    let _ = segment.advance(index, next).map_err(|error| error.to_string());
                }
            }
        }
        let _ = segment.outcome().map_err(|error| error.to_string());
        let _ = segment.wait(segment.wake_value().wrapping_sub(1), Duration::ZERO);
    }
}
