//! The other side dies at every system call of a tool: a master, or who alone reads its pipe. The tool ends in success
//! or with the reason, soon, and nothing half done is left.
//!
//! Without more, a sample of the points is tried; `scripts/sweep` tries all of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::delegated::Delegated;
use autofs_cr_tests::sandbox::images::{dump, make_catatonic};
use autofs_cr_tests::sandbox::{End, Finished, Master, MasterOptions, Running, Sandbox, Tool, program};
use autofs_cr_tests::stepper::{Point, Step, step, sweep};
use nix::sys::signal::Signal;

/// Points of each sweep that are tried without more.
const SAMPLE: u64 = 4;

/// The timeout of the tools, which no death may make them wait for.
const TIMEOUT: &str = "--timeout=25";

/// Well before it.
const SOON: Duration = Duration::from_secs(12);

/// Which tool is held at a point.
#[derive(Clone, Copy, Debug)]
enum Held {
    Restore,
    Fixup,
}

/// What is run, and with whom.
#[derive(Clone)]
struct Plan {
    master: MasterOptions,
    /// Touched before, so that content is on them.
    content: &'static [&'static str],
    /// Its mounts are made catatonic before.
    cut_off: bool,
    restore: &'static [&'static str],
    /// `fixup --pid` of that master, instead of one for all.
    by_pid: bool,
    held: Held,
}

/// A sandbox for one point.
struct Scene {
    sandbox: Sandbox,
    master: Option<Master>,
    /// The process group of a mount that the master only reads for.
    _group: Option<Running>,
    image: String,
    content: BTreeSet<(String, String)>,
    catatonic: BTreeSet<String>,
}

impl Scene {
    fn new(plan: &Plan) -> Result<Self> {
        let sandbox = Sandbox::builder().fresh_root().shm().build()?;
        let master = sandbox.master(plan.master.clone())?;
        for path in plan.content {
            sandbox.touch(sandbox.path(path))?;
        }
        let image = dump(&sandbox);
        if plan.cut_off {
            make_catatonic(&sandbox, &image);
        }
        Ok(Self::of(sandbox, master, None, image))
    }

    /// The master only reads the pipe of a mount of another process group, with content on it.
    fn delegated() -> Result<Self> {
        let sandbox = Sandbox::builder().fresh_root().shm().build()?;
        let mut master = sandbox.master(like_systemd())?;
        let Delegated { place, group } = Delegated::start(&sandbox, &mut master, true)?;
        let image = Tool::dump().target(&sandbox).arg(place).run().assert_success().stdout;
        Ok(Self::of(sandbox, master, Some(group), image))
    }

    fn of(sandbox: Sandbox, master: Master, group: Option<Running>, image: String) -> Self {
        let (content, catatonic) = (BTreeSet::new(), BTreeSet::new());
        let mut scene = Self { sandbox, master: Some(master), _group: group, image, content, catatonic };
        (scene.content, scene.catatonic) = (scene.content_now(), scene.catatonic_now());
        scene
    }

    /// The ids and places of what the master mounted, and of what restore may leave.
    fn content_now(&self) -> BTreeSet<(String, String)> {
        let mounts = self.sandbox.mountinfo();
        let lines = mounts.lines().filter(|line| line.contains(" content "));
        let field = |line: &str, at| line.split(' ').nth(at).map(str::to_owned);
        lines.filter_map(|line| Some((field(line, 0)?, field(line, 4)?))).collect()
    }

    /// Where mounts are catatonic.
    fn catatonic_now(&self) -> BTreeSet<String> {
        let lines = self.sandbox.autofs_lines().into_iter();
        let catatonic = lines.filter(|line| line.contains("fd=-1,"));
        catatonic.filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
    }

    /// Runs both tools, and kills the master at a point of one.
    fn round(&mut self, plan: &Plan, point: Point) -> Result<Step> {
        let tool = |name: &str| self.sandbox.command(program(name)).arg(TIMEOUT);
        let (restore, mut fixup) = (tool("autofs-restore").args(plan.restore), tool("autofs-fixup"));
        if let (true, Some(master)) = (plan.by_pid, &self.master) {
            fixup = fixup.arg("--pid").arg(master.pid_inside().to_string());
        }
        let restore = restore.stdin(&*self.image);
        let (mut restore, mut fixup) = match plan.held {
            Held::Restore => restore.held().spawn_pipe(fixup),
            Held::Fixup => restore.spawn_pipe(fixup.held()),
        };
        let held = match plan.held {
            Held::Restore => &mut restore,
            Held::Fixup => &mut fixup,
        };
        let (mut call, mut master) = (0, self.master.take());
        let mut since = Instant::now();
        let stepped = step(held, point, |family| {
            call = family.call;
            if let Some(master) = &mut master {
                master.process().kill_as_traced().expect("kill the master");
            }
            since = Instant::now();
        })?;
        let fixup = fixup.finish();
        if [NOT_THERE_YET, NOT_THERE].iter().any(|text| fixup.stderr.contains(text)) {
            // Restore waits for another one, as it should, or has seen the end of this one, and ends.
            let _ = restore.process().signal(Signal::SIGTERM);
        }
        let (ends, took) = ((restore.finish(), fixup), since.elapsed());
        let said = || format!("call {call}, {took:?}: {}\n{}", told(&ends), self.sandbox.mountinfo());
        match stepped {
            Step::Ended(_) => {
                ensure!(ends.0.end == Some(End::Exit(0)) && ends.1.end == Some(End::Exit(0)), "{}", said());
            }
            // Its end is seen by all when nobody traces it any more.
            Step::Reached => self.check(&ends, took).map_err(|error| anyhow!("{error:#}: {}", said()))?,
        }
        if matches!(stepped, Step::Ended(_)) {
            self.master = master;
        }
        Ok(stepped)
    }

    /// What holds after the master's death.
    fn check(&self, (restore, fixup): &(Finished, Finished), took: Duration) -> Result<()> {
        ensure!(took < SOON, "it took {took:?}");
        for (end, name) in [(restore, "restore"), (fixup, "fixup")] {
            let is_clear = match end.end {
                Some(End::Exit(0)) => true,
                Some(End::Exit(1 | 3)) => REASONS.iter().any(|reason| end.stderr.contains(reason)),
                _ => false,
            };
            ensure!(is_clear, "{name} does not tell why");
        }
        ensure!(
            self.content_now() == self.content,
            "content is {:?} and was {:?}",
            self.content_now(),
            self.content
        );
        for path in self.catatonic_now().difference(&self.catatonic) {
            let is_named = restore.stderr.contains(path) || fixup.stderr.contains(path);
            ensure!(is_named, "{path} is catatonic and not named");
        }
        let left = self.sandbox.left_behind();
        ensure!(left.is_empty(), "{left:?} is left");
        self.sandbox.assert_nothing_blocked();
        Ok(())
    }
}

/// It was gone before restore looked at it: then another one is to be started.
const NOT_THERE_YET: &str = "is not there yet";

/// The same, where it was asked for by its pid.
const NOT_THERE: &str = "does not exist, or is a thread only";

/// What messages say where a master has died.
const REASONS: &[&str] = &[
    "has ended",
    NOT_THERE,
    NOT_THERE_YET,
    "ended by signal 15",
    "its process group 2 is not there",
    "can only be made anew while both live",
    // The other tool says why.
    "the restore that made this segment has failed",
    "did the stage before fail",
];

fn told((restore, fixup): &(Finished, Finished)) -> String {
    format!(
        "restore {:?}: {}\nfixup {:?}: {}",
        restore.end,
        restore.stderr.trim(),
        fixup.end,
        fixup.stderr.trim()
    )
}

/// Kills the master at one point after the other, each in a world of its own.
fn sweep_deaths(name: &str, plan: &Plan) -> Result<()> {
    sweep(name, SAMPLE, || Ok(()), |(), point| Scene::new(plan)?.round(plan, point))
}

#[test]
fn the_only_reader_of_a_delegated_mount_dies_while_it_is_replaced() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let plan = Plan {
        master: like_systemd(),
        content: &[],
        cut_off: false,
        restore: &["--replace"],
        by_pid: false,
        held: Held::Restore,
    };
    sweep("delegated, restore", SAMPLE, || Ok(()), |(), point| Scene::delegated()?.round(&plan, point))
}

fn like_systemd() -> MasterOptions {
    MasterOptions::new().direct("a").direct("b").like_systemd()
}

#[test]
fn the_master_dies_while_its_mounts_are_adopted() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let plan = Plan {
        master: like_systemd(),
        content: &["a"],
        cut_off: true,
        restore: &[],
        by_pid: false,
        held: Held::Restore,
    };
    sweep_deaths("adopt, restore", &plan)?;
    sweep_deaths("adopt, fixup", &Plan { held: Held::Fixup, ..plan })
}

#[test]
fn the_master_dies_while_its_mounts_are_replaced_at_once() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let plan = Plan {
        master: like_systemd(),
        content: &["a"],
        cut_off: false,
        restore: &["--replace"],
        by_pid: false,
        held: Held::Restore,
    };
    sweep_deaths("connect, restore", &plan)
}

#[test]
fn the_master_dies_while_its_mounts_are_replaced_by_way_of_the_fixup() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let plan = Plan {
        master: MasterOptions::new().direct("a").indirect("i").args(["--identity=device", "--control-fds"]),
        content: &["a", "i/key"],
        cut_off: false,
        restore: &["--replace"],
        by_pid: false,
        held: Held::Restore,
    };
    sweep_deaths("held, restore", &plan)?;
    sweep_deaths("held, fixup", &Plan { held: Held::Fixup, ..plan })
}

#[test]
fn the_master_dies_while_it_is_connected_by_its_pid() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let plan = Plan {
        master: like_systemd(),
        content: &["a"],
        cut_off: true,
        restore: &[],
        by_pid: true,
        held: Held::Fixup,
    };
    sweep_deaths("fixup --pid", &plan)
}
