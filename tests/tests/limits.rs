//! What is more than a shell allows, more than one mount at a place, and what an image may ask for.

use std::fmt::Write;

use anyhow::{Context, Result};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::dump;
use autofs_cr_tests::sandbox::{MasterOptions, Sandbox, TestCommand, Tool, program};

/// Runs a tool with limits of descriptors as a shell on a plain host has them.
fn with_small_limits(tool: &str, arguments: &str) -> TestCommand {
    let tool = program(tool);
    let script = format!("ulimit -Sn 256 && ulimit -Hn 4096 && exec {} {arguments}", tool.display());
    TestCommand::new("bash").args(["-c", &script])
}

#[test]
fn more_mounts_than_the_soft_limit_of_descriptors_are_replaced() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let many = sandbox.path("many");
    let options = MasterOptions::new().args(["--identity=device", "--control-fds", "--bulk"]);
    let mut master = sandbox.master(options.arg(&many).arg("300"))?;
    let image = dump(&sandbox);
    let arguments = format!("-p {} --replace", sandbox.pid());
    for connect in ["auto", "fixup"] {
        let restore = with_small_limits("autofs-restore", &format!("{arguments} --connect={connect}"));
        let (restored, fixed) = restore.stdin(&*image).pipe(with_small_limits("autofs-fixup", ""));
        restored.assert_success().assert_stderr_contains(" 300");
        fixed.assert_success();
    }
    sandbox.touch(many.join("000299"))?;
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn fewer_descriptors_than_mounts_are_enough() -> Result<()> {
    const LIMIT: usize = 400;
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let many = sandbox.path("many");
    let options = MasterOptions::new().args(["--identity=device", "--bulk"]).arg(&many).arg("600");
    let mut master = sandbox.master(options)?;
    let image = dump(&sandbox);
    let restore =
        |more: &[&str]| Tool::restore().target(&sandbox).args(more).most_descriptors(LIMIT).stdin(&*image);
    restore(&["--replace"]).run().assert_success().assert_stderr_contains("connect 600");
    let (restored, fixed) =
        restore(&["--replace", "--connect=fixup"]).pipe(Tool::fixup().most_descriptors(LIMIT));
    restored.assert_success().assert_stderr_contains("create 600");
    fixed.assert_success();
    unmount_all(&sandbox);
    restore(&[]).run().assert_success().assert_stderr_contains("connect 600");
    sandbox.touch(many.join("000599"))?;
    sandbox.run(["umount", &many.join("000599").to_string_lossy()]).assert_success();
    unmount_all(&sandbox);
    // Nobody connects them, so all are taken away again.
    restore(&["--connect=fixup", "--timeout=1"])
        .run()
        .assert_code(1)
        .assert_stderr_contains("everything was undone");
    assert_eq!(sandbox.autofs_lines(), [""; 0]);
    master.assert_undisturbed();
    sandbox.close()
}

fn unmount_all(sandbox: &Sandbox) {
    sandbox.run(["umount", "-a", "-t", "autofs"]).assert_success();
}

/// An image of nothing.
const EMPTY: &str = "format: autofs-cr/image/1\nmasters: []\nsuperblocks: []\nmounts: []\n...\n";

#[test]
fn no_autofs_mount_of_the_host_is_in_a_fresh_namespace() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d").direct("bare").indirect("i"))?;
    sandbox.touch(sandbox.path("d"))?;
    sandbox.touch(sandbox.path("i/key"))?;
    let cover = sandbox.path("d");
    // A second one on the same place.
    sandbox.run(["mount", "-t", "tmpfs", "cover", &cover.to_string_lossy()]).assert_success();
    let before = sandbox.mountinfo();
    let limit = sandbox.run(["bash", "-c", "ulimit -Sn; ulimit -Hn"]).assert_success().stdout;
    let restore = sandbox.command(program("autofs-restore")).arg("--init").stdin(EMPTY);
    let shown = restore.args(["--", "bash", "-c", "ulimit -Sn; ulimit -Hn; cat /proc/self/mountinfo"]).run();
    let shown = shown.assert_success().stdout;
    let mounts = shown.strip_prefix(&limit).context("the command has other limits")?;
    assert!(!mounts.is_empty() && !mounts.contains(" - autofs "), "{mounts}");
    assert_eq!(sandbox.mountinfo(), before);
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn a_device_number_that_would_take_too_many_others_is_refused() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    let mut image = EMPTY.replace("superblocks: []\nmounts: []\n...\n", "superblocks:\n");
    let mount_point = sandbox.mkdir("m")?;
    writeln!(
        image,
        "- {{device: '0:900000', options: {{type: direct, timeout: 1, minproto: 5, maxproto: 5}}, state: catatonic}}\n\
         mounts:\n\
         - {{mount_point: {}, device: '0:900000', root: /, source: x, options: rw, propagation: private}}\n\
         ...",
        mount_point.display()
    )?;
    let refused = Tool::restore().target(&sandbox).stdin(image).run().assert_code(1);
    refused.assert_stderr_contains("0:900000").assert_stderr_contains("cannot be made in reasonable time");
    sandbox.close()
}

#[test]
fn mounts_that_got_any_device_number_are_verified_by_their_place() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().direct("d").indirect("i").arg("--identity=none");
    let mut master = sandbox.master(options)?;
    sandbox.touch(sandbox.path("d"))?;
    sandbox.touch(sandbox.path("i/key"))?;
    let image = dump(&sandbox);
    let restore = Tool::restore().target(&sandbox).args(["--replace", "--identity=none", "--connect=fixup"]);
    let (restored, fixed) = restore.stdin(image).pipe(Tool::fixup());
    restored.assert_success().assert_stderr_contains("create 2");
    fixed.assert_success();
    sandbox.touch(sandbox.path("i/other"))?;
    assert!(sandbox.read(sandbox.path("d/served-by"))?.ends_with(" 1\n"), "the content was moved over");
    master.assert_undisturbed();
    sandbox.close()
}
