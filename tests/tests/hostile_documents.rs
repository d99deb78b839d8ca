//! Documents that are wrong or malicious, as a user would feed them to the tools: each gives an error that names what is
//! wrong, in a bounded time and with bounded memory; nothing is mounted, and no segment is left.

use std::fmt::Write as _;

use anyhow::Result;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{Finished, Sandbox, TestCommand, program};

/// More than any document may take, in bytes of address space: the tools themselves need little.
const MEMORY: u64 = 1 << 30;

const IMAGE: &str = r#"format: "autofs-cr/image/1"
masters:
- {id: "m", kind: "unknown", command: "m", pid: 7, pgrp: 7, pipes: [{inode: 9, read_end: {fd: 5}}]}
superblocks:
- {device: "0:4500", options: {type: "indirect", timeout: 1, minproto: 5, maxproto: 5}, state: "orphaned", master: "m", pipe: 9, directories: [{path: "a", mode: "0755"}], symlinks: [{path: "l", target: "x"}], control_fds: [{fd: 7}]}
mounts:
- {mount_point: "/nowhere", device: "0:4500", root: "/", source: "x", options: "rw,relatime", propagation: "private"}
...
"#;

const REPORT: &str = r#"format: "autofs-cr/report/1"
hidden: []
namespaces:
- {id: 1, process: 1, start_time: 1, pid_namespace: 1}
processes: []
superblocks:
- {device: "0:4500", options: {type: "direct", timeout: 1, minproto: 5, maxproto: 5}, state: "catatonic", reason: "x"}
mounts:
- {namespace: 1, id: 5, parent: 4, device: "0:4500", root: "/", mount_point: "/m", options: "rw", propagation: "private", source: "x"}
content: []
requests: []
waiters: []
strangers: []
...
"#;

const STAGE: &str = r#"format: "autofs-cr/stage/1"
segment: {name: "/autofs-cr-0123456789abcdef0123456789abcdef", coordinator: 1, start_time: 1, fd: 5}
masters:
- {id: "m", command: "m", superblocks: 1}
...
"#;

/// A sandbox with a /dev/shm of its own, and what its mounts were.
struct World {
    sandbox: Sandbox,
    mounts: String,
}

impl World {
    fn new() -> Result<Self> {
        let sandbox = Sandbox::builder().shm().build()?;
        let mounts = sandbox.mountinfo();
        Ok(Self { sandbox, mounts })
    }

    /// Runs a tool on a document in the sandbox; it must refuse it, and leave all as it was.
    #[track_caller]
    fn refuses(&self, words: &[&str], document: &[u8], named: &str) -> Finished {
        let limit = format!("--as={MEMORY}");
        let tool = program(words[0]);
        let command = TestCommand::new("prlimit").arg(limit).arg(tool).args(&words[1..]);
        let finished = command.stdin(document).inside(&self.sandbox).run();
        let finished = finished.assert_code(1).assert_stderr_contains(named);
        assert_eq!(self.sandbox.mountinfo(), self.mounts, "{named}: the mounts are others");
        let left = self.sandbox.run(["ls", "-A", "/dev/shm"]).assert_success().stdout;
        assert_eq!(left, "", "{named}: a segment is left");
        finished
    }

    #[track_caller]
    fn image(&self, document: &str, named: &str) -> Finished {
        self.refuses(&["autofs-restore", "--timeout=5"], document.as_bytes(), named)
    }

    #[track_caller]
    fn report(&self, document: &str, named: &str) -> Finished {
        self.refuses(&["autofs-dump", "-i", "-"], document.as_bytes(), named)
    }

    #[track_caller]
    fn stage(&self, document: &str, named: &str) -> Finished {
        self.refuses(&["autofs-fixup", "--timeout=5"], document.as_bytes(), named)
    }
}

#[track_caller]
fn changed(document: &str, from: &str, to: &str) -> String {
    assert!(document.contains(from), "{from} is not in {document}");
    document.replacen(from, to, 1)
}

#[test]
fn every_wrong_field_of_an_image_is_named_and_nothing_is_mounted() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new()?;
    let long = format!("/{}", "x".repeat(100_000));
    let deep = "/x".repeat(5000);
    for (from, to, named) in [
        ("/nowhere", "/nowhere", "mount point /nowhere does not exist"),
        ("/nowhere", "nowhere", "mount point 'nowhere' is not absolute and plain"),
        ("/nowhere", "", "mount point '' is not absolute and plain"),
        ("/nowhere", "/", "mount point '/' is not absolute and plain"),
        ("/nowhere", "/a/../../b", "mount point '/a/../../b' is not absolute and plain"),
        ("/nowhere", "//a", "is not absolute and plain"),
        ("/nowhere", "/a/.", "is not absolute and plain"),
        ("/nowhere", "/a\\u0000b", "has a NUL byte"),
        ("/nowhere", "/a\\\\x00b", "has a NUL byte"),
        ("/nowhere", "/a\\\\q", "starts no escape"),
        ("/nowhere", "/no\\nwhere", "/no\\x0awhere"),
        ("/nowhere", "/no\\\\x1b[31mwhere", "/no\\x1b[31mwhere"),
        ("/nowhere", &long, "longer than"),
        ("/nowhere", &deep, "longer than"),
        ("/nowhere", "/proc", "is in the way"),
        ("/nowhere", "/proc/self/root", "mount point /proc/self/root is no directory"),
        ("/nowhere", "/proc/1/root/x", "mount point /proc/1/root/x"),
        ("\"0:4500\", options", "\"8:1\", options", "superblock 8:1 has a major number"),
        ("\"0:4500\", options", "\"0:0\", options", "superblock 0:0"),
        ("\"0:4500\", options", "\"0:1048575\", options", "superblock 0:1048575"),
        ("\"0:4500\", options", "\"0:1048576\", options", "'0:1048576' is no device number"),
        ("\"0:4500\", root", "\"0:4501\", root", "there is no superblock 0:4501"),
        ("root: \"/\"", "root: \"/..\"", "its root '/..' is not absolute and plain"),
        ("fd: 5", "fd: -1", "-1 is no descriptor number"),
        ("fd: 5", "fd: 2147483647", "2147483647 is no descriptor number"),
        ("fd: 5", "fd: 2147483648", "2147483648"),
        ("fd: 7", "fd: -7", "-7 is no descriptor number"),
        ("pgrp: 7", "pgrp: 0", "'0' is no process id"),
        ("pgrp: 7", "pgrp: 4294967295", "'4294967295' is no process id"),
        ("pgrp: 7", "pgrp: -7", "-7"),
        ("timeout: 1", "timeout: -1", "-1"),
        ("timeout: 1", "timeout: 1.5", "1.5"),
        ("timeout: 1", "timeout: 18446744073709551616", "line 5"),
        (
            "timeout: 1",
            "timeout: 18446744073709551615",
            "superblock 0:4500: a timeout of 18446744073709551615 seconds",
        ),
        ("minproto: 5", "minproto: 6", "minproto 6"),
        ("path: \"a\"", "path: \"../a\"", "the path '../a' inside it"),
        ("path: \"a\"", "path: \"/a\"", "the path '/a' inside it"),
        ("path: \"a\"", "path: \"a/b\"", "'a/b' stands twice, or before"),
        ("path: \"l\"", "path: \"a\"", "'a' stands twice"),
        ("mode: \"0755\"", "mode: \"77777\"", "'77777' is no file mode"),
        ("rw,relatime", "rw,wild", "the option 'wild' is not known"),
        ("master: \"m\"", "master: \"n\"", "there is no master 'n'"),
        ("pipe: 9", "pipe: 10", "master 'm' has no pipe 10"),
        ("source: \"x\"", "source: \"x\", sauce: 1", "unknown field `sauce`"),
        ("source: \"x\"", "source: \"x\", source: \"x\"", "duplicate field `source`"),
    ] {
        world.image(&changed(IMAGE, from, to), named);
    }
    world.sandbox.close()
}

#[test]
fn entries_that_stand_twice_are_refused() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new()?;
    let twice = |start: &str| {
        let line = IMAGE.lines().find(|line| line.starts_with(start)).expect(start);
        changed(IMAGE, line, &format!("{line}\n{line}"))
    };
    world.image(&twice("- {id"), "the id 'm' is empty or stands twice");
    world.image(&twice("- {device"), "superblock 0:4500 stands twice");
    world.image(&twice("- {mount_point"), "/nowhere");
    let report = changed(REPORT, "parent: 4", "parent: 5");
    world.report(&report, "parent 5 of mount '/m' (id 5)");
    let line = REPORT.lines().find(|line| line.starts_with("- {device")).expect("a superblock");
    world.report(&changed(REPORT, line, &format!("{line}\n{line}")), "superblocks of the report");
    world.sandbox.close()
}

#[test]
fn tricks_of_yaml_are_refused_before_they_cost_anything() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new()?;
    let mut laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (name, before) in ('b'..='j').zip('a'..) {
        let list = format!("*{before},").repeat(9);
        writeln!(laughs, "{name}: &{name} [{list}]")?;
    }
    let deep = format!("format: {}{}\n...\n", "[".repeat(100_000), "]".repeat(100_000));
    let blocks = format!("format:\n{}\n...\n", (0..200).map(|at| " ".repeat(at) + "-\n").collect::<String>());
    let hidden = "format: autofs-cr/image/1 # \r&x a: [*x,*x]\n...\n";
    let tagged = changed(IMAGE, "timeout: 1", "timeout: !!int \"1\"");
    let anchored = changed(IMAGE, "timeout: 1", "timeout: !x &y 1");
    let huge = changed(IMAGE, "\"x\", options", &format!("\"{}\", options", "x".repeat(65 << 20)));
    let second = format!("{}---\n{IMAGE}", IMAGE.trim_end_matches("...\n"));
    for (document, named) in [
        (format!("{laughs}...\n"), "anchors are not taken"),
        (deep, "nested more than 16"),
        (blocks, "nested more than 16"),
        (hidden.to_owned(), "anchors are not taken"),
        (tagged, "tags are not taken"),
        (anchored, "tags are not taken"),
        (huge, "larger than 64 MiB"),
        (second, "standard input is no valid image"),
        (format!("format: [{}]\n...\n", "b,".repeat(30_000_000)), "4000000 values"),
        (format!("{{\"format\": [\"\"{}]}}", ",\"\"".repeat(10_000_000)), "values"),
        ("\u{feff}".to_owned(), "no valid image"),
        ("\0\0\0\0".to_owned(), "no valid image"),
        (" \n\t\n".to_owned(), "is empty"),
        (String::new(), "is empty"),
        ("...\n".to_owned(), "no valid image"),
        ("%TAG ! x\n---\n...\n".to_owned(), "no valid image"),
        (IMAGE.trim_end_matches("...\n").to_owned(), "it is cut off"),
        (IMAGE[..IMAGE.len() / 2].to_owned(), "it is cut off"),
        (REPORT.to_owned(), "this is the format of the report"),
        (STAGE.to_owned(), "this is the format of the stage"),
        (changed(IMAGE, "image/1", "image/2"), "version 2 of the image format is not known"),
        (changed(IMAGE, "image/1", "image/99999999999999"), "version 99999999999999"),
        (changed(IMAGE, "autofs-cr/image/1", "x/y"), "unknown format 'x/y'"),
    ] {
        world.image(&document, named);
    }
    world.refuses(&["autofs-restore"], b"format: \xff\n...\n", "utf-8");
    world.report(IMAGE, "this is the format of the image");
    world.stage(IMAGE, "this is the format of the image");
    world.sandbox.close()
}

#[test]
fn a_byte_order_mark_and_the_line_ends_of_other_systems_are_taken() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new()?;
    for document in [format!("\u{feff}{IMAGE}"), IMAGE.replace('\n', "\r\n")] {
        world.image(&document, "mount point /nowhere does not exist");
    }
    world.sandbox.close()
}

/// Ten million mounts are more than 1 GB of text, and a document may have 64 MiB; what fits into that is refused by the
/// number.
#[test]
fn millions_of_entries_take_no_more_than_their_memory_and_time() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new()?;
    let line = IMAGE.lines().find(|line| line.starts_with("- {mount_point")).expect("a mount");
    let many = format!("{line}\n").repeat(600_000);
    world.image(&changed(IMAGE, &format!("{line}\n"), &many), "larger than 64 MiB");
    drop(many);
    // The smallest entries that there can be.
    let ids: String = (0..1_100_000)
        .map(|id| format!("- {{id: \"{id}\", kind: \"unknown\", command: \"\", pipes: []}}\n"))
        .collect();
    let master = IMAGE.lines().find(|line| line.starts_with("- {id")).expect("a master");
    world.image(&changed(IMAGE, &format!("{master}\n"), &ids), "masters has more than 1000000 entries");
    drop(ids);
    let hidden = "- \"\"\n".repeat(5_000_000);
    world.report(&changed(REPORT, "hidden: []\n", &format!("hidden:\n{hidden}")), "of the report is gone");
    world.sandbox.close()
}

#[test]
fn a_report_about_what_is_not_there_is_refused() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new()?;
    for (from, to, named) in [
        ("start_time: 1", "start_time: 1", "process 1 of the report is gone or another one"),
        ("\"/m\"", "\"m\"", "mount_point 'm' of the report is not absolute"),
        (
            "device: \"0:4500\", root",
            "device: \"0:4501\", root",
            "device 0:4501 of mount '/m' is no superblock",
        ),
        ("reason: \"x\"", "reason: \"x\", master: 7", "master 7 of superblock 0:4500"),
        ("process: 1", "process: 2147483647", "process 2147483647"),
    ] {
        world.report(&changed(REPORT, from, to), named);
    }
    world.sandbox.close()
}

#[test]
fn a_stage_document_that_leads_nowhere_is_refused() -> Result<()> {
    require!(Root, Autofs);
    let world = World::new()?;
    for (from, to, named) in [
        ("fd: 5", "fd: 5", "/proc/1/fd/5"),
        ("fd: 5", "fd: -5", "/autofs-cr-0123456789abcdef0123456789abcdef"),
        ("coordinator: 1", "coordinator: 2147483647", "/proc/2147483647/fd/5"),
        ("coordinator: 1", "coordinator: 0", "'0' is no process id"),
        ("/autofs-cr-0123456789abcdef0123456789abcdef", "/etc/passwd", "no name of a segment"),
        (
            "/autofs-cr-0123456789abcdef0123456789abcdef",
            "/autofs-cr-/../../etc/passwd",
            "no name of a segment",
        ),
        ("superblocks: 1", "superblocks: -1", "-1"),
    ] {
        world.stage(&changed(STAGE, from, to), named);
    }
    world.sandbox.close()
}

#[test]
fn timeouts_that_no_clock_can_hold_are_wrong_usage() {
    for tool in ["autofs-restore", "autofs-fixup", "autofs-dump"] {
        for timeout in ["-1", "1e300", "inf", "NaN", "18446744073709551616", "x", ""] {
            let run = TestCommand::new(program(tool)).arg(format!("--timeout={timeout}")).stdin(IMAGE).run();
            run.assert_code(2).assert_stderr_contains("seconds");
        }
    }
}
