//! The image of reports that no test makes a kernel show.

use autofs_cr_common::doc::report::{Content, Mount, Within};
use autofs_cr_common::model::{MountType, Options, Propagation};

use super::*;

fn path(text: &str) -> TextPath {
    TextPath::from_bytes(text.into())
}

fn mount(id: u64, parent: u64, device: u32, root: &str, place: &str) -> Mount {
    Mount {
        namespace: 1,
        id,
        parent,
        device: Device::anonymous(device),
        root: path(root),
        mount_point: path(place),
        options: "rw".into(),
        propagation: Propagation::PRIVATE,
        source: path("auto"),
        within: Within::Other,
        covers: false,
        buried: false,
        copy: None,
    }
}

fn content(id: u64, parent: u64, place: &str) -> Content {
    Content { namespace: 1, id, parent, mount_point: path(place), fstype: path("tmpfs"), source: path("x") }
}

fn orphan(device: u32, pipe: u64, group: i32) -> report::Superblock {
    report::Superblock {
        device: Device::anonymous(device),
        options: Options {
            mount_type: MountType::Indirect,
            timeout: 0,
            minproto: 5,
            maxproto: 5,
            uid: 0,
            gid: 0,
            strictexpire: false,
            ignore: false,
        },
        state: State::Orphaned,
        reason: "orphaned".into(),
        pipe: Some(pipe),
        pgrp: Pid::new(group),
        fd: Some(4),
        master: None,
    }
}

fn report(superblocks: Vec<report::Superblock>, mounts: Vec<Mount>, content: Vec<Content>) -> Report {
    Report {
        format: Format::CURRENT,
        hidden: Vec::new(),
        namespaces: Vec::new(),
        processes: Vec::new(),
        superblocks,
        mounts,
        content,
        requests: Vec::new(),
        waiters: Vec::new(),
        unseen_threads: 0,
        strangers: Vec::new(),
    }
}

fn places(image: &Image) -> Vec<String> {
    image.mounts.iter().map(|mount| mount.mount_point.to_string()).collect()
}

fn built(report: &Report, groups: &Groups) -> Image {
    outline(report, groups).expect("it fits together").fill(Contents::default())
}

#[test]
fn a_mount_comes_after_what_it_is_on_and_a_part_after_the_whole() {
    let mut mounts = vec![
        mount(9, 1, 40, "/key", "/a"),
        mount(8, 7, 41, "/", "/z/over/deep"),
        mount(7, 6, 42, "/", "/z/over"),
        mount(5, 1, 40, "/", "/z/whole"),
        mount(4, 1, 43, "/", "/z/over"),
    ];
    let content = vec![content(6, 4, "/z/over")];
    let superblocks = (40..44).map(|device| orphan(device, 900, 50)).collect();
    let mut report = report(superblocks, mounts.clone(), content);
    let groups = Groups::default();
    let image = built(&report, &groups);
    assert_eq!(places(&image), ["/z/whole", "/a", "/z/over", "/z/over", "/z/over/deep"]);
    assert_eq!(image.mounts[2].device, Device::anonymous(43), "the lower one first");
    // The ids of the mounts, and so their order in mountinfo, do not matter.
    mounts.reverse();
    report.mounts = mounts;
    assert_eq!(built(&report, &groups), image);
}

#[test]
fn peer_groups_are_numbered_in_the_order_of_the_list() {
    let shared = |mut mount: Mount, shared: Option<u32>, slave_of: Option<u32>| {
        mount.propagation = Propagation { shared, slave_of, unbindable: false };
        mount
    };
    let mounts = vec![
        shared(mount(3, 1, 40, "/", "/c"), Some(17), None),
        shared(mount(2, 1, 40, "/", "/b"), Some(99), Some(17)),
        shared(mount(4, 1, 40, "/", "/a"), None, Some(5)),
    ];
    let image = built(&report(vec![orphan(40, 900, 50)], mounts, Vec::new()), &Groups::default());
    let shown: Vec<String> = image.mounts.iter().map(|mount| mount.propagation.to_string()).collect();
    assert_eq!(shown, ["slave:1", "shared:2,slave:3", "shared:3"]);
}

#[test]
fn mounts_tell_of_the_directories_below_them() {
    let mounts =
        vec![mount(2, 1, 40, "/", "/net"), mount(3, 1, 40, "/part", "/p"), mount(4, 2, 41, "/", "/net/a/b")];
    let content = vec![content(5, 3, "/p/x/y"), content(6, 2, "/net"), content(7, 99, "/else")];
    let report = report(vec![orphan(40, 900, 50), orphan(41, 901, 50)], mounts, content);
    let image = built(&report, &Groups::default());
    let shown: Vec<String> =
        image.superblocks[0].directories.iter().map(|directory| directory.path.to_string()).collect();
    assert_eq!(shown, ["a", "a/b", "part", "part/x", "part/x/y"]);
    assert_eq!(image.superblocks[0].directories[0].mode, Mode(COVERED_MODE));
    assert!(image.superblocks[1].directories.is_empty());
}

#[test]
fn dead_masters_are_told_apart_by_group_or_by_pipe() {
    let superblocks = vec![orphan(40, 900, 50), orphan(41, 901, 50), orphan(42, 902, 60)];
    let mounts = (40..43).map(|device| mount(device.into(), 1, device, "/", &format!("/{device}"))).collect();
    let group = |group| Pid::new(group).expect("a group");
    let groups = Groups::from([(Device::anonymous(40), group(7)), (Device::anonymous(41), group(7))]);
    let image = built(&report(superblocks, mounts, Vec::new()), &groups);
    let ids: Vec<&str> = image.masters.iter().map(|master| master.id.as_str()).collect();
    assert_eq!(ids, ["pgrp-7", "pipe-902"]);
    assert_eq!(image.masters[0].pipes.len(), 2);
    assert_eq!((image.masters[0].pgrp, image.masters[1].pgrp), (Pid::new(7), None));
    assert_eq!(image.masters[1].pipes[0].write_end.map(|end| end.fd), Some(4));
}

#[test]
fn a_report_that_does_not_fit_together_is_refused() {
    let mut served = orphan(40, 900, 50);
    served.state = State::Connected;
    let mounts = vec![mount(2, 1, 40, "/", "/a")];
    let error = |report: &Report| outline(report, &Groups::default()).err().expect("an error").to_string();
    let mut report = report(vec![served], mounts, Vec::new());
    assert_eq!(error(&report), "superblock 0:40 of the report is connected, but its master is not there");
    report.superblocks[0].pipe = None;
    assert_eq!(error(&report), "superblock 0:40 of the report is connected, but its pipe is not there");
}

#[test]
fn a_long_chain_of_mounts_takes_no_stack() {
    let place = |id: u64| format!("/m{id}");
    let mounts = (1..100_000).map(|id| mount(id, id + 1, 45, "/", &place(id))).collect();
    let report = report(vec![orphan(45, 9, 7)], mounts, Vec::new());
    let ordered = mounts::ordered(&report);
    assert_eq!(ordered.first().map(|mount| mount.mount_point.clone()), Some(path("/m99999")));
    assert_eq!(ordered.len(), 99_999);
}
