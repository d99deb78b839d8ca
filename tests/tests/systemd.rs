//! systemd as the master: PID 1 of a booted machine, with real automount units.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use anyhow::Result;
use autofs_cr_tests::machine::{Automount, Machine};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::Tool;
use autofs_cr_tests::sandbox::images::dump;

#[test]
fn every_automount_is_replaced_under_it_and_serves_on() -> Result<()> {
    require!(Root, Autofs, PipeInode, Machine);
    let machine = Machine::boot()?;
    machine.write("/srv/a/file", "content of a")?;
    let idle = Automount::start(&machine, "/data/idle", "/srv/a", 0)?;
    let mounted = Automount::start(&machine, "/data/mounted", "/srv/a", 0)?;
    assert_eq!(machine.read("/data/mounted/file")?, "content of a");
    let image = dump(&machine);

    let restore = Tool::restore().target(&machine).arg("--replace").stdin(image);
    let (restored, fixed) = restore.pipe(Tool::fixup());
    restored.assert_success().assert_stderr_contains("connect 2");
    fixed.assert_success().assert_stderr_contains("nothing to do");

    assert_eq!(idle.states(), ("waiting".into(), "dead".into()));
    assert_eq!(mounted.states().0, "running");
    assert_eq!(machine.read("/data/idle/file")?, "content of a");
    assert_eq!(idle.states(), ("running".into(), "mounted".into()));
    machine.assert_nothing_blocked();
    machine.assert_no_errors();
    machine.close()
}
