//! How many system calls a restore makes for each mount: what it costs where there are thousands, and the same on every
//! machine. The benchmark has the times.

use anyhow::{Result, bail};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::dump;
use autofs_cr_tests::sandbox::{MasterOptions, Sandbox, Tool};
use autofs_cr_tests::stepper::{Point, Step, step};

/// How many mounts are restored, and how many in the other run.
const FEW: u64 = 50;
const MANY: u64 = 200;

/// The system calls of a restore with so many direct mounts; without arguments of one to where nothing is mounted.
fn calls(mounts: u64, arguments: &[&str]) -> Result<u64> {
    let sandbox = Sandbox::new()?;
    let options = MasterOptions::new().args(["--write-end=keep", "--identity=device", "--bulk"]);
    let mut master = sandbox.master(options.arg(sandbox.path("many")).arg(mounts.to_string()))?;
    let image = dump(&sandbox);
    if arguments.is_empty() {
        sandbox.run(["umount", "-a", "-t", "autofs"]).assert_success();
    }
    let mut restore = Tool::restore().target(&sandbox).args(arguments).stdin(image).held().spawn();
    let Step::Ended(calls) = step(&mut restore, Point::any(u64::MAX), |_| ())? else {
        bail!("it made more calls than there are numbers");
    };
    restore.finish().assert_success().assert_stderr_contains(&format!("connect {mounts}"));
    master.assert_undisturbed();
    sandbox.close()?;
    Ok(calls)
}

/// Those for each further mount. They vary by 2, as those do that are not for a mount: to read the mounts page by page, to have
/// memory, to wait for the mounter.
fn for_each_mount(arguments: &[&str]) -> Result<f64> {
    let (few, many) = (calls(FEW, arguments)?, calls(MANY, arguments)?);
    Ok((many as f64 - few as f64) / (MANY - FEW) as f64)
}

#[test]
fn a_mount_at_a_free_place_takes_few_system_calls_and_no_filler() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    // 18: fsopen, 6 fsconfig, create, fsmount, to open its root, the timeout, 2 to look at its number and at its place, move_mount,
    // its propagation, 3 close. A filler would be 9 more.
    let each = for_each_mount(&[])?;
    assert!(each < 24.0, "{each} system calls for each mount");
    Ok(())
}

#[test]
fn a_mount_that_is_replaced_takes_few_system_calls() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    // The same, and 11 to open the old one, to look at it by its name, and to unmount it in its directory.
    let each = for_each_mount(&["--replace"])?;
    assert!(each < 34.0, "{each} system calls for each mount");
    Ok(())
}
