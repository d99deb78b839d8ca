use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;
use crate::doc::image::End;
use crate::masters::MasterKind;
use crate::model::{Device, FdFlags, MountType, TextPath};

const PATIENCE: Duration = Duration::from_secs(30);
const ROLE: &str = "AUTOFS_CR_TEST_ROLE";

fn pid(number: i32) -> Pid {
    Pid::new(number).expect("a process id")
}

fn plan() -> Plan {
    let flags = FdFlags { nonblock: true, cloexec: true };
    let pipe = |fd| Pipe { read_end: End { fd, flags }, write_end: None };
    let superblock = |minor, mount_type, master, pipe, control_fds| Superblock {
        device: Device::anonymous(minor),
        mount_type,
        master,
        pipe,
        mount_point: TextPath::from_bytes(format!("/m/{minor}\u{e4}\n").into_bytes()),
        control_fds,
    };
    let end = |fd| End { fd, flags: FdFlags::default() };
    Plan {
        coordinator: Process { pid: Pid::this(), start_time: 77 },
        timeout: PATIENCE,
        masters: vec![
            Master {
                id: "automount-312".into(),
                kind: MasterKind::Automount,
                pid: Some(pid(312)),
                process: Some(Process { pid: pid(4312), start_time: u64::MAX }),
                pipes: vec![pipe(4), Pipe { read_end: end(0), write_end: Some(end(9)) }],
            },
            Master {
                id: "systemd-1".into(),
                kind: MasterKind::Systemd,
                pid: None,
                process: None,
                pipes: vec![pipe(i32::MAX)],
            },
        ],
        superblocks: vec![
            superblock(45, MountType::Direct, 0, 1, vec![end(7), End { fd: 8, flags }]),
            superblock(Device::MAX_MINOR, MountType::Indirect, 1, 0, vec![]),
            superblock(46, MountType::Offset, 0, 0, vec![end(3)]),
        ],
    }
}

fn create() -> Owner {
    Segment::create(&plan()).expect("a segment")
}

fn open(owner: &Owner) -> Result<Segment, SegmentError> {
    Segment::open(&Locator::Name(owner.name().clone()))
}

/// Waits on the wake-up word until `done`.
fn wait_until(segment: &Segment, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = segment.wake_value();
        if done() {
            return;
        }
        let left = deadline.checked_duration_since(Instant::now()).expect("an event in time");
        segment.wait(seen, left).expect("a wait");
    }
}

#[test]
fn a_hidden_segment_is_found_through_its_makers_descriptor_alone() {
    let owner = Segment::create(&plan()).expect("a segment");
    let locator = owner.hide().expect("hidden");
    assert!(Segment::open(&Locator::Name(owner.name().clone())).is_err());
    let segment = Segment::open(&locator).expect("opened");
    assert_eq!(segment.coordinator(), owner.coordinator());
    assert!(segment.coordinator_lives().expect("a lock"));
}

#[test]
fn what_was_published_is_read_back() {
    let owner = create();
    let segment = open(&owner).expect("an open segment");
    let plan = plan();
    assert_eq!(segment.masters(), plan.masters);
    assert_eq!(segment.superblocks(), plan.superblocks);
    assert_eq!(segment.coordinator(), plan.coordinator);
    assert!(segment.time_left() <= PATIENCE && segment.time_left() > Duration::ZERO);
    assert_eq!(segment.master_index("systemd-1"), Some(1));
    assert_eq!(segment.superblocks_of(0).map(|(index, _)| index).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(segment.progress(2), Ok(Progress::Pending));
    assert_eq!(segment.outcome(), Ok(Outcome::Running));
}

#[test]
fn it_is_found_by_descriptor_and_by_address_and_is_gone_at_the_end() {
    let owner = create();
    let fd = owner.address().fd as u32;
    for locator in [Locator::Inherited(fd), Locator::Process(Pid::this(), fd)] {
        assert!(Segment::open(&locator).is_ok(), "{locator} was not opened");
    }
    let address = owner.address();
    Segment::open_address(&address).expect("found by its address");
    let other = SegmentAddress { start_time: 78, ..address.clone() };
    assert!(matches!(Segment::open_address(&other), Err(SegmentError::Other { .. })));
    let hidden = SegmentAddress { name: Name::random().expect("a name").to_string(), ..address };
    Segment::open_address(&hidden).expect("found by the coordinator's descriptor");
    let name = Locator::Name(owner.name().clone());
    drop(owner);
    assert!(matches!(Segment::open(&name), Err(SegmentError::Open { .. })));
}

#[test]
fn progress_moves_forward_only() {
    let owner = create();
    let segment = open(&owner).expect("an open segment");
    for next in [Progress::Held, Progress::Released, Progress::Created, Progress::Claimed] {
        segment.advance(0, next).expect("an allowed step");
        assert_eq!(owner.progress(0), Ok(next));
    }
    let back = owner.advance(0, Progress::Held).expect_err("a step back");
    assert_eq!(back.to_string(), "superblock 0 is claimed and cannot become held");
    segment.advance(0, Progress::Failed(nix::errno::Errno::EPERM)).expect("a failure");
    assert_eq!(owner.progress(0), Ok(Progress::Failed(nix::errno::Errno::EPERM)));
    assert!(owner.advance(0, Progress::Connected).is_err());
    assert_eq!(owner.advance(3, Progress::Held), Err(ProgressError::NoSuperblock(3)));
    owner.words[layout::progress(2, 1)].store(99, Ordering::Relaxed);
    assert!(matches!(segment.progress(1), Err(ProgressError::Word { word: 99, .. })));
}

#[test]
fn one_that_may_not_move_does_not_keep_the_others() {
    let owner = create();
    owner.advance(1, Progress::Failed(nix::errno::Errno::EIO)).expect("a step");
    let moved = owner.advance_all(0..4, Progress::Created);
    assert!(matches!(moved, Err(ProgressError::Step { index: 1, .. })), "the first error is told: {moved:?}");
    for index in [0, 2] {
        assert_eq!(owner.progress(index), Ok(Progress::Created));
    }
}

#[test]
fn it_ends_once() {
    let owner = create();
    owner.finish(Outcome::Failed).expect("the end");
    assert_eq!(owner.finish(Outcome::Finished), Err(ProgressError::Ended(Outcome::Failed)));
}

#[test]
fn a_master_is_claimed_once() {
    let owner = create();
    let segment = open(&owner).expect("an open segment");
    let claim = segment.claim(0).expect("a claim");
    assert_eq!(claim.left_by(), None);
    assert_eq!(owner.claimant(0), Some(Pid::this()));
    assert!(owner.is_claimed(0).expect("a look"));
    for again in [segment.claim(0), owner.claim(0)] {
        assert!(matches!(again, Err(ClaimError::Claimed { .. })), "{again:?}");
    }
    let other = owner.claim(1).expect("a claim on another master");
    assert!(matches!(owner.claim(2), Err(ClaimError::NoMaster(2))));
    drop((claim, other));
    assert!(!owner.is_claimed(0).expect("a look"));
    assert_eq!(owner.claimant(0), None);
    owner.claim(0).expect("a claim after the first has ended");
}

#[test]
fn watchers_do_not_stand_in_the_way_of_a_claim() {
    let owner = create();
    std::thread::scope(|scope| {
        let watched = open(&owner).expect("an open segment");
        let watcher = scope.spawn(move || {
            while watched.outcome() == Ok(Outcome::Running) {
                watched.wait_until_unclaimed(0).expect("a watch");
            }
        });
        for _ in 0..1000 {
            drop(owner.claim(0).expect("a claim while it is watched"));
        }
        owner.finish(Outcome::Finished).expect("the end");
        watcher.join().expect("the watcher's end");
    });
}

#[test]
fn a_dead_claimant_is_noticed_and_its_claim_taken_over() {
    let owner = create();
    owner.advance(0, Progress::Created).expect("an allowed step");
    let mut fixup = helper("fixup", &owner.name().to_string(), Stdio::null());
    wait_until(&owner, || owner.progress(0) == Ok(Progress::Claimed));
    let there = pid(fixup.id() as i32);
    let refused = owner.claim(0).expect_err("it is claimed").to_string();
    assert_eq!(refused, format!("another fixup works on master automount-312 (process {there})"));
    fixup.kill().expect("a kill");
    owner.wait_until_unclaimed(0).expect("a watch");
    assert!(!owner.is_claimed(0).expect("a look"));
    let claim = owner.claim(0).expect("a claim taken over");
    assert_eq!((claim.left_by(), owner.progress(0)), (Some(there), Ok(Progress::Claimed)));
    fixup.wait().expect("its end");
}

#[test]
fn a_claimant_in_another_pid_namespace_is_noticed_too() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let owner = create();
    owner.advance(0, Progress::Created).expect("an allowed step");
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child"]).arg(std::env::current_exe().expect("this program"));
    let mut fixup = start(unshare, "fixup", &owner.name().to_string(), Stdio::null());
    wait_until(&owner, || owner.progress(0) == Ok(Progress::Claimed));
    assert_eq!(owner.claimant(0), Some(pid(1)));
    assert!(owner.is_claimed(0).expect("a look"));
    fixup.kill().expect("a kill");
    owner.wait_until_unclaimed(0).expect("a watch");
    assert_eq!(owner.claim(0).expect("a claim taken over").left_by(), Some(pid(1)));
    fixup.wait().expect("its end");
}

#[test]
fn processes_wake_each_other_also_by_an_inherited_descriptor() {
    let owner = create();
    owner.advance(0, Progress::Created).expect("an allowed step");
    let inherited = owner.as_fd().try_clone_to_owned().expect("a copy");
    let mut fixup = helper("fixup", "fd:0", inherited.into());
    wait_until(&owner, || owner.progress(0) == Ok(Progress::Claimed));
    assert!(owner.is_claimed(0).expect("a look"));
    owner.finish(Outcome::Finished).expect("the end");
    wait_until(&owner, || owner.progress(0) == Ok(Progress::Connected));
    assert!(fixup.wait().expect("its end").success());
}

#[test]
fn a_dead_coordinator_is_noticed() {
    let mut restore = helper("restore", "", Stdio::null());
    let lines = BufReader::new(restore.stdout.take().expect("its output")).lines();
    // The test harness writes the start of a line of its own before.
    let name = lines.map_while(Result::ok).find_map(|line| {
        let at = line.find("/autofs-cr-")?;
        line[at..].parse::<Name>().ok()
    });
    let name = name.expect("the name");
    let segment = Segment::open(&Locator::Name(name.clone())).expect("an open segment");
    assert!(segment.coordinator_lives().expect("a look"));
    restore.kill().expect("a kill");
    segment.wait_until_stale().expect("a watch");
    assert!(!segment.coordinator_lives().expect("a look"));
    assert_eq!(segment.outcome(), Ok(Outcome::Running));
    restore.wait().expect("its end");
    name.unlink().expect("the name is left");
}

fn helper(role: &str, locator: &str, stdin: Stdio) -> Child {
    start(Command::new(std::env::current_exe().expect("this program")), role, locator, stdin)
}

fn start(mut program: Command, role: &str, locator: &str, stdin: Stdio) -> Child {
    program
        .args(["--exact", "segment::tests::in_another_process", "--nocapture"])
        .env(ROLE, role)
        .env(VARIABLE, locator)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()
        .expect("another process")
}

/// The other process of the tests below; by itself, without a role, it does nothing.
#[test]
fn in_another_process() {
    match std::env::var(ROLE).as_deref() {
        Ok("fixup") => {
            let locator: Locator = std::env::var(VARIABLE).expect("a locator").parse().expect("a locator");
            let segment = Segment::open(&locator).expect("an open segment");
            let _claim = segment.claim(0).expect("a claim");
            segment.advance(0, Progress::Claimed).expect("an allowed step");
            wait_until(&segment, || segment.outcome() != Ok(Outcome::Running));
            segment.advance(0, Progress::Connected).expect("an allowed step");
        }
        Ok("restore") => {
            let owner = create();
            println!("{}", owner.name());
            wait_until(&owner, || owner.outcome() != Ok(Outcome::Running));
        }
        _ => {}
    }
}

#[test]
fn a_segment_of_another_user_or_open_to_others_is_refused() {
    let owner = create();
    let refused = || match open(&owner) {
        Err(SegmentError::Untrusted { cause, .. }) => cause,
        other => panic!("{other:?}"),
    };
    owner.watch.set_permissions(Permissions::from_mode(0o644)).expect("chmod");
    assert_eq!(refused(), "its mode is 0644, not 0600");
    owner.watch.set_permissions(Permissions::from_mode(0o600)).expect("chmod");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::fchown(&owner.watch, Some(1), None).expect("chown");
        assert_eq!(refused(), "it belongs to user 1, not to 0");
    }
}

#[test]
fn what_is_no_shared_memory_is_refused() {
    let (pipe, _write) = nix::unistd::pipe().expect("a pipe");
    let program = File::open("/proc/self/exe").expect("this program");
    for fd in [pipe.as_raw_fd(), program.as_raw_fd(), i32::MAX] {
        assert!(Segment::open(&Locator::Inherited(fd as u32)).is_err(), "descriptor {fd} was taken");
    }
}

#[test]
fn a_file_of_the_wrong_size_is_refused() {
    let owner = create();
    let size = owner.watch.metadata().expect("its size").len();
    for wrong in [size + 1, size - 1, size / 2, layout::HEADER as u64, 8, 0] {
        owner.watch.set_len(wrong).expect("a new size");
        assert!(matches!(open(&owner), Err(SegmentError::Layout { .. })), "{wrong} bytes were taken");
    }
}

mod bytes {
    use super::super::layout::{HEADER, LayoutError, decode, encode};
    use super::*;

    fn valid() -> Vec<u8> {
        encode(&plan(), Duration::from_secs(1)).expect("a valid plan")
    }

    fn with(at: usize, value: u32) -> Result<(), LayoutError> {
        let mut bytes = valid();
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        decode(&bytes).map(|_| ())
    }

    #[test]
    fn a_wrong_header_is_refused() {
        assert_eq!(with(0, 0), Err(LayoutError::Magic));
        assert_eq!(with(16, 2), Err(LayoutError::Version(2)));
        assert!(matches!(with(8, 0), Err(LayoutError::Size { .. })));
        assert!(matches!(with(12, 1), Err(LayoutError::Size { .. })));
        assert!(matches!(with(40, 0), Err(LayoutError::Field { field: "coordinator", .. })));
        assert!(matches!(with(40, u32::MAX), Err(LayoutError::Sum(_) | LayoutError::Field { .. })));
    }

    #[test]
    fn wrong_counts_are_refused() {
        for at in (20..40).step_by(4) {
            for count in [0, 5, MAX_RECORDS, MAX_RECORDS + 1, MAX_STRINGS + 1, u32::MAX / 16, u32::MAX] {
                let error = with(at, count).expect_err("a wrong count");
                let named = matches!(error, LayoutError::Size { .. } | LayoutError::TooMany { .. });
                assert!(named, "{count} at {at}: {error}");
            }
        }
    }

    #[test]
    fn wrong_records_are_refused() {
        let masters = HEADER + 4 * (2 + 2 + 3);
        let superblocks = masters + 2 * 32 + 3 * 16;
        let control_fds = superblocks + 3 * 24;
        let cases = [
            (masters, 5000, "its strings do not add up"),
            (masters, u32::MAX, "its strings do not add up"),
            (masters, 0, "master 0 has a wrong id"),
            (masters + 4, 3, "master 0 has a wrong kind"),
            (masters + 8, u32::MAX, "master 0 has a wrong pid"),
            (masters + 12, 1 << 31, "master 0 has a wrong pid"),
            (masters + 24, 1, "superblock 0 has a wrong pipe"),
            (masters + 24, u32::MAX, "its pipes do not add up"),
            (masters + 32 + 24, 0, "superblock 1 has a wrong pipe"),
            (masters + 64, u32::MAX, "master 0 has a wrong read end"),
            (masters + 64 + 4, 1, "master 0 has a wrong read end"),
            (masters + 64 + 8, -2_i32 as u32, "master 0 has a wrong write end"),
            (superblocks + 4, 3, "superblock 0 has a wrong type"),
            (superblocks + 8, 2, "superblock 0 has a wrong master"),
            (superblocks + 12, u32::MAX, "superblock 0 has a wrong pipe"),
            (superblocks + 16, 1, "superblock 1 has a wrong mount point"),
            (superblocks + 16, 4096, "its strings do not add up"),
            (superblocks + 20, 1, "its control fds do not add up"),
            (superblocks + 20, u32::MAX, "its control fds do not add up"),
            (control_fds, -1_i32 as u32, "superblock 0 has a wrong control fd"),
            (control_fds + 4, u32::MAX, "superblock 0 has a wrong control fd"),
            (control_fds + 3 * 8, 0, "master 0 has a wrong id"),
            (control_fds + 3 * 8, u32::MAX, "master 0 has a wrong id"),
        ];
        for (at, value, message) in cases {
            let error = with(at, value).expect_err(message);
            assert_eq!(error.to_string(), message, "{value} at {at}");
        }
    }

    #[test]
    fn no_damage_makes_a_reader_panic() {
        let valid = valid();
        for length in 0..valid.len() {
            assert!(decode(&valid[..length]).is_err(), "{length} bytes were taken");
        }
        for at in 0..valid.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = valid.clone();
                bytes[at] = value;
                let _ = decode(&bytes);
            }
        }
    }

    #[test]
    fn a_plan_that_readers_would_refuse_is_not_published() {
        let change = |change: &dyn Fn(&mut Plan)| {
            let mut plan = plan();
            change(&mut plan);
            Segment::create(&plan).expect_err("a wrong plan").to_string()
        };
        let messages = [
            change(&|plan| plan.masters[1].id = plan.masters[0].id.clone()),
            change(&|plan| plan.masters[1].id = "a\u{1b}[2J".into()),
            change(&|plan| plan.superblocks[0].master = usize::MAX),
            change(&|plan| plan.superblocks[0].pipe = 2),
            change(&|plan| plan.superblocks[0].mount_point = TextPath::from_bytes(b"m".to_vec())),
            change(&|plan| plan.superblocks[0].mount_point = TextPath::from_bytes(vec![b'/'; 5000])),
            change(&|plan| plan.superblocks[0].control_fds[0].fd = -1),
            change(&|plan| {
                let end = plan.superblocks[0].control_fds[0];
                plan.superblocks[0].control_fds = vec![end; MAX_RECORDS as usize + 1];
            }),
        ];
        for message in messages {
            assert!(message.starts_with("cannot publish the plan: "), "{message}");
        }
    }
}
