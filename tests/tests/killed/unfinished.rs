//! What inspect and dump say of a restore that has not come to its end.

use anyhow::{Context, Result, ensure};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{End, TestCommand, program};
use autofs_cr_tests::stepper::{Family, Point, Step, step};

use crate::plans;
use crate::scene::kill_when;

#[test]
fn an_unfinished_restore_is_named_by_inspect_and_dump_and_its_image_finishes_it() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let mut scene = plans::replace_with_parked_content()?;
    let place = work_place(&kill_when(&scene, is_content_parked)?).context("no work place")?;
    let pid = scene.sandbox.pid().to_string();

    let check = TestCommand::new(program("autofs-inspect")).args(["--check", "-p", &pid]).spawn().finish();
    ensure!(check.end == Some(End::Exit(3)), "{check:?}");
    ensure!(check.stdout.starts_with(&format!("{place}: an autofs-restore was killed in ")), "{check:?}");
    let table = TestCommand::new(program("autofs-inspect")).args(["-p", &pid]).spawn().finish();
    ensure!(!table.stdout.contains("autofs-cr") && table.stderr.contains("was killed in "), "{table:?}");

    let refused = TestCommand::new(program("autofs-dump")).args(["-p", &pid]).spawn().finish();
    ensure!(refused.end == Some(End::Exit(1)) && refused.stdout.is_empty(), "{refused:?}");
    ensure!(refused.stderr.contains("would lack mounts"), "{refused:?}");

    let copy = refused.stderr.split(" -i ").nth(1).and_then(|rest| rest.split(' ').next());
    let copy = copy.with_context(|| refused.stderr.clone())?;
    let finish = TestCommand::new(program("autofs-restore"));
    let finished = finish.args(["-p", &pid, "-i", copy, "--replace"]).spawn().finish();
    ensure!(finished.end == Some(End::Exit(0)), "{finished:?}");
    scene.is_finished()
}

/// So many of the last calls are all tried.
const CLOSE: u64 = 40;

#[test]
fn a_restore_that_is_at_work_is_no_fault_until_its_end() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let mut scene = plans::replace_with_content()?;
    let pid = scene.sandbox.pid().to_string();
    let inspect =
        |option| TestCommand::new(program("autofs-inspect")).args(["-p", &pid, option]).spawn().finish();
    let mut seen = 0;
    let mut whole = scene.restore().held().spawn();
    let Step::Ended(last) = step(&mut whole, Point::change(u64::MAX), |_| ())? else {
        unreachable!("nobody makes so many calls")
    };
    whole.finish().assert_success();
    // Most of the points before are in its looks.
    for number in (1..last.saturating_sub(CLOSE)).step_by(20).chain(last.saturating_sub(CLOSE)..=last) {
        let mut told = String::new();
        let mut restore = scene.restore().held().spawn();
        let look = |_: &Family| told = inspect("--check").stdout + &inspect("-n").stderr;
        let _ = step(&mut restore, Point::change(number), look)?;
        restore.finish().assert_success();
        ensure!(!told.contains("was killed"), "at change {number}: {told}");
        seen += usize::from(told.contains("is at work in the mount namespace"));
    }
    ensure!(seen > 3, "seen at work {seen} times");
    scene.is_finished()
}

/// Where content is in the work place of a restore.
fn work_place(mounts: &str) -> Option<String> {
    let is_parked = |line: &&str| line.contains("/autofs-cr-parking") && line.contains(" content ");
    let (place, _) = mounts.lines().find(is_parked)?.split(' ').nth(4)?.rsplit_once('/')?;
    Some(place.to_owned())
}

fn is_content_parked(mounts: &str) -> bool {
    work_place(mounts).is_some()
}
