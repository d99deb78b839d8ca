//! Least power: which capabilities each tool needs, and what it says where one is missing.

use anyhow::Result;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, lasting};
use autofs_cr_tests::sandbox::{MasterOptions, Sandbox, TestCommand, program};

#[test]
fn a_living_master_that_may_not_be_looked_into_is_not_taken_for_gone() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("a").like_systemd())?;
    let image = dump(&sandbox);
    let restore = sandbox.command("setpriv").arg("--bounding-set=-sys_ptrace").arg(program("autofs-restore"));
    let refused = restore.args(["-n", "--replace"]).stdin(image).run().assert_code(1);
    refused.assert_stderr_contains("may be master").assert_stderr_contains("CAP_SYS_PTRACE");
    master.assert_undisturbed();
    sandbox.close()
}

/// A tool as nobody, with these capabilities and no other.
fn with(capabilities: &[&str], tool: &str) -> TestCommand {
    let set: Vec<String> = capabilities.iter().map(|name| format!("+{name}")).collect();
    let set = if set.is_empty() { "-all".to_owned() } else { set.join(",") };
    let command = TestCommand::new("setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.arg(format!("--inh-caps={set}")).arg(format!("--ambient-caps={set}")).arg(program(tool))
}

/// All of a list but one.
fn but<'a>(list: &[&'a str], one: &str) -> Vec<&'a str> {
    list.iter().copied().filter(|name| *name != one).collect()
}

/// What takes a living master of root, and mounts that are made as root's.
const RESTORE: [&str; 5] = ["sys_admin", "sys_ptrace", "sys_chroot", "dac_override", "fowner"];

#[test]
fn the_whole_pipeline_works_with_capabilities_instead_of_root() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("a").indirect("i").like_systemd())?;
    sandbox.touch(sandbox.path("i/key")).expect("served before");
    let seen =
        with(&["sys_ptrace", "dac_read_search"], "autofs-inspect").target(&sandbox).run().assert_success();
    let seen = seen.assert_stdout_contains("connected");
    assert!(!seen.stdout.contains("unknown"), "{seen}");
    let looking = ["sys_admin", "sys_ptrace", "dac_read_search", "sys_chroot"];
    let image = with(&looking, "autofs-dump").target(&sandbox).run().assert_success().stdout;
    assert_eq!(lasting(&image), lasting(&dump(&sandbox)));
    let restore =
        with(&RESTORE, "autofs-restore").target(&sandbox).args(["--replace", "--timeout=10"]).stdin(&*image);
    let fixing = ["sys_admin", "sys_ptrace", "dac_read_search", "sys_chroot", "dac_override"];
    let (restored, fixed) = restore.pipe(with(&fixing, "autofs-fixup"));
    restored.assert_success();
    fixed.assert_success();
    // Also the owner of what was made is root.
    assert_eq!(lasting(&dump(&sandbox)), lasting(&image));
    let served = sandbox.read(sandbox.path("a/served-by")).expect("served after");
    assert!(served.starts_with(&master.pid_inside().to_string()));
    master.assert_undisturbed();
    sandbox.close()
}

#[test]
fn each_missing_capability_is_named_and_nothing_is_changed() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("a").indirect("i").like_systemd())?;
    sandbox.touch(sandbox.path("i/key")).expect("served before");
    let image = dump(&sandbox);
    // The modes inside need CAP_FOWNER only where they are others than those that mkdir gives.
    for missing in but(&RESTORE, "fowner") {
        let named = format!("CAP_{}", missing.to_uppercase());
        let restore = with(&but(&RESTORE, missing), "autofs-restore").target(&sandbox).stdin(&*image);
        let refused = restore.args(["--replace", "--timeout=5"]).run().assert_code(1);
        refused.assert_stderr_contains(&named);
        assert_eq!(lasting(&dump(&sandbox)), lasting(&image), "{missing}");
    }
    for missing in ["sys_admin", "sys_ptrace"] {
        let named = format!("CAP_{}", missing.to_uppercase());
        with(&but(&RESTORE, missing), "autofs-fixup").run().assert_code(1).assert_stderr_contains(&named);
    }
    for mode in [["--exec", "--", "true"], ["--free", "-n", "/nowhere"]] {
        let refused = with(&["sys_ptrace"], "autofs-fixup").args(mode).run().assert_code(1);
        refused.assert_stderr_contains("CAP_SYS_ADMIN (to use /dev/autofs");
    }
    master.assert_undisturbed();
    sandbox.close()
}
