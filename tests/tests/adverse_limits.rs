//! The tools with less than they need: of descriptors, of memory, of room in /dev/shm. Each does what it shall, or says
//! what it lacks with nothing changed.

use anyhow::Result;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, make_orphaned};
use autofs_cr_tests::sandbox::{End, Finished, Master, MasterOptions, Sandbox, TestCommand, Tool};

/// The lowest limit of descriptors with which a program is loaded at all.
const LOWEST: usize = 4;

/// With so many every tool does its work for a few mounts.
const ENOUGH: usize = 70;

/// Where it is tried no further.
const HIGHEST: usize = 90;

/// What a tool says that may have too few descriptors.
const TOO_FEW: &str = "RLIMIT_NOFILE";

/// A master with content on its mounts, and a thread that waits.
struct Scene {
    sandbox: Sandbox,
    master: Master,
    image: String,
    places: Vec<String>,
}

impl Scene {
    fn new() -> Result<Self> {
        let sandbox = Sandbox::builder().fresh_root().shm().build()?;
        let options = MasterOptions::new().direct("a").indirect("i").like_automount();
        let master = sandbox.master(options.arg("--identity=device"))?;
        sandbox.touch(sandbox.path("a"))?;
        sandbox.touch(sandbox.path("i/key"))?;
        let image = dump(&sandbox);
        let mut scene = Self { sandbox, master, image, places: Vec::new() };
        scene.places = scene.places_now();
        Ok(scene)
    }

    /// What is mounted where, by device.
    fn places_now(&self) -> Vec<String> {
        let mounts = self.sandbox.mountinfo();
        let fields = |line: &str| line.split(' ').skip(2).take(3).collect::<Vec<_>>().join(" ");
        let mut places: Vec<String> = mounts.lines().map(fields).collect();
        places.sort_unstable();
        places
    }

    /// All is connected, with its content, and the master has noticed nothing.
    #[track_caller]
    fn assert_whole(&mut self, why: &str) {
        assert_eq!(self.places_now(), self.places, "{why}");
        let lines = self.sandbox.autofs_lines();
        assert!(lines.iter().all(|line| !line.contains("fd=-1,")), "{why}: {lines:#?}");
        self.sandbox.assert_nothing_blocked();
        self.master.assert_undisturbed();
    }
}

/// Whether it succeeded; else it said what it lacks, and nothing more.
#[track_caller]
fn done(finished: &Finished, lacks: &[&str]) -> bool {
    match finished.end {
        Some(End::Exit(0)) => true,
        Some(End::Exit(1)) => {
            assert!(lacks.iter().any(|text| finished.stderr.contains(text)), "{finished}");
            assert_eq!(finished.stdout, "", "{finished}");
            false
        }
        _ => panic!("{finished}"),
    }
}

/// Runs a command with every limit of descriptors, which has to say the same as without, or that they are too few.
#[track_caller]
fn with_every_limit(command: impl Fn() -> TestCommand) {
    let expected = command().run().assert_success();
    let mut failed = 0;
    for limit in LOWEST..=HIGHEST {
        let finished = command().most_descriptors(limit).run();
        if !done(&finished, &[TOO_FEW]) {
            failed += 1;
            continue;
        }
        assert_eq!(finished.stdout, expected.stdout, "{limit}: {finished}");
        assert_eq!(finished.stderr, expected.stderr, "{limit}: {finished}");
    }
    assert!((1..HIGHEST - LOWEST).contains(&failed), "{failed} failed");
}

#[test]
fn what_is_there_is_told_whole_or_not_at_all_with_every_limit_of_descriptors() -> Result<()> {
    require!(Root, Autofs);
    // It takes device numbers that the others here free.
    let _alone = alone();
    let scene = Scene::new()?;
    with_every_limit(|| Tool::inspect().target(&scene.sandbox).args(["-f", "yaml"]));
    with_every_limit(|| Tool::dump().target(&scene.sandbox));
    scene.sandbox.close()
}

#[test]
fn who_waits_is_told_or_nothing_with_every_limit_of_descriptors() -> Result<()> {
    require!(Root, Autofs);
    // It takes device numbers that the others here free.
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let _hung = sandbox.master(MasterOptions::new().direct("hung").indirect("i").arg("--swallow"))?;
    let mut touches = ["hung", "i/key"].map(|path| sandbox.touch_in_background(sandbox.path(path)));
    for touch in &mut touches {
        touch.wait_until_blocked();
    }
    with_every_limit(|| Tool::inspect().target(&sandbox).args(["-f", "yaml"]));
    drop(touches);
    Ok(())
}

#[test]
fn mounts_are_replaced_or_left_alone_with_every_limit_of_descriptors() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let mut scene = Scene::new()?;
    let restore = || Tool::restore().target(&scene.sandbox).args(["--replace", "--timeout=20"]);
    let runs = (LOWEST..=HIGHEST).map(|limit| (limit, restore().most_descriptors(limit), Tool::fixup()));
    // Below that it is known to refuse, and restore waits for another one.
    let fixups = (ENOUGH..=HIGHEST).map(|limit| (limit, restore(), Tool::fixup().most_descriptors(limit)));
    let runs: Vec<_> = runs.chain(fixups).collect();
    let mut replaced = 0;
    for (limit, restore, fixup) in runs {
        let (restored, fixed) = restore.stdin(&*scene.image).pipe(fixup);
        match done(&restored, &[TOO_FEW]) {
            true => replaced += 1,
            false => assert!(limit < ENOUGH, "{limit}: {restored}{fixed}"),
        }
        scene.assert_whole(&format!("{limit}: {restored}{fixed}"));
    }
    assert!(replaced > HIGHEST - ENOUGH);
    scene.sandbox.close()
}

#[test]
fn mounts_are_freed_or_left_alone_with_every_limit_of_descriptors() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let scene = Scene::new()?;
    let (sandbox, image) = (scene.sandbox, scene.image);
    scene.master.kill()?;
    for limit in LOWEST..=HIGHEST {
        make_orphaned(&sandbox, &image);
        let before = sandbox.mountinfo();
        let freed = Tool::fixup().arg("--free").target(&sandbox).most_descriptors(limit).run();
        match done(&freed, &[TOO_FEW]) {
            true => assert!(sandbox.autofs_lines().iter().all(|line| line.contains("fd=-1,")), "{freed}"),
            false => assert_eq!(sandbox.mountinfo(), before, "{freed}"),
        }
    }
    sandbox.close()
}

#[test]
fn mounts_are_replaced_or_left_alone_with_every_limit_of_descriptors_of_the_master() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let mut scene = Scene::new()?;
    let restore = || Tool::restore().target(&scene.sandbox).args(["--replace", "--timeout=20"]);
    // It has eight, and the engine takes up to five more.
    let limits: Vec<_> = (6..16).map(|limit| (limit, restore())).collect();
    let mut replaced = 0;
    for (limit, restore) in limits {
        let pid = scene.master.pid().to_string();
        TestCommand::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={limit}:")])
            .run()
            .assert_success();
        let (restored, fixed) = restore.stdin(&*scene.image).pipe(Tool::fixup());
        match done(&restored, &["Too many open files"]) {
            true => replaced += 1,
            false => drop(fixed.assert_stderr_contains("under its limit (RLIMIT_NOFILE)")),
        }
        scene.assert_whole(&limit.to_string());
    }
    assert!((1..10).contains(&replaced), "{replaced}");
    scene.sandbox.close()
}
