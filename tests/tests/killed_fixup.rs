//! `autofs-fixup --pid` killed at every system call (SIGKILL): the master has what it had, what is connected is served,
//! and the same command run again ends in the finished state.
//!
//! Without more, a sample of the points is tried; `scripts/sweep` tries all of them.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use autofs_cr_common::model::Pid;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::machine::{Automount, Machine};
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{
    dump, lasting, make_catatonic, read_image, stage_text, start_restore,
};
use autofs_cr_tests::sandbox::traces::Traces;
use autofs_cr_tests::sandbox::{End, Inside, Master, MasterOptions, Sandbox, Tool};
use autofs_cr_tests::stepper::{Family, Point, Step, step, sweep};

/// Points of each sweep that are tried without more.
const SAMPLE: u64 = 3;

/// How a master is looked at before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// All of it.
    Registers,
    /// Without its registers: it waits in epoll_wait(2), which who looks at them would end.
    FromOutside,
}

/// Where a master runs.
enum World {
    Sandbox(Sandbox, Master),
    /// systemd.
    Machine(Machine),
}

/// A master, and the restore that waits for its fixup.
struct Scene {
    world: World,
    image: String,
    /// Write ends of its pipes: one that keeps none itself gives its mounts up when the last is closed.
    _pipes: Vec<File>,
    /// Its mounts are cut off before.
    adopts: bool,
    arguments: &'static str,
    look: Look,
    idle: Vec<Idle>,
}

/// A mount with nothing on it.
struct Idle {
    mount_point: String,
    /// What is touched to have something there.
    touched: String,
    /// The unit of systemd for that.
    unit: String,
}

impl Scene {
    fn of(options: MasterOptions) -> Result<Self> {
        let sandbox = Sandbox::builder().fresh_root().shm().build()?;
        let master = sandbox.master(options)?;
        let path = |name: &str| sandbox.path(name).display().to_string();
        let idle = [("a", "a"), ("i", "i/new")].map(|(mount_point, touched)| Idle {
            mount_point: path(mount_point),
            touched: path(touched),
            unit: String::new(),
        });
        let image = dump(&sandbox);
        let pipes = write_ends(&image, master.pid())?;
        let world = World::Sandbox(sandbox, master);
        let look = Look::Registers;
        Ok(Self { world, image, _pipes: pipes, adopts: true, arguments: "", look, idle: idle.into() })
    }

    /// systemd as PID 1, with two automount units of which one was asked for.
    fn of_systemd() -> Result<Self> {
        let machine = Machine::boot()?;
        machine.write("/srv/a/file", "a")?;
        let both = Automount::start_all(&machine, ["/data/idle", "/data/mounted"], "/srv/a", 0)?;
        machine.touch("/data/mounted/file")?;
        both.iter().for_each(|one| machine.wait_for_property(&one.unit("automount"), "Result", "success"));
        let image = dump(&machine);
        let pipes = write_ends(&image, machine.pid())?;
        let idle = vec![Idle {
            mount_point: "/data/idle".to_owned(),
            touched: "/data/idle/file".to_owned(),
            unit: both[0].unit("mount"),
        }];
        let world = World::Machine(machine);
        let look = Look::FromOutside;
        Ok(Self { world, image, _pipes: pipes, adopts: true, arguments: "", look, idle })
    }

    fn inside(&self) -> &Inside {
        match &self.world {
            World::Sandbox(sandbox, _) => sandbox,
            World::Machine(machine) => machine,
        }
    }

    fn master(&self) -> Pid {
        match &self.world {
            World::Sandbox(_, master) => master.pid(),
            World::Machine(machine) => machine.pid(),
        }
    }

    fn look(&self) -> Result<Traces> {
        match (self.look, &self.world) {
            (Look::Registers, _) => Traces::with_registers(self.master()),
            (Look::FromOutside, World::Sandbox(..)) => Traces::at_rest(self.master()),
            (Look::FromOutside, World::Machine(_)) => Ok(Traces::at_rest(self.master())?.of_a_busy_one()),
        }
    }

    /// The numbers of the descriptors that a master has on mounts which are replaced.
    fn replaced_control_fds(&self) -> Vec<i32> {
        let superblocks = read_image(&self.image).superblocks.into_iter().filter(|_| !self.adopts);
        superblocks.flat_map(|superblock| superblock.control_fds).map(|end| end.fd).collect()
    }

    /// Kills a fixup at a point, and runs it again.
    fn round(&mut self, point: Point, kill: fn(&Family)) -> Result<Step> {
        if self.adopts {
            make_catatonic(self.inside(), &self.image);
        }
        let mut before = self.look()?;
        let (restore, stage) = start_restore(self.inside(), &self.image, self.arguments)?;
        let pid = self.master().to_string();
        let fixup = || Tool::fixup().arg("--pid").arg(&pid).stdin(stage_text(&stage));
        let mut first = fixup().held().spawn();
        let mut call = 0;
        let stepped = step(&mut first, point, |family| {
            call = family.call;
            kill(family);
        })?;
        let mut told = vec![first.finish()];
        if let Step::Ended(_) = stepped {
            ensure!(told[0].end == Some(End::Exit(0)), "not killed: {told:?}");
        } else {
            before =
                self.goes_on(&before).with_context(|| format!("after the kill at call {call}: {told:?}"))?;
            told.push(fixup().run());
        }
        let done = restore.finish();
        let said = format!("call {call}; {done:?}; fixups {told:?}\n{}", self.inside().mountinfo());
        ensure!(done.end == Some(End::Exit(0)), "{said}");
        let unchanged = before.assert_left_but_for(self.master(), &self.replaced_control_fds());
        unchanged.and_then(|()| self.is_idle_again()).and_then(|()| self.is_finished()).context(said)?;
        self.is_served(|_| true)?;
        self.is_idle_again()?;
        self.is_undisturbed()?;
        Ok(stepped)
    }

    /// The master runs with all that it had, and what is connected is served. What it has after that.
    fn goes_on(&mut self, before: &Traces) -> Result<Traces> {
        before.assert_left_but_for(self.master(), &self.replaced_control_fds())?;
        if self.adopts {
            self.is_served(|line| !line.contains("fd=-1,"))?;
        }
        self.look()
    }

    /// As in the image, and nothing is left.
    fn is_finished(&self) -> Result<()> {
        let now = dump(self.inside());
        ensure!(lasting(&now) == lasting(&self.image), "not as in the image: {now}\nbut: {}", self.image);
        let left = self.inside().left_behind();
        ensure!(left.is_empty(), "{left:?} is left");
        Ok(())
    }

    /// What is asked for comes, where the line of the mount is one of those.
    fn is_served(&self, which: impl Fn(&str) -> bool) -> Result<()> {
        for Idle { mount_point, touched, .. } in &self.idle {
            let line = self
                .inside()
                .autofs_lines()
                .into_iter()
                .find(|line| line.contains(&format!(" {mount_point} ")));
            if which(&line.context("it is not mounted")?) {
                self.inside().touch(touched).with_context(|| format!("touch {touched}"))?;
            }
        }
        Ok(())
    }

    /// What came goes again. Not while restore has a mount open, which keeps it busy.
    fn is_idle_again(&mut self) -> Result<()> {
        let mounts = self.inside().mountinfo();
        for Idle { mount_point, touched, unit } in &self.idle {
            let is_there = |line: &str| line.contains(" content ") && line.contains(&format!(" {touched} "));
            match &mut self.world {
                World::Sandbox(_, master) if mounts.lines().any(is_there) => {
                    master.expire(mount_point.as_ref())?.with_context(|| format!("expire {touched}"))?;
                }
                World::Sandbox(..) => {}
                World::Machine(machine) => {
                    machine.systemctl(["stop", unit]).assert_success();
                    // Also the count of starts, of which it takes five in ten seconds.
                    machine.systemctl(["reset-failed", unit]).assert_success();
                }
            }
        }
        Ok(())
    }

    fn is_undisturbed(&mut self) -> Result<()> {
        let World::Sandbox(_, master) = &mut self.world else { return Ok(()) };
        let seen = master.report()?.counters;
        // A fixup that is killed may end a call of epoll_wait(2): see `autofs_fixup::remote`.
        let interrupted = if self.look == Look::FromOutside { 0 } else { seen.interrupted };
        let bad = seen.hangups + interrupted + seen.ignored + seen.errors;
        ensure!(bad == 0, "the master was disturbed: {seen:?}");
        Ok(())
    }
}

fn write_ends(image: &str, master: Pid) -> Result<Vec<File>> {
    let pipes = read_image(image).masters.into_iter().flat_map(|master| master.pipes);
    let numbers = pipes.filter_map(|pipe| Some(pipe.read_end?.fd));
    let open = |fd: i32| File::options().write(true).open(format!("/proc/{master}/fd/{fd}"));
    numbers.map(|fd| open(fd).context("open a write end")).collect()
}

/// Kills all of the fixup, and then its first process alone.
fn sweep_both(name: &str, scene: impl Fn() -> Result<Scene>) -> Result<()> {
    let all = sweep(&format!("fixup, {name}, Family"), SAMPLE, &scene, |scene, point| {
        scene.round(point, Family::kill)
    });
    let tool = sweep(&format!("fixup, {name}, Tool"), SAMPLE, &scene, |scene, point| {
        scene.round(point, Family::kill_tool)
    });
    all.and(tool)
}

fn two() -> MasterOptions {
    MasterOptions::new().direct("a").indirect("i").arg("--identity=device")
}

#[test]
fn a_fixup_of_a_master_with_one_thread() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_both("one thread", || Scene::of(two().arg("--control-fds")))
}

#[test]
fn a_fixup_of_a_master_with_many_threads() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_both("many threads", || Scene::of(two().args(["--wait=read", "--pipes=each"])))
}

#[test]
fn a_fixup_of_a_master_that_waits_in_epoll() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_both("epoll", || {
        let scene = Scene::of(two().like_systemd())?;
        Ok(Scene { look: Look::FromOutside, ..scene })
    })
}

#[test]
fn a_fixup_that_lets_go_of_what_is_replaced() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_both("replace", || {
        let scene = Scene::of(two().arg("--control-fds"))?;
        Ok(Scene { adopts: false, arguments: "--replace --connect=fixup", ..scene })
    })
}

#[test]
fn a_fixup_of_systemd() -> Result<()> {
    require!(Root, Autofs, PipeInode, Ptrace, Machine);
    let _alone = alone();
    sweep_both("systemd", Scene::of_systemd)
}
