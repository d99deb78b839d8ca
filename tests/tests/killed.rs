//! restore and fixup killed at every system call (SIGKILL): what is there goes on, and the same command run again ends
//! in the finished state.
//!
//! Without more, a sample of the points is tried; `scripts/sweep` tries all of them.

use std::fs;

use anyhow::{Context, Result, ensure};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, lasting, make_catatonic};
use autofs_cr_tests::sandbox::{
    End, Finished, Master, MasterOptions, Running, Sandbox, TestCommand, program,
};
use autofs_cr_tests::stepper::{Family, Point, Step, step, sweep};

/// Points of each sweep that are tried without more.
const SAMPLE: u64 = 12;

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    /// restore and all that it started.
    Family,
    /// restore alone.
    Tool,
}

impl Kill {
    fn now(self, family: &Family) {
        match self {
            Self::Family => family.kill(),
            Self::Tool => family.kill_tool(),
        }
    }
}

/// A sandbox with masters, and what restore is run with.
struct Scene {
    sandbox: Sandbox,
    masters: Vec<Master>,
    image: String,
    arguments: Vec<&'static str>,
    /// A fixup is run beside it.
    with_fixup: bool,
    /// Brings it into the state before.
    reset: fn(&Scene) -> Result<()>,
    /// Paths whose content is mounted and must stay the same mount.
    content: Vec<(String, String)>,
    /// Paths that are touched at the end.
    touched: Vec<&'static str>,
}

impl Scene {
    fn new(masters: impl IntoIterator<Item = MasterOptions>) -> Result<Self> {
        let sandbox = Sandbox::builder().fresh_root().shm().build()?;
        let masters = masters.into_iter().map(|options| sandbox.master(options)).collect::<Result<_>>()?;
        let image = dump(&sandbox);
        Ok(Self {
            sandbox,
            masters,
            image,
            arguments: Vec::new(),
            with_fixup: false,
            reset: |_| Ok(()),
            content: Vec::new(),
            touched: Vec::new(),
        })
    }

    /// With content at these paths, which is in the image too.
    fn with_content(mut self, paths: &[&str]) -> Result<Self> {
        for path in paths {
            self.sandbox.touch(self.sandbox.path(path))?;
        }
        // Who touched goes on before the master has closed the descriptor that it answered by.
        for master in &mut self.masters {
            master.report()?;
        }
        self.image = dump(&self.sandbox);
        self.content = self.mounted_content();
        Ok(self)
    }

    /// In a mount that is shared: nothing can be taken away there from below its content.
    fn where_content_is_parked(self) -> Self {
        let mounts = self.sandbox.mountinfo();
        let autofs = mounts.lines().find(|line| line.contains(" - autofs ")).expect("there is one");
        let parent = autofs.split(' ').nth(1).expect("a parent");
        let parent = mounts.lines().find(|line| line.split(' ').next() == Some(parent)).expect("it is there");
        let parent = parent.split(' ').nth(4).expect("a mount point");
        self.sandbox.run(["mount", "--make-shared", parent]).assert_success();
        self
    }

    /// The ids and places of what is mounted by masters, or left by restore.
    fn mounted_content(&self) -> Vec<(String, String)> {
        let mounts = self.sandbox.mountinfo();
        let lines = mounts.lines().filter(|line| line.contains(" content "));
        let field = |line: &str, at| line.split(' ').nth(at).map(str::to_owned);
        lines.filter_map(|line| Some((field(line, 0)?, field(line, 4)?))).collect()
    }

    fn restore(&self) -> TestCommand {
        let restore = self.sandbox.command(program("autofs-restore"));
        restore.args(&self.arguments).arg("--timeout=20").stdin(&*self.image)
    }

    fn fixup(&self) -> TestCommand {
        self.sandbox.command(program("autofs-fixup"))
    }

    fn start(&self, restore: TestCommand) -> (Running, Option<Running>) {
        match self.with_fixup {
            true => {
                let (restore, fixup) = restore.spawn_pipe(self.fixup());
                (restore, Some(fixup))
            }
            false => (restore.spawn(), None),
        }
    }

    /// Kills a restore at a point, and runs it again.
    fn round(&mut self, point: Point, kill: Kill) -> Result<Step> {
        (self.reset)(self).context("reset")?;
        let (mut restore, fixup) = self.start(self.restore().held());
        let mut call = 0;
        let stepped = step(&mut restore, point, |family| {
            call = family.call;
            kill.now(family);
        })?;
        let killed = (restore.finish(), fixup.map(Running::finish));
        let said = format!("call {call}; {}", told(&killed));
        if let Step::Ended(_) = stepped {
            ensure!(killed.0.end == Some(End::Exit(0)), "not killed: {said}");
        } else {
            self.masters_go_on().with_context(|| format!("after the kill: {said}"))?;
            let (restore, fixup) = self.start(self.restore());
            let again = (restore.finish(), fixup.map(Running::finish));
            let succeeded = again.0.end == Some(End::Exit(0));
            ensure!(succeeded, "{said}; run again: {}\n{}", told(&again), self.sandbox.mountinfo());
        }
        self.is_finished().with_context(|| format!("{said}\n{}", self.sandbox.mountinfo()))?;
        Ok(stepped)
    }

    /// No master has noticed anything.
    fn masters_go_on(&mut self) -> Result<()> {
        for master in &mut self.masters {
            let seen = master.report()?.counters;
            let bad = seen.hangups + seen.interrupted + seen.ignored + seen.errors;
            ensure!(bad == 0, "the master was disturbed: {seen:?}");
            let status = fs::read_to_string(format!("/proc/{}/status", master.pid()))?;
            ensure!(status.contains("TracerPid:\t0\n"), "it is traced");
        }
        Ok(())
    }

    /// The finished state: as in the image, with nothing left of restore.
    fn is_finished(&mut self) -> Result<()> {
        self.masters_go_on()?;
        let now = dump(&self.sandbox);
        ensure!(lasting(&now) == lasting(&self.image), "not as in the image: {now}\nbut: {}", self.image);
        let content = self.mounted_content();
        ensure!(content == self.content, "content is {content:?} and was {:?}", self.content);
        let left = self.sandbox.left_behind();
        ensure!(left.is_empty(), "{left:?} is left");
        Ok(())
    }

    /// What is connected is served.
    fn is_served(&self) -> Result<()> {
        for path in &self.touched {
            self.sandbox.touch(self.sandbox.path(path)).with_context(|| format!("touch {path}"))?;
        }
        Ok(())
    }
}

fn told((restore, fixup): &(Finished, Option<Finished>)) -> String {
    let fixup = fixup.as_ref().map(|fixup| format!("; fixup {:?}: {}", fixup.end, fixup.stderr.trim()));
    format!("restore {:?}: {}{}", restore.end, restore.stderr.trim(), fixup.unwrap_or_default())
}

fn sweep_both(name: &str, scene: impl Fn() -> Result<Scene>) -> Result<()> {
    let mut failed = None;
    for kill in [Kill::Family, Kill::Tool] {
        let swept = sweep(&format!("{name}, {kill:?}"), SAMPLE, &scene, |scene, point| {
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

fn like_systemd() -> MasterOptions {
    MasterOptions::new().like_systemd().arg("--timeout=77")
}

fn unmount(scene: &Scene, paths: &[&str]) -> Result<()> {
    for path in paths {
        scene.sandbox.run(["umount", &scene.sandbox.path(path).to_string_lossy()]).assert_success();
    }
    Ok(())
}

#[test]
fn a_restore_that_keeps_everything() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("keep", || Scene::new([like_systemd().direct("a")]))
}

#[test]
fn a_restore_that_connects_at_free_places() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("connect", || {
        let mut scene = Scene::new([MasterOptions::new().direct("a").direct("b").arg("--identity=device")])?;
        scene.reset = |scene| unmount(scene, &["a", "b"]);
        scene.touched = vec!["a", "b"];
        Ok(scene)
    })
}

#[test]
fn a_restore_that_creates_at_free_places() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_both("create", || {
        let options =
            MasterOptions::new().direct("a").indirect("i").arg("--subdir=in").arg("--identity=device");
        let mut scene = Scene::new([options])?;
        scene.reset = |scene| unmount(scene, &["a", "i"]);
        scene.arguments = vec!["--connect=fixup"];
        scene.with_fixup = true;
        scene.touched = vec!["a", "i/in", "i/new"];
        Ok(scene)
    })
}

#[test]
fn a_restore_that_adopts() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_both("adopt", || {
        let mut scene = Scene::new([MasterOptions::new().direct("a").indirect("i").like_automount()])?;
        scene.reset = |scene| {
            make_catatonic(&scene.sandbox, &scene.image);
            Ok(())
        };
        scene.with_fixup = true;
        scene.touched = vec!["a", "i/new"];
        Ok(scene)
    })
}

#[test]
fn a_restore_that_replaces_idle_mounts() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("replace idle", || {
        let mut scene = Scene::new([like_systemd().direct("a").direct("b")])?;
        scene.arguments = vec!["--replace"];
        scene.touched = vec!["a", "b"];
        Ok(scene)
    })
}

#[test]
fn a_restore_that_replaces_mounts_with_content() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("replace with content", || {
        let mut scene = Scene::new([like_systemd().direct("a").direct("b")])?.with_content(&["a"])?;
        scene.arguments = vec!["--replace"];
        scene.touched = vec!["a", "b"];
        Ok(scene)
    })
}

#[test]
fn a_restore_that_replaces_mounts_with_content_that_has_to_be_parked() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    sweep_both("replace with parked content", || {
        let scene = Scene::new([like_systemd().direct("a").direct("b")])?.with_content(&["a"])?;
        let mut scene = scene.where_content_is_parked();
        scene.arguments = vec!["--replace"];
        scene.touched = vec!["a", "b"];
        Ok(scene)
    })
}

#[test]
fn a_restore_that_replaces_with_content_by_way_of_the_fixup() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_both("replace by fixup", || {
        let indirect = MasterOptions::new().indirect("i").arg("--subdir=in");
        let indirect = indirect.args(["--control-fds", "--identity=device"]);
        let scene = Scene::new([indirect, like_systemd().direct("a").direct("b")])?;
        let mut scene = scene.with_content(&["a", "i/key", "i/other"])?;
        scene.arguments = vec!["--replace", "--connect=fixup"];
        scene.with_fixup = true;
        scene.touched = vec!["a", "b", "i/new"];
        Ok(scene)
    })
}

#[test]
fn an_unfinished_restore_is_named_by_inspect_and_dump_and_its_image_finishes_it() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let scene = Scene::new([like_systemd().direct("a").direct("b")])?.with_content(&["a"])?;
    let mut scene = scene.where_content_is_parked();
    scene.arguments = vec!["--replace"];
    let place = kill_while_content_is_parked(&scene)?;
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
    let mut scene = Scene::new([like_systemd().direct("a").direct("b")])?.with_content(&["a"])?;
    scene.arguments = vec!["--replace"];
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

/// Kills restore when content is in its work place, and says where that is.
fn kill_while_content_is_parked(scene: &Scene) -> Result<String> {
    for number in (1..).step_by(8) {
        let mut restore = scene.restore().held().spawn();
        let stepped = step(&mut restore, Point::change(number), Family::kill)?;
        restore.finish();
        ensure!(matches!(stepped, Step::Reached), "it was never parked");
        let mounts = scene.sandbox.mountinfo();
        let parked =
            mounts.lines().find(|line| line.contains("/autofs-cr-parking") && line.contains(" content "));
        let place = parked.and_then(|line| line.split(' ').nth(4)?.rsplit_once('/'));
        if let Some((place, _)) = place {
            return Ok(place.to_owned());
        }
        // To its end, so that the next one begins anew.
        scene.restore().spawn().finish();
    }
    unreachable!("there is no end of numbers")
}
