//! The scan on trees that look like /proc. What needs a kernel is in the integration tests.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::doc::report::{Waiter, WaiterRole};

/// A tree that looks like /proc.
struct Tree(TempDir);

const AUTOFS: &str = "40 1 0:45 / /net rw,relatime - autofs auto.net rw,fd=4,pgrp=50,timeout=5,minproto=5,maxproto=5,indirect,pipe_ino=900\n";

impl Tree {
    /// With process 1, whose mounts these are.
    fn new(mountinfo: &[u8]) -> Self {
        let tree = Self(tempfile::tempdir().expect("a directory"));
        tree.process(1, 1, "init");
        fs::write(tree.path(1, "mountinfo"), mountinfo).expect("written");
        tree
    }

    fn path(&self, pid: u32, name: &str) -> PathBuf {
        self.0.path().join(pid.to_string()).join(name)
    }

    fn process(&self, pid: u32, group: u32, command: &str) -> &Self {
        for directory in ["fd", "fdinfo", "ns"] {
            fs::create_dir_all(self.path(pid, directory)).expect("made");
        }
        let stat = format!("{pid} ({command}) S 1 {group} 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 7{pid} 0 0\n");
        fs::write(self.path(pid, "stat"), stat).expect("written");
        let status = format!("NSpid:\t{pid}\nNSpgid:\t{group}\nNSsid:\t1\n");
        fs::write(self.path(pid, "status"), status).expect("written");
        symlink("mnt:[4026531841]", self.path(pid, "ns/mnt")).expect("linked");
        symlink("pid:[4026531836]", self.path(pid, "ns/pid")).expect("linked");
        symlink("/", self.path(pid, "root")).expect("linked");
        self
    }

    fn fd(&self, pid: u32, fd: u32, link: &[u8], info: &str) -> &Self {
        symlink(std::ffi::OsStr::from_bytes(link), self.path(pid, &format!("fd/{fd}"))).expect("linked");
        fs::write(self.path(pid, &format!("fdinfo/{fd}")), info).expect("written");
        self
    }

    fn reader(&self, pid: u32) -> &Self {
        self.fd(pid, 3, b"pipe:[900]", "pos:\t0\nflags:\t02004000\nmnt_id:\t15\n")
    }

    /// A thread that waits in autofs, in a system call of this number and first argument.
    fn waiter(&self, pid: u32, tid: u32, stack: &str, call: (i64, u64)) -> &Self {
        let thread = |name: &str| self.path(pid, &format!("task/{tid}/{name}"));
        for directory in ["fd", "ns"] {
            fs::create_dir_all(thread(directory)).expect("made");
        }
        let threads = fs::read_dir(self.path(pid, "task")).expect("listed").count();
        let stat = format!("{tid} (cat) D 1 {pid} 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 9{tid} 0 0\n");
        fs::write(self.path(pid, "stat"), &stat).expect("written");
        let syscall = format!("{} {:#x} 0x0 0x0 0x0 0x0 0x0 0x7f00 0x7f01\n", call.0, call.1);
        let status = format!("Uid:\t1000\t0\t0\t0\nNStgid:\t{pid}\nNSpid:\t{tid}\n");
        let mounts = fs::read_to_string(self.path(1, "mountinfo")).expect("read");
        let files = [("stat", &*stat), ("status", &status), ("wchan", "autofs_wait"), ("stack", stack)];
        for (name, text) in files.into_iter().chain([("syscall", &*syscall), ("mountinfo", &mounts)]) {
            fs::write(thread(name), text).expect("written");
        }
        for (name, link) in [("root", "/"), ("cwd", "/net/home"), ("fd/3", "/net/x")] {
            symlink(link, thread(name)).expect("linked");
        }
        symlink("mnt:[4026531841]", thread("ns/mnt")).expect("linked");
        symlink("pid:[4026531836]", thread("ns/pid")).expect("linked");
        self
    }

    /// Another text in a file of a thread.
    fn rewrite(&self, pid: u32, tid: u32, name: &str, text: &str) -> &Self {
        fs::write(self.path(pid, &format!("task/{tid}/{name}")), text).expect("written");
        self
    }

    /// Another target of a link of a thread.
    fn relink(&self, pid: u32, tid: u32, name: &str, target: &str) -> &Self {
        let link = self.path(pid, &format!("task/{tid}/{name}"));
        fs::remove_file(&link).expect("removed");
        symlink(target, link).expect("linked");
        self
    }

    /// The descriptors of a process cannot be listed.
    fn hide(&self, pid: u32) -> &Self {
        fs::remove_dir_all(self.path(pid, "fd")).expect("removed");
        fs::write(self.path(pid, "fd"), "").expect("written");
        self
    }

    /// Looks at everything; what is looked for as far as it is needed must tell the same.
    fn scan(&self) -> Report {
        let whole = self.look(Needs::REPORT);
        for needs in [Needs::STATES, Needs::IMAGE] {
            assert_eq!(self.look(needs).superblocks, whole.superblocks, "{needs:?}");
        }
        assert_eq!(self.look(Needs::STATES).waiters, whole.waiters);
        whole
    }

    fn look(&self, needs: Needs) -> Report {
        let proc = Proc::at(self.0.path()).expect("opened");
        scan(&proc, Scope::Of(Pid::new(1).expect("a pid")), needs).expect("scanned")
    }

    fn only(&self) -> Superblock {
        let mut report = self.scan();
        assert_eq!(report.superblocks.len(), 1);
        report.superblocks.remove(0)
    }

    fn error(&self) -> String {
        let proc = Proc::at(self.0.path()).expect("opened");
        let error = scan(&proc, Scope::Of(Pid::new(1).expect("a pid")), Needs::REPORT).expect_err("an error");
        format!("{:#}", anyhow::Error::from(error))
    }
}

#[test]
fn the_leader_of_the_group_is_the_master_or_else_the_lowest() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(49, 50, "child").reader(49).process(51, 50, "other").reader(51);
    let found = tree.only();
    assert_eq!((found.state, found.master), (State::Connected, Pid::new(49)));
    tree.process(50, 50, "automount").reader(50);
    assert_eq!(tree.only().master, Pid::new(50));
    assert_eq!(tree.only().reason, "connected: automount[50] reads pipe 900");
}

#[test]
fn a_write_end_or_a_mere_place_does_not_serve() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(50, 50, "automount");
    tree.fd(50, 4, b"pipe:[900]", "flags:\t01\nmnt_id:\t15\n");
    tree.fd(50, 5, b"pipe:[900]", "flags:\t010000000\nmnt_id:\t15\n");
    let found = tree.only();
    assert_eq!(found.state, State::Orphaned);
    assert_eq!(
        found.reason,
        "orphaned: no process holds the read end of pipe 900; its process group 50 lives"
    );
    assert_eq!(tree.scan().processes[0].pipe_ends.len(), 1);
}

#[test]
fn only_the_members_of_the_group_are_looked_at_where_they_serve() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(70, 70, "other").reader(70).process(50, 50, "automount").reader(50);
    tree.process(60, 60, "secret").hide(60);
    let pids = |needs| -> Vec<i32> {
        tree.look(needs).processes.iter().map(|process| process.pid.as_raw()).collect()
    };
    assert_eq!((pids(Needs::STATES), pids(Needs::REPORT)), (vec![50], vec![50, 70]));
    assert_eq!(tree.look(Needs::STATES).hidden, Vec::<String>::new(), "nothing was missed");
    // With two pipes, one of which is not served by its group.
    let other = AUTOFS.replace("0:45", "0:46").replace("pipe_ino=900", "pipe_ino=901");
    fs::write(tree.path(1, "mountinfo"), format!("{AUTOFS}{other}")).expect("written");
    tree.fd(70, 4, b"pipe:[901]", "flags:\t00\nmnt_id:\t15\n");
    assert_eq!(pids(Needs::STATES), [50, 70]);
    assert_eq!(tree.scan().superblocks[1].master, Pid::new(70));
}

#[test]
fn control_fds_are_looked_for_where_they_are_needed() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(50, 50, "automount").reader(50).fd(50, 7, b"/net", "flags:\t02200000\nmnt_id:\t40\n");
    let count = |needs| tree.look(needs).processes[0].control_fds.len();
    assert_eq!((count(Needs::STATES), count(Needs::IMAGE), count(Needs::REPORT)), (0, 1, 1));
}

#[test]
fn nothing_is_called_orphaned_while_something_is_hidden() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(60, 60, "secret").hide(60);
    let report = tree.scan();
    assert_eq!(report.superblocks[0].state, State::Unknown);
    assert!(report.hidden[0].starts_with("the descriptors of 1 process"), "{:?}", report.hidden);
    tree.process(50, 50, "automount").reader(50);
    assert_eq!(tree.only().state, State::Connected, "what is seen is enough");

    // What is above the pid namespace that the mount was seen from does not matter.
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(60, 60, "secret").hide(60);
    fs::write(tree.path(1, "status"), "NSpid:\t1\t1\nNSpgid:\t1\t1\nNSsid:\t1\t1\n").expect("written");
    assert_eq!(tree.only().state, State::Orphaned);
    fs::write(tree.path(60, "status"), "").expect("written");
    assert_eq!(tree.only().state, State::Unknown);
}

#[test]
fn a_descriptor_that_cannot_be_looked_at_is_hidden_and_none_that_is_closed() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(50, 50, "automount").reader(50);
    let info = tree.path(50, "fdinfo/3");
    fs::remove_file(&info).expect("removed");
    assert_eq!(tree.only().state, State::Orphaned);
    fs::create_dir(&info).expect("made");
    let report = tree.scan();
    assert_eq!(report.superblocks[0].state, State::Unknown);
    assert_eq!(report.hidden, ["the descriptors of 1 process"]);
}

#[test]
fn a_delegate_is_only_sure_when_the_group_is_seen() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(70, 70, "delegate").reader(70).process(60, 60, "secret").hide(60);
    let found = tree.only();
    assert_eq!((found.state, found.master), (State::Delegated, Pid::new(70)));
    tree.process(50, 50, "automount").hide(50);
    let found = tree.only();
    assert_eq!((found.state, found.master), (State::Unknown, None));
    assert!(found.reason.contains("of its process group 50 are not visible"), "{}", found.reason);
}

#[test]
fn without_process_1_not_all_are_shown() {
    let tree = Tree::new(AUTOFS.as_bytes());
    fs::rename(tree.0.path().join("1"), tree.0.path().join("2")).expect("renamed");
    let proc = Proc::at(tree.0.path()).expect("opened");
    let report = scan(&proc, Scope::Of(Pid::new(2).expect("a pid")), Needs::REPORT).expect("scanned");
    assert_eq!(report.superblocks[0].state, State::Unknown);
    assert!(report.hidden[0].contains("does not show all of them"), "{:?}", report.hidden);
}

#[test]
fn a_kernel_that_shows_no_pipe_leaves_the_state_unknown() {
    let tree = Tree::new(AUTOFS.replace(",pipe_ino=900", "").as_bytes());
    tree.process(50, 50, "automount").reader(50);
    let report = tree.scan();
    assert_eq!((report.superblocks[0].state, report.superblocks[0].pipe), (State::Unknown, None));
    assert!(report.superblocks[0].reason.contains("pipe_ino is missing in mountinfo"));
    assert_eq!(report.hidden, ["the pipes of the mounts: this kernel shows no pipe_ino in mountinfo"]);
    let catatonic = Tree::new(AUTOFS.replace("fd=4", "fd=-1").replace(",pipe_ino=900", "").as_bytes());
    assert_eq!(catatonic.only().state, State::Catatonic);
}

#[test]
fn a_group_that_is_not_visible_is_said() {
    let tree = Tree::new(AUTOFS.replace("pgrp=50", "pgrp=0").as_bytes());
    assert!(tree.only().reason.contains("its process group is not visible from this pid namespace"));
    tree.process(50, 50, "automount").reader(50);
    let found = tree.only();
    assert_eq!((found.state, found.pgrp), (State::Unknown, None));
    assert!(found.reason.starts_with("unknown: automount[50] reads pipe 900, but"), "{}", found.reason);
}

#[test]
fn control_fds_are_found_by_their_mount_and_odd_bytes_survive() {
    let line = AUTOFS.replace("/net", "/n\\040\\012");
    let mut mountinfo = Vec::new();
    for byte in line.bytes() {
        mountinfo.extend_from_slice(if byte == b'n' && mountinfo.ends_with(b"/") {
            b"n\xff"
        } else {
            std::slice::from_ref(&byte)
        });
    }
    let tree = Tree::new(&mountinfo);
    tree.process(50, 50, "automount").reader(50);
    tree.fd(50, 7, b"/n\xff \n", "flags:\t02200000\nmnt_id:\t40\n");
    tree.fd(50, 8, b"/n\xff \n/key", "flags:\t02200000\nmnt_id:\t40\n");
    tree.fd(50, 9, b"/n\xff \n", "flags:\t012200000\nmnt_id:\t40\n");
    let report = tree.scan();
    assert_eq!(report.mounts[0].mount_point.as_bytes(), b"/n\xff \n");
    let fds: Vec<i32> = report.processes[0].control_fds.iter().map(|control| control.fd).collect();
    assert_eq!(fds, [7], "neither what is inside nor what is only a place");
    assert!(report.processes[0].control_fds[0].flags.cloexec);
}

#[test]
fn mounts_that_make_no_sense_are_named() {
    let error = Tree::new(b"nonsense\n").error();
    assert!(error.contains("mounts of process 1: line 1 of mountinfo"), "{error}");
    let error = Tree::new(AUTOFS.replace("fd=4", "fd=x").as_bytes()).error();
    assert!(error.contains("autofs mount /net of process 1: autofs option 'fd=x'"), "{error}");
    let error = Tree::new(AUTOFS.replace("0:45", "0;45").as_bytes()).error();
    assert!(error.contains("its device number makes no sense"), "{error}");
}

#[test]
fn a_process_that_is_not_there_is_named() {
    let tree = Tree::new(AUTOFS.as_bytes());
    let proc = Proc::at(tree.0.path()).expect("opened");
    let error = scan(&proc, Scope::Of(Pid::new(9).expect("a pid")), Needs::REPORT).expect_err("an error");
    assert_eq!(error.to_string(), "process 9 does not exist");
}

#[test]
fn every_namespace_is_looked_at_once() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(50, 50, "automount").reader(50);
    fs::write(tree.path(50, "mountinfo"), AUTOFS).expect("written");
    tree.process(80, 80, "apart");
    fs::write(tree.path(80, "mountinfo"), AUTOFS.replace("40 1", "90 80")).expect("written");
    fs::remove_file(tree.path(80, "ns/mnt")).expect("removed");
    symlink("mnt:[4026539999]", tree.path(80, "ns/mnt")).expect("linked");
    let proc = Proc::at(tree.0.path()).expect("opened");
    let report = scan(&proc, Scope::All, Needs::REPORT).expect("scanned");
    let namespaces: Vec<i32> = report.namespaces.iter().map(|namespace| namespace.process.as_raw()).collect();
    assert_eq!(namespaces, [1, 80]);
    assert_eq!((report.mounts.len(), report.superblocks.len()), (2, 1));
}

const FIRST: &str = "[<0>] autofs_wait+0x1\n[<0>] autofs_mount_wait+0x1\n[<0>] autofs_d_automount+0x1\n";
const JOINED: &str = "[<0>] autofs_wait+0x1\n[<0>] autofs_mount_wait+0x1\n[<0>] autofs_d_manage+0x1\n";
const EXPIRE: &str = "[<0>] autofs_wait+0x1\n[<0>] autofs_expire_wait+0x1\n[<0>] autofs_d_manage+0x1\n";

/// fstat(3), and statx(AT_FDCWD, NULL).
const ON_DESCRIPTOR: (i64, u64) = (libc::SYS_fstat, 3);
const ON_DIRECTORY: (i64, u64) = (libc::SYS_statx, 0xffff_ff9c);

fn path(waiter: &Waiter) -> Option<String> {
    waiter.path.as_ref().map(ToString::to_string)
}

#[test]
fn threads_that_wait_are_found_with_their_part() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(60, 60, "one").waiter(60, 60, FIRST, ON_DESCRIPTOR);
    tree.process(70, 70, "many").waiter(70, 70, JOINED, ON_DIRECTORY).waiter(70, 71, EXPIRE, ON_DESCRIPTOR);
    tree.process(80, 80, "idle");
    let found = tree.scan().waiters;
    let told: Vec<_> = found.iter().map(|waiter| (waiter.tid.as_raw(), waiter.role, path(waiter))).collect();
    let text = |path: &str| Some(path.to_owned());
    assert_eq!(
        told,
        [
            (60, WaiterRole::First, text("/net/x")),
            (70, WaiterRole::Joined, text("/net/home")),
            (71, WaiterRole::Expire, text("/net/x")),
        ]
    );
    assert!(found.iter().all(|waiter| waiter.device == Some(Device::anonymous(45)) && waiter.uid == 1000));
    assert_eq!(
        (found[2].pid.as_raw(), found[2].start_time, found[2].command.as_bytes()),
        (70, 971, &b"cat"[..])
    );
}

#[test]
fn who_waits_for_something_else_or_no_more_is_no_waiter() {
    let tree = Tree::new(AUTOFS.as_bytes());
    for (pid, wchan) in [(60, "folio_wait_bit_common"), (61, "0"), (62, "")] {
        tree.process(pid, pid, "x").waiter(pid, pid, FIRST, ON_DESCRIPTOR).rewrite(pid, pid, "wchan", wchan);
    }
    for (pid, gone) in [(70, "wchan"), (71, "status"), (72, "mountinfo"), (73, "")] {
        tree.process(pid, pid, "x").waiter(pid, pid, FIRST, ON_DESCRIPTOR);
        let thread = tree.path(pid, &format!("task/{pid}"));
        match gone {
            "" => fs::remove_dir_all(thread).expect("removed"),
            name => fs::remove_file(thread.join(name)).expect("removed"),
        }
    }
    let report = tree.scan();
    assert_eq!((report.waiters, report.hidden), (vec![], vec![]));
}

#[test]
fn what_cannot_be_told_of_a_waiter_is_left_out() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(60, 60, "no stack").waiter(60, 60, "", ON_DESCRIPTOR);
    tree.process(61, 61, "elsewhere").waiter(61, 61, FIRST, ON_DESCRIPTOR).relink(61, 61, "fd/3", "/home/x");
    tree.process(62, 62, "running").waiter(62, 62, FIRST, ON_DESCRIPTOR).rewrite(
        62,
        62,
        "syscall",
        "running\n",
    );
    tree.process(63, 63, "removed").waiter(63, 63, FIRST, ON_DIRECTORY).relink(
        63,
        63,
        "cwd",
        "/net/a (deleted)",
    );
    let report = tree.scan();
    let told: Vec<_> =
        report.waiters.iter().map(|waiter| (waiter.role, waiter.device.is_some(), path(waiter))).collect();
    assert_eq!(
        told,
        [
            (WaiterRole::Unknown, true, Some("/net/x".to_owned())),
            (WaiterRole::First, false, Some("/home/x".to_owned())),
            (WaiterRole::First, false, None),
            (WaiterRole::First, false, None),
        ]
    );
    assert_eq!(report.hidden, ["whether 1 thread in autofs asked first: kernel stacks are for root alone"]);
}

#[test]
fn a_waiter_is_seen_with_its_own_root_and_mounts() {
    let tree = Tree::new(AUTOFS.as_bytes());
    tree.process(60, 60, "jailed").waiter(60, 60, FIRST, ON_DESCRIPTOR);
    tree.relink(60, 60, "root", "/jail").relink(60, 60, "fd/3", "/jail/in/x");
    tree.rewrite(60, 60, "mountinfo", &AUTOFS.replace("/net", "/in"));
    tree.process(61, 61, "apart").waiter(61, 61, FIRST, ON_DIRECTORY);
    tree.relink(61, 61, "ns/mnt", "mnt:[4026539999]").rewrite(
        61,
        61,
        "mountinfo",
        &AUTOFS.replace("0:45", "0:46"),
    );
    let found = tree.scan().waiters;
    assert_eq!(found.len(), 1, "the other one waits on a mount that is not looked at");
    assert_eq!((path(&found[0]).as_deref(), found[0].device), (Some("/in/x"), Some(Device::anonymous(45))));
}
