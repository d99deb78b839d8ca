//! Segments that restore did not make, or that somebody changed: a fixup refuses each, and touches neither a master nor a
//! mount for it.

use std::fs::OpenOptions;
use std::path::PathBuf;

use anyhow::{Context, Result};
use autofs_cr_common::doc::{self, Stage};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, lasting, make_catatonic, stage_text};
use autofs_cr_tests::sandbox::{End, Finished, Master, MasterOptions, Running, Sandbox, program};
use nix::sys::signal::Signal;

/// A name that a restore could have chosen.
const PLANTED: &str = "/autofs-cr-0123456789abcdef0123456789abcdef";

/// What somebody can have there, made by the shell from the real one `$1` at `$2`, and what is told of it.
const PLANTS: &[(&str, &str)] = &[
    ("cp $1 $2; chown 65534 $2", "it belongs to user 65534"),
    ("cp $1 $2; chmod 0644 $2", "its mode is 0644"),
    ("cp $1 $2; chmod 0620 $2", "its mode is 0620"),
    ("cp $1 $2; chmod 4600 $2", "its mode is 4600"),
    ("ln -s $1 $2", "cannot open the segment"),
    ("mkdir -m 0600 $2", "cannot open the segment"),
    ("mkfifo -m 0600 $2", "it is no shared memory"),
    (": > $2", "is not valid"),
    ("cp $1 $2; truncate -s -4 $2", "is not valid"),
    ("cp $1 $2; echo more >> $2", "is not valid"),
    // As long as a file can be.
    ("truncate -s 8191P $2", "is not valid"),
    ("tr a b < $1 | tr '\\0' a > $2", "is not valid"),
    // All is as it should be, but nobody holds it.
    ("cp $1 $2", "the restore that made this segment"),
];

/// A master whose mounts are catatonic, and a restore inside that waits for a fixup to connect them.
struct Scene {
    sandbox: Sandbox,
    master: Master,
    image: String,
    restore: Running,
    stage: Stage,
}

fn start(sandbox: &Sandbox, image: &str) -> Result<(Running, Stage)> {
    make_catatonic(sandbox, image);
    let fifo = sandbox.path("stage");
    sandbox.run(["sh", "-c", "test -e \"$0\" || mkfifo \"$0\"", &fifo.to_string_lossy()]).assert_success();
    let script = format!("exec {} --timeout=20 > {}", program("autofs-restore").display(), fifo.display());
    let restore = sandbox.command("sh").args(["-c", &script]).stdin(image).spawn();
    let text = std::fs::read(sandbox.outside(&fifo)).context("cannot read the stage document")?;
    Ok((restore, doc::parse(&text, "the stage document")?))
}

impl Scene {
    fn new() -> Result<Self> {
        let sandbox = Sandbox::builder().shm().build()?;
        let master = sandbox.master(MasterOptions::new().direct("d").indirect("i"))?;
        let image = dump(&sandbox);
        let (restore, stage) = start(&sandbox, &image)?;
        Ok(Self { sandbox, master, image, restore, stage })
    }

    fn name(&self) -> &str {
        &self.stage.segment.as_ref().expect("a segment").name
    }

    fn file(&self) -> PathBuf {
        self.sandbox.outside(format!("/dev/shm{}", self.name()))
    }

    /// A fixup with the stage document, but with the planted segment in it.
    fn misled(&self) -> Finished {
        let mut stage = self.stage.clone();
        stage.segment.as_mut().expect("a segment").name = PLANTED.to_owned();
        self.sandbox.command(program("autofs-fixup")).stdin(stage_text(&stage)).run()
    }

    fn fixup(&self) -> Finished {
        self.sandbox.command(program("autofs-fixup")).stdin(stage_text(&self.stage)).run()
    }

    /// Restore ends well, and all is as in the image.
    fn finish(self) -> Result<()> {
        let Self { sandbox, mut master, image, restore, .. } = self;
        restore.finish().assert_success();
        assert_eq!(lasting(&dump(&sandbox)), lasting(&image));
        sandbox.touch(sandbox.path("d"))?;
        sandbox.touch(sandbox.path("i/key"))?;
        master.assert_undisturbed();
        assert_eq!(sandbox.run(["ls", "/dev/shm"]).stdout, "");
        sandbox.close()
    }
}

#[test]
fn a_segment_that_somebody_prepared_is_refused() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let scene = Scene::new()?;
    let [real, planted] = [scene.name(), PLANTED].map(|name| format!("/dev/shm{name}"));
    let mounts = scene.sandbox.mountinfo();
    for (script, told) in PLANTS {
        let script = format!("umask 077; set -e; {script}");
        scene.sandbox.run(["sh", "-c", &script, "sh", &real, &planted]).assert_success();
        scene.misled().assert_code(1).assert_stderr_contains(told);
        assert_eq!(scene.sandbox.mountinfo(), mounts, "{script}");
        scene.sandbox.run(["rm", "-rf", &planted]).assert_success();
    }
    scene.fixup().assert_success();
    scene.finish()
}

#[test]
fn nor_does_a_new_master_start_with_one() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let scene = Scene::new()?;
    let [real, planted] = [scene.name(), PLANTED].map(|name| format!("/dev/shm{name}"));
    scene.sandbox.run(["sh", "-c", "cp $0 $1; chown 65534 $1", &real, &planted]).assert_success();
    let started = scene.sandbox.path("started").display().to_string();
    let fixup = scene.sandbox.command(program("autofs-fixup")).env("AUTOFS_CR_SEGMENT", PLANTED);
    fixup
        .args(["--exec", "--", "touch", &started])
        .run()
        .assert_code(1)
        .assert_stderr_contains("it belongs to user 65534");
    scene.sandbox.run(["test", "!", "-e", &started]).assert_success();
    scene.sandbox.run(["rm", &planted]).assert_success();
    scene.fixup().assert_success();
    scene.finish()
}

/// Only the user of restore can do that, who can as well kill it: it is the same.
#[test]
fn a_segment_that_shrinks_ends_restore_like_a_kill_and_the_same_command_finishes_it() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let mut scene = Scene::new()?;
    let file = scene.file();
    OpenOptions::new().write(true).open(&file)?.set_len(0)?;
    scene.fixup().assert_code(1).assert_stderr_contains("is not valid");
    // It looks at the segment once more when it is told to end, if it has not yet.
    let _ = scene.restore.process().signal(Signal::SIGTERM);
    let killed = scene.restore.finish();
    let by_bus = killed.end == Some(End::Signal(Signal::SIGBUS as i32));
    killed.check(by_bus, "ended by SIGBUS");
    // It is no segment any more, so no restore takes it away.
    std::fs::remove_file(file)?;
    (scene.restore, scene.stage) = start(&scene.sandbox, &scene.image)?;
    scene.fixup().assert_success();
    scene.finish()
}
