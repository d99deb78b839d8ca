//! `autofs-fixup --free`, whose other side dies at every system call: the master of a mount that hangs, or who alone
//! reads its pipe. It ends soon and says what came of it, and the same command run again frees what is left.
//!
//! Without more, a sample of the points is tried; `scripts/sweep` tries all of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::delegated::Delegated;
use autofs_cr_tests::sandbox::{
    End, Finished, Master, MasterOptions, Running, Sandbox, TestCommand, Touch, TouchError, program,
};
use autofs_cr_tests::stepper::{Point, Step, step, sweep};
use nix::errno::Errno;

/// Points of each sweep that are tried without more.
const SAMPLE: u64 = 4;

/// Well before the timeout.
const SOON: Duration = Duration::from_secs(8);

/// A master that answers nothing, and who waits for it.
struct Scene {
    sandbox: Sandbox,
    master: Option<Master>,
    /// The process group of a mount that the master only reads for.
    group: Option<Running>,
    places: Vec<PathBuf>,
    touches: Vec<Touch>,
}

impl Scene {
    fn new() -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let options = MasterOptions::new().direct("d").indirect("i").like_systemd().arg("--swallow");
        let master = sandbox.master(options)?;
        let places = ["d", "i"].map(|name| sandbox.path(name)).into();
        let touched = ["d", "i/key"].map(|name| sandbox.path(name));
        Ok(Self::of(sandbox, master, None, places, &touched))
    }

    /// It only reads the pipe of a mount of another process group.
    fn delegated() -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let mut master =
            sandbox.master(MasterOptions::new().direct("own").like_systemd().arg("--swallow"))?;
        let Delegated { place, group } = Delegated::start(&sandbox, &mut master, false)?;
        let place = PathBuf::from(place);
        Ok(Self::of(sandbox, master, Some(group), vec![place.clone()], &[place]))
    }

    fn of(
        sandbox: Sandbox,
        master: Master,
        group: Option<Running>,
        places: Vec<PathBuf>,
        touched: &[PathBuf],
    ) -> Self {
        let blocked = |path: &PathBuf| {
            let mut touch = sandbox.touch_in_background(path);
            touch.wait_until_blocked();
            touch
        };
        let touches = touched.iter().map(blocked).collect();
        Self { sandbox, master: Some(master), group, places, touches }
    }

    fn free(&self) -> TestCommand {
        let fixup = self.sandbox.command(program("autofs-fixup"));
        fixup.args(["--free", "--timeout=15"]).args(&self.places)
    }

    /// Kills the master at a point of a fixup that frees its mounts.
    fn round(mut self, point: Point) -> Result<Step> {
        let mut fixup = self.free().held().spawn();
        let mut master = self.master.take();
        let (mut call, mut since) = (0, Instant::now());
        let stepped = step(&mut fixup, point, |family| {
            call = family.call;
            let master = master.as_mut().expect("a master");
            master.process().kill_as_traced().expect("kill the master");
            since = Instant::now();
        })?;
        let freed = fixup.finish();
        let took = since.elapsed();
        if matches!(stepped, Step::Ended(_)) {
            // A delegated one cannot be connected again.
            let code = if self.group.is_some() { 3 } else { 0 };
            ensure!(freed.end == Some(End::Exit(code)), "{freed}");
            return Ok(stepped);
        }
        self.check(&freed, took).map_err(|error| anyhow!("{error:#}: call {call}, {took:?}: {freed}"))?;
        Ok(stepped)
    }

    fn check(self, freed: &Finished, took: Duration) -> Result<()> {
        ensure!(took < SOON, "it took {took:?}");
        ensure!(matches!(freed.end, Some(End::Exit(0 | 1 | 3))), "it ended otherwise");
        // Nobody is left who could open the direct one while somebody waits there.
        let again = self.free().arg("--kill").run();
        ensure!(again.end == Some(End::Exit(0)), "the second one: {again}");
        for touch in self.touches {
            let end = touch.join();
            let is_freed = matches!(end, Err(TouchError::Errno(Errno::ENOENT) | TouchError::Killed(9)));
            ensure!(is_freed, "who waited got {end:?}");
        }
        self.sandbox.assert_nothing_blocked();
        Ok(())
    }
}

#[test]
fn the_master_dies_while_its_mounts_are_freed() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep("fixup --free", SAMPLE, || Ok(()), |(), point| Scene::new()?.round(point))
}

#[test]
fn the_only_reader_of_a_delegated_mount_dies_while_it_is_freed() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep("fixup --free, delegated", SAMPLE, || Ok(()), |(), point| Scene::delegated()?.round(point))
}
