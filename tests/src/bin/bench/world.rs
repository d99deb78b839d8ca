//! The sandbox with a master and its mounts, and the loops that are run in it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use autofs_cr_common::model::{Device, Pid};
use autofs_cr_tests::sandbox::{End, Master, MasterOptions, Sandbox, program};
use tempfile::TempDir;

use crate::cli::Loop;
use crate::floor::TIMEOUT;

/// The number of the master's read end.
const READ_FD: i32 = 50;

/// How long a loop may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// How often a world is made until its device numbers are the lowest.
const ATTEMPTS: usize = 5;

/// A private world in which one master has many direct mounts.
pub struct World {
    sandbox: Sandbox,
    master: Master,
    mounts: usize,
    prefix: PathBuf,
    scratch: TempDir,
}

impl World {
    /// One with this many mounts, connected. Where device numbers below theirs are free, which is so
    /// while the mounts of a world before are still going away, a restore has more to do: to take these
    /// numbers. Then another one is made.
    pub fn new(mounts: usize) -> Result<Self> {
        for _ in 1..ATTEMPTS {
            let world = Self::with_any_numbers(mounts)?;
            if world.has_lowest_numbers()? {
                return Ok(world);
            }
            world.close()?;
        }
        eprintln!("bench: device numbers below those of the mounts are free: restore takes longer by that");
        Self::with_any_numbers(mounts)
    }

    /// One in which device numbers do not matter, as nothing is restored.
    pub fn large(mounts: usize) -> Result<Self> {
        Self::with_any_numbers(mounts)
    }

    /// Starts processes in it that hold so many descriptors each. They end with the world.
    pub fn crowd(&self, processes: usize, descriptors: usize) -> Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        let crowd = self.sandbox.command(program).arg("crowd").deadline(DEADLINE);
        let crowd = crowd.arg(format!("--processes={processes}"));
        let ran = crowd.arg(format!("--descriptors={descriptors}")).run();
        ensure!(ran.end == Some(End::Exit(0)), "the processes were not started: {}", ran.stderr.trim());
        Ok(())
    }

    fn with_any_numbers(mounts: usize) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let prefix = sandbox.path("bulk");
        // Without a write end of its own the master would see a hang-up whenever all is unmounted.
        let options = MasterOptions::new()
            .args(["--pipes=one", "--write-end=keep", "--identity=device"])
            .arg(format!("--read-fd={READ_FD}"))
            .arg(format!("--timeout={}", TIMEOUT.as_secs()))
            .arg("--bulk")
            .arg(&prefix)
            .arg(mounts.to_string());
        let master = sandbox.master(options).context("start the master")?;
        let scratch = tempfile::tempdir().context("make a directory")?;
        let world = Self { sandbox, master, mounts, prefix, scratch };
        world.check_connected()?;
        Ok(world)
    }

    /// Whether the next number that the kernel hands out is above the first of the mounts.
    fn has_lowest_numbers(&self) -> Result<bool> {
        let place = self.sandbox.mkdir("probe")?;
        let probe = self.sandbox.command(program("autofs-probe")).arg("reuse").arg(place).run();
        let next: Device = probe.stdout.lines().next().context("the probe said nothing")?.parse()?;
        let line = self.sandbox.mount_line(self.prefix.join("000000")).context("no mount is there")?;
        let first: Device = line.split(' ').nth(2).context("no device")?.parse()?;
        Ok(next > first)
    }

    /// The number of mounts.
    pub fn mounts(&self) -> usize {
        self.mounts
    }

    /// The init of the sandbox.
    pub fn pid(&self) -> Pid {
        self.sandbox.pid()
    }

    /// The master.
    pub fn master(&self) -> Pid {
        self.master.pid()
    }

    /// A directory for documents.
    pub fn scratch(&self) -> &std::path::Path {
        self.scratch.path()
    }

    /// Runs a loop in the sandbox; gives the times that it told.
    pub fn run_loop(&self, what: Loop) -> Result<Vec<Duration>> {
        use clap::ValueEnum;
        let name = what.to_possible_value().context("a loop without name")?;
        let program = std::env::current_exe().context("find this program")?;
        let ran = self
            .sandbox
            .command(program)
            .args(["loop", name.get_name(), "--prefix"])
            .arg(&self.prefix)
            .arg(format!("--count={}", self.mounts))
            .arg(format!("--master={}", self.master.pid_inside()))
            .arg(format!("--read-fd={READ_FD}"))
            .deadline(DEADLINE)
            .run();
        ensure!(
            ran.end == Some(End::Exit(0)),
            "the loop '{}' failed: {}",
            name.get_name(),
            ran.stderr.trim()
        );
        let times = ran.stdout.lines().map(|line| Ok(Duration::from_nanos(line.parse()?)));
        times.collect()
    }

    /// Unmounts what is mounted, if anything is.
    pub fn unmount(&self) -> Result<()> {
        if self.sandbox.autofs_lines().is_empty() {
            return Ok(());
        }
        self.run_loop(Loop::Unmount).map(drop)
    }

    /// Has all mounts there and connected again, after something failed.
    pub fn reset(&self) -> Result<()> {
        if self.check_connected().is_ok() {
            return Ok(());
        }
        self.unmount()?;
        self.run_loop(Loop::Connect).map(drop)
    }

    /// Fails unless every mount is there and has a pipe.
    pub fn check_connected(&self) -> Result<()> {
        let lines = self.sandbox.autofs_lines();
        let connected = lines.iter().filter(|line| !line.contains("pipe_ino=-1")).count();
        ensure!(
            lines.len() == self.mounts && connected == self.mounts,
            "{} autofs mounts are there and {connected} of them are connected, in place of {}",
            lines.len(),
            self.mounts
        );
        Ok(())
    }

    /// Fails unless the master serves the first and the last mount.
    pub fn check_served(&self) -> Result<()> {
        for number in [0, self.mounts - 1] {
            let path = self.prefix.join(format!("{number:06}/served-by"));
            let read = self.sandbox.read(&path);
            ensure!(read.is_ok(), "{} is not served: {read:?}", path.display());
        }
        Ok(())
    }

    /// Ends it, and checks that nothing is left.
    pub fn close(self) -> Result<()> {
        // What a namespace leaves at its end goes away later, and would disturb the next world.
        self.unmount()?;
        drop(self.master);
        self.sandbox.close()
    }
}
