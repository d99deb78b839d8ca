//! `autofs-fixup --free`, whose other side dies at every system call: the master of a mount that hangs, or who alone
//! reads its pipe. It ends soon and says what came of it, and the same command run again frees what is left.
//!
//! Without more, a sample of the points is tried; `scripts/sweep` tries all of them.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{
    End, Finished, Master, MasterOptions, Sandbox, TestCommand, Touch, TouchError, program,
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
    touches: Vec<Touch>,
}

impl Scene {
    fn new() -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let options = MasterOptions::new().direct("d").indirect("i").like_systemd().arg("--swallow");
        let master = Some(sandbox.master(options)?);
        let blocked = |path| {
            let mut touch = sandbox.touch_in_background(sandbox.path(path));
            touch.wait_until_blocked();
            touch
        };
        let touches = ["d", "i/key"].map(blocked).into();
        Ok(Self { sandbox, master, touches })
    }

    fn free(&self) -> TestCommand {
        let places = ["d", "i"].map(|name| self.sandbox.path(name));
        self.sandbox.command(program("autofs-fixup")).args(["--free", "--timeout=15"]).args(places)
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
            ensure!(freed.end == Some(End::Exit(0)), "{freed}");
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
