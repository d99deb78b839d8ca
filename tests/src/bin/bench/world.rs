//! The sandbox with a master and its mounts, and the loops that are run in it.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use autofs_cr_common::model::{Device, Pid};
use autofs_cr_tests::sandbox::{End, Master, MasterOptions, Running, Sandbox, program};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use crate::cli::Loop;
use crate::floor::TIMEOUT;
use crate::touch::Seen;

/// The number of the master's read end.
const READ_FD: i32 = 50;

/// How long a loop may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// How often a world is made until its device numbers are the lowest.
const ATTEMPTS: usize = 5;

/// A private world in which masters have many direct mounts.
pub struct World {
    sandbox: Sandbox,
    masters: Vec<Master>,
    /// How many each has.
    each: usize,
    /// Where those of each are.
    prefixes: Vec<PathBuf>,
    scratch: TempDir,
}

/// Threads that use the mounts.
pub struct Load {
    running: Running,
    /// They end when this is closed.
    open: File,
}

impl Load {
    /// Ends them; gives what they saw.
    pub fn end(self) -> Result<Seen> {
        drop(self.open);
        let ran = self.running.finish();
        ensure!(ran.end == Some(End::Exit(0)), "the load failed: {}", ran.stderr.trim());
        serde_json::from_str(&ran.stdout).context("understand what the load saw")
    }
}

impl World {
    /// One with a master that has this many mounts, connected.
    pub fn new(mounts: usize) -> Result<Self> {
        Self::of_masters(1, mounts)
    }

    /// One with masters that have so many mounts each, connected. Where device numbers below theirs are free, which is so
    /// while the mounts of a world before are still going away, a restore has more to do: to take these
    /// numbers. Then another one is made.
    pub fn of_masters(masters: usize, each: usize) -> Result<Self> {
        for _ in 1..ATTEMPTS {
            let world = Self::with_any_numbers(masters, each)?;
            if world.has_lowest_numbers()? {
                return Ok(world);
            }
            world.close()?;
        }
        eprintln!("bench: device numbers below those of the mounts are free: restore takes longer by that");
        Self::with_any_numbers(masters, each)
    }

    /// One in which device numbers do not matter, as nothing is restored.
    pub fn large(mounts: usize) -> Result<Self> {
        Self::with_any_numbers(1, mounts)
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

    fn with_any_numbers(masters: usize, each: usize) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let prefixes: Vec<_> = (0..masters).map(|number| sandbox.path(format!("bulk/{number:03}"))).collect();
        let options = |prefix| {
            // Without a write end of its own the master would see a hang-up whenever all is unmounted.
            MasterOptions::new()
                .args(["--pipes=one", "--write-end=keep", "--identity=none"])
                .arg(format!("--read-fd={READ_FD}"))
                .arg(format!("--timeout={}", TIMEOUT.as_secs()))
                .arg("--bulk")
                .arg(prefix)
                .arg(each.to_string())
        };
        let masters = prefixes.iter().map(|prefix| sandbox.master(options(prefix)).context("start a master"));
        let masters = masters.collect::<Result<_>>()?;
        let scratch = tempfile::tempdir().context("make a directory")?;
        let world = Self { sandbox, masters, each, prefixes, scratch };
        world.check_connected()?;
        Ok(world)
    }

    /// Whether the next number that the kernel hands out is above the first of the mounts.
    fn has_lowest_numbers(&self) -> Result<bool> {
        let place = self.sandbox.mkdir("probe")?;
        let probe = self.sandbox.command(program("autofs-probe")).arg("reuse").arg(place).run();
        let next: Device = probe.stdout.lines().next().context("the probe said nothing")?.parse()?;
        let line = self.sandbox.mount_line(self.prefixes[0].join("000000")).context("no mount is there")?;
        let first: Device = line.split(' ').nth(2).context("no device")?.parse()?;
        Ok(next > first)
    }

    /// The number of mounts.
    pub fn mounts(&self) -> usize {
        self.masters.len() * self.each
    }

    /// The init of the sandbox.
    pub fn pid(&self) -> Pid {
        self.sandbox.pid()
    }

    /// The master, if there is only one.
    pub fn master(&self) -> Option<Pid> {
        let [master] = self.masters.as_slice() else { return None };
        Some(master.pid())
    }

    /// A directory for documents.
    pub fn scratch(&self) -> &std::path::Path {
        self.scratch.path()
    }

    /// Starts threads that read a file on each mount of the first master all the time, when each of them has had
    /// something mounted on it.
    pub fn load(&self, threads: usize) -> Result<Load> {
        let fifo = self.sandbox.path("load");
        let outside = PathBuf::from(format!("/proc/{}/root{}", self.pid(), fifo.display()));
        mkfifo(&outside, Mode::S_IRUSR | Mode::S_IWUSR).context("make a FIFO")?;
        let program = std::env::current_exe().context("find this program")?;
        // Threads at a realtime priority that never sleep would keep the kernel's own from running.
        let command = self.sandbox.command("chrt").args(["--other", "0"]).arg(program);
        let command = command.args(["touch", "--prefix"]).arg(&self.prefixes[0]);
        let command = command.arg(format!("--count={}", self.each)).arg(format!("--threads={threads}"));
        let running = command.arg("--fifo").arg(&fifo).deadline(DEADLINE).spawn();
        let open = File::options().write(true).open(&outside).context("open the FIFO")?;
        std::fs::remove_file(&outside).context("remove the FIFO")?;
        Ok(Load { running, open })
    }

    /// Runs a loop in the sandbox, over the mounts of the first master; gives the times that it told.
    pub fn run_loop(&self, what: Loop) -> Result<Vec<Duration>> {
        self.run_loop_of(0, what)
    }

    fn run_loop_of(&self, number: usize, what: Loop) -> Result<Vec<Duration>> {
        use clap::ValueEnum;
        let name = what.to_possible_value().context("a loop without name")?;
        let program = std::env::current_exe().context("find this program")?;
        let ran = self
            .sandbox
            .command(program)
            .args(["loop", name.get_name(), "--prefix"])
            .arg(&self.prefixes[number])
            .arg(format!("--count={}", self.each))
            .arg(format!("--master={}", self.masters[number].pid_inside()))
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
        (0..self.masters.len()).try_for_each(|number| self.run_loop_of(number, Loop::Unmount).map(drop))
    }

    /// Has all mounts there and connected again, after something failed.
    pub fn reset(&self) -> Result<()> {
        if self.check_connected().is_ok() {
            return Ok(());
        }
        self.unmount()?;
        (0..self.masters.len()).try_for_each(|number| self.run_loop_of(number, Loop::Connect).map(drop))
    }

    /// Fails unless every mount is there and has a pipe.
    pub fn check_connected(&self) -> Result<()> {
        let lines = self.sandbox.autofs_lines();
        let connected = lines.iter().filter(|line| !line.contains("pipe_ino=-1")).count();
        ensure!(
            lines.len() == self.mounts() && connected == self.mounts(),
            "{} autofs mounts are there and {connected} of them are connected, in place of {}",
            lines.len(),
            self.mounts()
        );
        Ok(())
    }

    /// Fails unless the master serves the first and the last mount.
    pub fn check_served(&self) -> Result<()> {
        for (prefix, number) in self.prefixes.iter().flat_map(|prefix| [(prefix, 0), (prefix, self.each - 1)])
        {
            let path = prefix.join(format!("{number:06}/served-by"));
            let read = self.sandbox.read(&path);
            ensure!(read.is_ok(), "{} is not served: {read:?}", path.display());
        }
        Ok(())
    }

    /// Ends it, and checks that nothing is left.
    pub fn close(self) -> Result<()> {
        // What a namespace leaves at its end goes away later, and would disturb the next world.
        self.unmount()?;
        drop(self.masters);
        self.sandbox.close()
    }
}
