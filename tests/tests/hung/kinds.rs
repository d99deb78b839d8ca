//! The kinds of mounts that hang.

use std::path::PathBuf;

use anyhow::{Context, Result};
use autofs_cr_tests::sandbox::{
    Master, MasterOptions, Sandbox, Tool, Touch, blocked_in_autofs, wait_until_blocked,
};
use nix::sys::signal::Signal;

/// A world in which something hangs.
pub struct World {
    pub sandbox: Sandbox,
    pub master: Option<Master>,
    pub touches: Vec<Touch>,
    /// What hangs, in the work directory, and the mount that it is on.
    pub hung: &'static str,
    pub mount: &'static str,
    /// Images of all mounts, of the one that hangs, and of one that does not, from before it hung.
    pub image: String,
    pub hung_image: String,
    pub free_image: String,
}

impl World {
    /// One with a mount of each type, and some more.
    fn new(mount: &'static str, hung: &'static str, mood: &str) -> Result<Self> {
        let sandbox = Sandbox::builder().shm().build()?;
        let options = MasterOptions::new().direct("d").direct("f").indirect("i").offset("o");
        let options = options.args(["--pipes=each"].into_iter().chain((!mood.is_empty()).then_some(mood)));
        let master = Some(sandbox.master(options)?);
        let dump =
            |places: &[PathBuf]| Tool::dump().inside(&sandbox).args(places).run().assert_success().stdout;
        let (image, hung_image) = (dump(&[]), dump(&[sandbox.path(mount)]));
        let free_image = dump(&[sandbox.path("f")]);
        Ok(Self { sandbox, master, touches: Vec::new(), hung, mount, image, hung_image, free_image })
    }

    pub fn master(&mut self) -> Result<&mut Master> {
        self.master.as_mut().context("the master is gone")
    }

    /// Path in the work directory, as a text.
    pub fn path(&self, name: &str) -> String {
        self.sandbox.path(name).display().to_string()
    }

    fn serve(&self, name: &str) -> Result<()> {
        self.sandbox.read(self.sandbox.path(name).join("served-by"))?;
        Ok(())
    }

    /// Has somebody wait.
    fn touch(mut self, name: &str) -> Self {
        let mut touch = self.sandbox.touch_in_background(self.sandbox.path(name));
        touch.wait_until_blocked();
        self.touches.push(touch);
        self
    }

    fn orphan(mut self) -> Result<Self> {
        self.master.take().context("the master is gone")?.kill()?;
        Ok(self)
    }

    /// Has the master ask for an expire, and not answer it.
    fn expire(mut self) -> Result<Self> {
        self.serve(self.hung)?;
        let order = format!("expire {}", self.path(self.mount));
        let master = self.master()?;
        master.swallow()?;
        master.say(&order)?;
        let pid = master.pid();
        wait_until_blocked(master.process(), 1, || vec![pid]);
        Ok(self)
    }
}

pub fn unread() -> Result<World> {
    Ok(World::new("d", "d", "--ignore-requests")?.touch("d/x"))
}

pub fn unanswered() -> Result<World> {
    Ok(World::new("d", "d", "--swallow")?.touch("d/x").touch("d"))
}

pub fn stopped() -> Result<World> {
    let mut world = World::new("d", "d", "")?;
    world.master()?.process().signal(Signal::SIGSTOP)?;
    Ok(world.touch("d/x"))
}

pub fn orphaned() -> Result<World> {
    unanswered()?.orphan()
}

/// The first who asks after the death of the master is killed, and then the kernel gives the mount up.
pub fn catatonic() -> Result<World> {
    let world = World::new("d", "d", "--swallow")?.orphan()?;
    let _ = world.sandbox.touch(world.sandbox.path("d/x"));
    Ok(world)
}

pub fn key() -> Result<World> {
    Ok(World::new("i", "i/key", "--swallow")?.touch("i/key/x").touch("i/key"))
}

pub fn offset() -> Result<World> {
    Ok(World::new("o", "o", "--swallow")?.touch("o/x"))
}

/// Its superblock is shown at a second place, where something covers it, and another mount is inside of the first.
pub fn covered() -> Result<World> {
    let mut world = World::new("d", "d", "")?;
    // A bind mount of a trigger would be one of what its master mounts there, so all is bound that is around it.
    let script = "mkdir copy && mount --rbind . copy && mount -t tmpfs cover copy/d";
    world.sandbox.run(["sh", "-c", &format!("cd {} && {script}", world.path(""))]).assert_success();
    world.master()?.swallow()?;
    Ok(world.touch("d/x"))
}

pub fn expire_of_a_direct_mount() -> Result<World> {
    Ok(World::new("d", "d", "")?.expire()?.touch("d/served-by"))
}

pub fn expire_of_a_key() -> Result<World> {
    Ok(World::new("i", "i/key", "")?.expire()?.touch("i/key/served-by"))
}

/// The pipe takes 16 requests. Who comes then waits in a write, and who comes after that for that one.
pub fn full() -> Result<World> {
    let mut world = World::new("i", "i/key0", "--ignore-requests")?;
    let paths: Vec<PathBuf> = (0..20).map(|number| world.sandbox.path(format!("i/key{number}"))).collect();
    world.touches.extend(paths.iter().map(|path| world.sandbox.touch_in_background(path)));
    let pids: Vec<_> = world.touches.iter().map(Touch::pid).collect();
    // All but the one that writes.
    wait_until_blocked(world.master()?.process(), pids.len() - 1, || pids.clone());
    assert_eq!(blocked_in_autofs(&pids).len(), pids.len() - 1);
    Ok(world)
}
