//! The same command is run again.

use anyhow::Result;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::stepper::{Step, sweep};

use crate::plans;
use crate::scene::{Kill, Scene};

/// Points of each sweep that are tried without more.
const SAMPLE: u64 = 8;

fn sweep_both(name: &str, scene: fn() -> Result<Scene>) -> Result<()> {
    let mut failed = None;
    for kill in [Kill::Family, Kill::Tool] {
        let swept = sweep(&format!("{name}, {kill:?}"), SAMPLE, scene, |scene, point| {
            let step = scene.round(point, kill)?;
            if matches!(step, Step::Ended(_)) && point.number != u64::MAX {
                scene.is_served()?;
            }
            Ok(step)
        });
        failed = failed.or(swept.err());
    }
    failed.map_or(Ok(()), Err)
}

#[test]
fn a_restore_that_keeps_everything() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("keep", plans::keep)
}

#[test]
fn a_restore_that_connects_at_free_places() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("connect", plans::connect)
}

#[test]
fn a_restore_that_creates_at_free_places() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_both("create", plans::create)
}

#[test]
fn a_restore_that_adopts() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_both("adopt", plans::adopt)
}

#[test]
fn a_restore_that_replaces_idle_mounts() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("replace idle", plans::replace_idle)
}

#[test]
fn a_restore_that_replaces_mounts_with_content() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("replace with content", plans::replace_with_content)
}

#[test]
fn a_restore_that_replaces_mounts_with_content_that_has_to_be_parked() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("replace with parked content", plans::replace_with_parked_content)
}

#[test]
fn a_restore_that_replaces_with_content_by_way_of_the_fixup() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_both("replace by fixup", plans::replace_by_fixup)
}

#[test]
fn a_restore_that_leaves_mounts_without_a_master() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("leave", plans::leave)?;
    sweep_both("leave in place", plans::leave_in_place)
}
