//! Killed over and over: the next one goes on in the work place of the last.

use anyhow::{Result, ensure};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::stepper::{Point, Step};

use crate::plans;
use crate::scene::{Kill, Scene};

/// How many work places there are.
fn work_places(scene: &Scene) -> usize {
    let mounts = scene.sandbox.mountinfo();
    mounts.lines().filter(|line| line.contains(" / ") && line.contains(" autofs-cr-parking")).count()
}

#[test]
fn restores_that_are_killed_over_and_over_leave_one_work_place() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    for plan in [plans::connect, plans::replace_with_content] {
        let mut scene = plan()?;
        (scene.reset)(&scene)?;
        let mut number = 1;
        let mut most = 0;
        // Each goes a little further than the one before.
        while scene.kill(Point::change(number), Kill::Family)?.0 == Step::Reached {
            most = most.max(work_places(&scene));
            ensure!(most <= 1, "{}", scene.sandbox.mountinfo());
            number += 71;
        }
        ensure!(most == 1, "it was never killed at work");
        scene.is_finished()?;
    }
    Ok(())
}
