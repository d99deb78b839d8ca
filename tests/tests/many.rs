//! Many masters, and what a fixup tells of how long it stopped each.

use anyhow::{Context, Result};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::dump;
use autofs_cr_tests::sandbox::{Master, MasterOptions, Sandbox, Tool};

/// More than work at a time, so that they are looked at in several rounds.
const MASTERS: usize = 40;

fn masters(sandbox: &Sandbox, count: usize, each: usize) -> Result<Vec<Master>> {
    let options = |number| {
        let place = sandbox.path(format!("many/{number:03}"));
        MasterOptions::new().args(["--identity=device", "--bulk"]).arg(place).arg(each.to_string())
    };
    (0..count).map(|number| sandbox.master(options(number))).collect()
}

/// The number before a word in a text.
fn number_before(text: &str, word: &str) -> Option<f64> {
    text.split_once(word)?.0.rsplit(' ').next()?.parse().ok()
}

#[test]
fn many_masters_are_connected_from_a_few_looks_at_the_mounts() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut all = masters(&sandbox, MASTERS, 3)?;
    let image = dump(&sandbox);
    let restore = Tool::restore().target(&sandbox).args(["--replace", "--connect=fixup"]).stdin(image);
    let (restored, fixed) = restore.pipe(Tool::fixup().arg("-v"));
    restored.assert_success();
    let fixed = fixed.assert_success().assert_stderr_contains("connected 120 mounts of 40 masters");
    assert_eq!(fixed.stderr.matches(": stopped for ").count(), MASTERS, "{}", fixed.stderr);
    for (number, master) in all.iter_mut().enumerate() {
        sandbox.touch(sandbox.path(format!("many/{number:03}/000002")))?;
        master.assert_undisturbed();
    }
    sandbox.close()
}

/// Those that wait for a look at the mounts have a channel each.
#[test]
fn more_masters_than_descriptors_are_connected() -> Result<()> {
    const LIMIT: usize = 80;
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut all = masters(&sandbox, LIMIT + 6, 1)?;
    let image = dump(&sandbox);
    let restore = Tool::restore().target(&sandbox).args(["--replace", "--connect=fixup"]).stdin(image);
    let (restored, fixed) = restore.pipe(Tool::fixup().most_descriptors(LIMIT));
    restored.assert_success();
    fixed.assert_success();
    all.iter_mut().for_each(Master::assert_undisturbed);
    sandbox.close()
}

#[test]
fn a_fixup_tells_how_long_it_stopped_the_master() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut all = masters(&sandbox, 1, 600)?;
    let image = dump(&sandbox);
    let restore = Tool::restore().target(&sandbox).args(["--replace", "--connect=fixup"]).stdin(image);
    let (restored, fixed) = restore.pipe(Tool::fixup().arg("-v"));
    restored.assert_success();
    let fixed = fixed.assert_success();
    let told = fixed.stderr.split_once(": stopped for ").context("nothing is told")?.1;
    let total = number_before(told, " ms in 1 stop,").with_context(|| told.to_owned())?;
    let longest = number_before(told.split_once("the longest ").context("no longest")?.1, " ms");
    assert_eq!(Some(total), longest, "all were connected in one stop: {told}");
    assert!(total > 0.0);
    all.iter_mut().for_each(Master::assert_undisturbed);
    sandbox.close()
}
