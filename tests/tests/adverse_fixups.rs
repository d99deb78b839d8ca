//! Two fixups of the same masters at once: the second waits for its turn, and goes on from wherever the first is killed.
//!
//! Without more, a sample of the points is tried; `scripts/sweep` tries all of them.

use std::fs;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use autofs_cr_common::doc::Stage;
use autofs_cr_common::model::Pid;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, lasting, make_catatonic, stage_text, start_restore};
use autofs_cr_tests::sandbox::{
    DEADLINE, End, Finished, Master, MasterOptions, Running, Sandbox, TestCommand, Tool,
};
use autofs_cr_tests::stepper::{Point, Step, step, sweep};

/// Points of each sweep that are tried without more.
const SAMPLE: u64 = 4;

/// A master whose mounts are restored once more in each round.
struct Scene {
    sandbox: Sandbox,
    master: Master,
    image: String,
    /// Its mounts are made catatonic before each round.
    cut_off: bool,
}

impl Scene {
    /// Its mounts are there and not connected.
    fn adopted() -> Result<Self> {
        // It keeps a write end, so it sees no hang-up.
        let master = MasterOptions::new().direct("a").direct("b").arg("--identity=device");
        Self::new(master.args(["--pipes=each", "--write-end=keep"]), &[], true)
    }

    /// The master has to let go of its mounts before new ones can be made.
    fn replaced() -> Result<Self> {
        let master = MasterOptions::new().direct("a").indirect("i").like_automount();
        Self::new(master.arg("--identity=device"), &["a", "i/key"], false)
    }

    fn new(master: MasterOptions, content: &[&str], cut_off: bool) -> Result<Self> {
        let sandbox = Sandbox::builder().fresh_root().build()?;
        let master = sandbox.master(master)?;
        content.iter().try_for_each(|path| sandbox.touch(sandbox.path(path)))?;
        let image = dump(&sandbox);
        Ok(Self { sandbox, master, image, cut_off })
    }

    fn restore(&self) -> Result<(Running, Stage)> {
        if self.cut_off {
            make_catatonic(&self.sandbox, &self.image);
        }
        start_restore(&self.sandbox, &self.image, "--replace --timeout=20")
    }

    /// Kills the first of two fixups at a point, when the second waits for it or has ended.
    fn round(&mut self, point: Point) -> Result<Step> {
        let (restore, stage) = self.restore()?;
        let mut first = fixup(&stage).held().spawn();
        let (mut call, mut second) = (0, None);
        let stepped = step(&mut first, point, |family| {
            call = family.call;
            let mut running = fixup(&stage).spawn();
            wait_until_it_waits(&mut running);
            family.kill();
            second = Some(running);
        })?;
        let ends: Vec<Finished> =
            [Some(first), second, Some(restore)].into_iter().flatten().map(Running::finish).collect();
        let killed = usize::from(matches!(stepped, Step::Reached));
        let succeeded = ends[killed..].iter().all(has_succeeded);
        let told = || anyhow!("call {call}: {ends:#?}\n{}", self.sandbox.mountinfo());
        ensure!(succeeded, "{:#}", told());
        ensure!(lasting(&dump(&self.sandbox)) == lasting(&self.image), "it is otherwise: {:#}", told());
        self.sandbox.assert_nothing_blocked();
        self.master.assert_undisturbed();
        Ok(stepped)
    }
}

/// Whether it has, or came when there was nothing left to do: what restore says of the whole tells whether that is so.
fn has_succeeded(finished: &Finished) -> bool {
    let came_late = ["the segment has ended", "this segment has finished"];
    match finished.end {
        Some(End::Exit(1)) => came_late.iter().any(|text| finished.stderr.contains(text)),
        end => end == Some(End::Exit(0)),
    }
}

fn fixup(stage: &Stage) -> TestCommand {
    Tool::fixup().stdin(stage_text(stage))
}

/// Waits until a fixup has ended, or its child waits for somebody else.
fn wait_until_it_waits(fixup: &mut Running) {
    let deadline = Instant::now() + DEADLINE;
    while fixup.process().is_running() && !children(fixup.process().pid()).iter().any(waits_for_a_change) {
        assert!(Instant::now() < deadline, "the second fixup does not end");
        std::thread::yield_now();
    }
}

fn children(pid: Pid) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Whether it waits for a change in the segment (syscall 202: futex).
fn waits_for_a_change(child: &String) -> bool {
    fs::read_to_string(format!("/proc/{child}/syscall")).is_ok_and(|call| call.starts_with("202 "))
}

#[test]
fn two_fixups_at_once_both_end_in_success() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    for scene in [Scene::adopted, Scene::replaced] {
        let mut scene = scene()?;
        let (restore, stage) = scene.restore()?;
        let fixups: Vec<Running> = (0..3).map(|_| fixup(&stage).spawn()).collect();
        for fixup in fixups {
            let finished = fixup.finish();
            assert!(has_succeeded(&finished), "{finished}");
        }
        restore.finish().assert_success();
        assert_eq!(lasting(&dump(&scene.sandbox)), lasting(&scene.image));
        scene.master.assert_undisturbed();
        scene.sandbox.close()?;
    }
    Ok(())
}

#[test]
fn one_of_two_fixups_is_killed_while_mounts_are_adopted() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep("two fixups, adopt", SAMPLE, Scene::adopted, Scene::round)
}

#[test]
fn one_of_two_fixups_is_killed_while_mounts_are_replaced() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep("two fixups, held", SAMPLE, Scene::replaced, Scene::round)
}
