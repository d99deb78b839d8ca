//! A world with masters, and a restore that is killed in it.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use autofs_cr_tests::sandbox::images::{dump, lasting};
use autofs_cr_tests::sandbox::{
    End, Finished, Master, MasterOptions, Running, Sandbox, TestCommand, program,
};
use autofs_cr_tests::stepper::{Family, Point, Step, step};

/// Who is killed.
#[derive(Clone, Copy, Debug)]
pub enum Kill {
    /// restore and all that it started.
    Family,
    /// restore alone.
    Tool,
}

impl Kill {
    pub fn now(self, family: &Family) {
        match self {
            Self::Family => family.kill(),
            Self::Tool => family.kill_tool(),
        }
    }
}

/// A sandbox with masters, and what restore is run with.
pub struct Scene {
    pub sandbox: Sandbox,
    pub masters: Vec<Master>,
    pub image: String,
    pub arguments: Vec<&'static str>,
    /// A fixup is run beside it.
    pub with_fixup: bool,
    /// Brings it into the state before.
    pub reset: fn(&Scene) -> Result<()>,
    /// Paths whose content is mounted and must stay the same mount.
    pub content: Vec<(String, String)>,
    /// Paths that are touched at the end.
    pub touched: Vec<&'static str>,
}

impl Scene {
    pub fn new(masters: impl IntoIterator<Item = MasterOptions>) -> Result<Self> {
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
    pub fn with_content(mut self, paths: &[&str]) -> Result<Self> {
        for path in paths {
            self.sandbox.touch(self.sandbox.path(path))?;
        }
        // Who touched goes on before the master has closed the descriptor that it answered by.
        for master in &mut self.masters {
            master.report()?;
        }
        self.look_again();
        Ok(self)
    }

    /// In a mount that is shared: nothing can be taken away there from below its content.
    pub fn where_content_is_parked(self) -> Self {
        let mounts = self.sandbox.mountinfo();
        let autofs = mounts.lines().find(|line| line.contains(" - autofs ")).expect("there is one");
        let parent = autofs.split(' ').nth(1).expect("a parent");
        let parent = mounts.lines().find(|line| line.split(' ').next() == Some(parent)).expect("it is there");
        let parent = parent.split(' ').nth(4).expect("a mount point");
        self.sandbox.run(["mount", "--make-shared", parent]).assert_success();
        self
    }

    /// What is there now is what has to be there.
    pub fn look_again(&mut self) {
        self.image = dump(&self.sandbox);
        self.content = self.mounted_content();
    }

    /// The ids and places of what is mounted by masters, or left by restore.
    pub fn mounted_content(&self) -> Vec<(String, String)> {
        let mounts = self.sandbox.mountinfo();
        let lines = mounts.lines().filter(|line| line.contains(" content "));
        let field = |line: &str, at| line.split(' ').nth(at).map(str::to_owned);
        lines.filter_map(|line| Some((field(line, 0)?, field(line, 4)?))).collect()
    }

    pub fn restore(&self) -> TestCommand {
        let restore = self.sandbox.command(program("autofs-restore"));
        restore.args(&self.arguments).arg("--timeout=20").stdin(&*self.image)
    }

    pub fn fixup(&self) -> TestCommand {
        self.sandbox.command(program("autofs-fixup"))
    }

    pub fn start(&self, restore: TestCommand) -> (Running, Option<Running>) {
        match self.with_fixup {
            true => {
                let (restore, fixup) = restore.spawn_pipe(self.fixup());
                (restore, Some(fixup))
            }
            false => (restore.spawn(), None),
        }
    }

    /// Kills a restore at a point, and runs it again.
    pub fn round(&mut self, point: Point, kill: Kill) -> Result<Step> {
        let (stepped, said, _) = self.reset_and_kill(point, kill)?;
        if stepped == Step::Reached {
            self.succeeds(self.restore()).with_context(|| said.clone())?;
        }
        self.is_finished().with_context(|| format!("{said}\n{}", self.sandbox.mountinfo()))?;
        Ok(stepped)
    }

    /// Kills a restore at a point, and goes back.
    pub fn round_undone(&mut self, point: Point, kill: Kill) -> Result<Step> {
        let (stepped, said, before) = self.reset_and_kill(point, kill)?;
        let undone = self.succeeds(self.undo()).with_context(|| said.clone())?;
        self.is_back(&before, &undone)
            .with_context(|| format!("{said}; {undone}\n{}", self.sandbox.mountinfo()))?;
        Ok(stepped)
    }

    /// Kills an undo of a restore that was killed at another point, and runs it again.
    pub fn round_undo_killed(&mut self, restore: Point, point: Point) -> Result<Step> {
        // It may have come to its end before: then there is nothing to undo.
        let (_, mut said, before) = self.reset_and_kill(restore, Kill::Family)?;
        let (mut undo, fixup) = self.start(self.undo().held());
        let stepped = step(&mut undo, point, |family| {
            said = format!("{said}; undo killed at call {}", family.call);
            family.kill();
        })?;
        let killed = (undo.finish(), fixup.map(Running::finish));
        said = format!("{said}; {}", told(&killed));
        self.masters_go_on().with_context(|| said.clone())?;
        let mut undone = told(&killed);
        if stepped == Step::Reached {
            undone += &self.succeeds(self.undo()).with_context(|| said.clone())?;
        }
        self.is_back(&before, &undone)
            .with_context(|| format!("{said}; {undone}\n{}", self.sandbox.mountinfo()))?;
        Ok(stepped)
    }

    /// Brings it into the state before, which is told as an image, and kills a restore there.
    fn reset_and_kill(&mut self, point: Point, kill: Kill) -> Result<(Step, String, String)> {
        (self.reset)(self).context("reset")?;
        let before = dump(&self.sandbox);
        let (stepped, said) = self.kill(point, kill)?;
        Ok((stepped, said, before))
    }

    /// Kills a restore at a point, which no master may notice; and tells what it said.
    pub fn kill(&mut self, point: Point, kill: Kill) -> Result<(Step, String)> {
        let (mut restore, fixup) = self.start(self.restore().held());
        let mut call = 0;
        let stepped = step(&mut restore, point, |family| {
            call = family.call;
            kill.now(family);
        })?;
        let killed = (restore.finish(), fixup.map(Running::finish));
        let said = format!("call {call}; {}", told(&killed));
        let is_sound = stepped == Step::Reached || killed.0.end == Some(End::Exit(0));
        ensure!(is_sound, "not killed: {said}");
        self.masters_go_on().with_context(|| format!("after the kill: {said}"))?;
        Ok((stepped, said))
    }

    /// Runs a restore, with its fixup, which has to succeed.
    pub fn succeeds(&self, restore: TestCommand) -> Result<String> {
        let (restore, fixup) = self.start(restore);
        let again = (restore.finish(), fixup.map(Running::finish));
        let succeeded = again.0.end == Some(End::Exit(0));
        ensure!(succeeded, "then: {}\n{}", told(&again), self.sandbox.mountinfo());
        Ok(told(&again))
    }

    /// The command that goes back.
    pub fn undo(&self) -> TestCommand {
        self.sandbox.command(program("autofs-restore")).args(["--undo", "--timeout=20"])
    }

    /// The state before; or the finished one, where the restore had come to its end and was only not gone yet.
    pub fn is_back(&mut self, before: &str, undone: &str) -> Result<()> {
        if undone.contains("there is nothing to undo") && self.is_finished().is_ok() {
            return Ok(());
        }
        let finished = std::mem::replace(&mut self.image, before.to_owned());
        let is_back = self.is_finished();
        self.image = finished;
        is_back
    }

    /// No master has noticed anything.
    pub fn masters_go_on(&mut self) -> Result<()> {
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
    pub fn is_finished(&mut self) -> Result<()> {
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
    pub fn is_served(&self) -> Result<()> {
        for path in &self.touched {
            self.sandbox.touch(self.sandbox.path(path)).with_context(|| format!("touch {path}"))?;
        }
        Ok(())
    }
}

pub fn told((restore, fixup): &(Finished, Option<Finished>)) -> String {
    let fixup = fixup.as_ref().map(|fixup| format!("; fixup {:?}: {}", fixup.end, fixup.stderr.trim()));
    format!("restore {:?}: {}{}", restore.end, restore.stderr.trim(), fixup.unwrap_or_default())
}

/// Kills restore, and what it started, at some call where the mounts are so. Gives them.
pub fn kill_when(scene: &Scene, are_so: impl Fn(&str) -> bool) -> Result<String> {
    // The changes come after all looks. It may be so for a few calls only.
    let last = changes(scene)?;
    for number in (0..8).flat_map(|offset| (last / 2 + offset..last).step_by(8)) {
        let (mut restore, fixup) = scene.start(scene.restore().held());
        let stepped = step(&mut restore, Point::change(number), Family::kill)?;
        let _ = (restore.finish(), fixup.map(Running::finish));
        if stepped != Step::Reached {
            continue;
        }
        let mounts = scene.sandbox.mountinfo();
        if are_so(&mounts) {
            return Ok(mounts);
        }
        // To its end, so that the next one begins anew.
        scene.succeeds(scene.restore())?;
    }
    bail!("the mounts were never so")
}

/// How many changes a restore makes.
pub fn changes(scene: &Scene) -> Result<u64> {
    (scene.reset)(scene)?;
    let (mut restore, fixup) = scene.start(scene.restore().held());
    let Step::Ended(last) = step(&mut restore, Point::change(u64::MAX), |_| ())? else {
        unreachable!("nobody makes so many calls")
    };
    restore.finish().assert_success();
    fixup.map(|fixup| fixup.finish().assert_success());
    Ok(last)
}
