//! A restore that was killed is undone, and the undo is killed too.

use anyhow::Result;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::stepper::{Point, sweep};

use crate::plans;
use crate::scene::{Kill, Scene, changes};

/// Points of each sweep that are tried without more.
const SAMPLE: u64 = 4;

/// How many calls before its end a restore is killed whose undo is killed: most of its changes are among the last.
const BEFORE_THE_END: [u64; 3] = [20, 50, 90];

fn sweep_undo(name: &str, scene: fn() -> Result<Scene>) -> Result<()> {
    sweep(&format!("{name}, undone"), SAMPLE, scene, |scene, point| scene.round_undone(point, Kill::Family))
}

fn sweep_killed_undo(name: &str, scene: fn() -> Result<Scene>) -> Result<()> {
    let last = changes(&scene()?)?;
    for back in BEFORE_THE_END {
        let restore = Point::change(last.saturating_sub(back).max(1));
        sweep(&format!("{name}, undo killed, {back}"), 1, scene, |scene, point| {
            scene.round_undo_killed(restore, point)
        })?;
    }
    Ok(())
}

#[test]
fn undo_of_what_was_kept() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_undo("keep", plans::keep)
}

#[test]
fn undo_of_what_was_connected_at_free_places() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_undo("connect", plans::connect)?;
    sweep_killed_undo("connect", plans::connect)
}

#[test]
fn undo_of_what_was_created_at_free_places() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_undo("create", plans::create)
}

#[test]
fn undo_of_what_was_adopted() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_undo("adopt", plans::adopt)?;
    sweep_killed_undo("adopt", plans::adopt)
}

#[test]
fn undo_of_idle_mounts_that_were_replaced() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_undo("replace idle", plans::replace_idle)
}

#[test]
fn undo_of_mounts_with_content_that_were_replaced() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_undo("replace with content", plans::replace_with_content)?;
    sweep_killed_undo("replace with content", plans::replace_with_content)
}

#[test]
fn undo_of_mounts_with_content_that_had_to_be_parked() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_undo("replace with parked content", plans::replace_with_parked_content)
}

#[test]
fn undo_of_mounts_that_were_replaced_by_way_of_the_fixup() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_undo("replace by fixup", plans::replace_by_fixup)?;
    sweep_killed_undo("replace by fixup", plans::replace_by_fixup)
}

#[test]
fn undo_of_what_was_left_without_a_master() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_undo("leave", plans::leave)
}

#[test]
fn undo_of_what_was_replaced_without_a_master() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_undo("leave in place", plans::leave_in_place)
}
