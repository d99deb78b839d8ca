//! Least power: which capabilities each tool needs, and what it says where one is missing.

use anyhow::Result;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::dump;
use autofs_cr_tests::sandbox::{MasterOptions, Sandbox, program};

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
