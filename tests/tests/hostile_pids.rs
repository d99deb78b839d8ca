//! Process ids that are used again: who gets the id of a master that ended is not taken for it, whatever it is called.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use autofs_cr_common::doc::{self, Stage};
use autofs_cr_common::model::Pid;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, make_catatonic, stage_text};
use autofs_cr_tests::sandbox::{Master, MasterOptions, Running, Sandbox, TestCommand, program};
use nix::sys::signal::Signal;

/// Becomes process `$1` by the name of a reference master in the directory `$2`, and tells when it is.
const IMPOSTOR: &str = r#"
cp "$(command -v sleep)" "$2/reference-master" && test -p "$2/ready" || mkfifo "$2/ready"
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    echo $(($1 - 1)) > /proc/sys/kernel/ns_last_pid
    setsid "$2/reference-master" 1000 &
    if test $! = "$1"; then echo > "$2/ready"; wait; exit; fi
    kill $!
done
echo > "$2/ready"
"#;

/// Another process than the master, with its id, its name, and a process group of that number.
struct Impostor {
    /// Its parent.
    shell: Running,
    /// Its directory in /proc, seen from outside.
    dir: PathBuf,
    files: Vec<PathBuf>,
}

impl Impostor {
    /// Kills the master, and gives its id to another one.
    fn replace(sandbox: &Sandbox, master: Master) -> Result<Self> {
        let pid = master.pid_inside();
        master.kill()?;
        let impostor = sandbox.mkdir("impostor")?;
        let script = ["-c", IMPOSTOR, "sh", &pid.to_string(), &impostor.to_string_lossy()];
        let ready = sandbox.outside(impostor.join("ready"));
        nix::unistd::mkfifo(&ready, nix::sys::stat::Mode::S_IRWXU)?;
        let shell = sandbox.command("sh").args(script).spawn();
        std::fs::read(&ready).context("wait for the impostor")?;
        let dir = sandbox.outside("/proc").join(pid.to_string());
        // It executes its program some time after it is started, and opens files then.
        while !sleeps(&dir)? {
            std::thread::yield_now();
        }
        let files = open_files(&dir)?;
        Ok(Self { shell, dir, files })
    }

    /// It is as it was, and nobody traces it.
    fn assert_untouched(&self) -> Result<()> {
        let status = std::fs::read_to_string(self.dir.join("status"))?;
        ensure!(status.contains("State:\tS") && status.contains("TracerPid:\t0\n"), "{status}");
        ensure!(status.contains("Name:\treference-maste\n"), "{status}");
        let files = open_files(&self.dir)?;
        ensure!(files == self.files, "{files:?} are open, and were {:?}", self.files);
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.assert_untouched()?;
        self.shell.process().kill()?;
        Ok(())
    }
}

/// Whether it is where it stays (syscall 35 or 230: nanosleep).
fn sleeps(dir: &Path) -> Result<bool> {
    let call = std::fs::read_to_string(dir.join("syscall"))?;
    let is_copy = std::fs::read_to_string(dir.join("comm"))? == "reference-maste\n";
    Ok(is_copy && ["35 ", "230 "].iter().any(|number| call.starts_with(number)))
}

fn open_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let links = std::fs::read_dir(dir.join("fd"))?.map(|entry| Ok(std::fs::read_link(entry?.path())?));
    let mut files = links.collect::<Result<Vec<_>>>()?;
    files.sort_unstable();
    Ok(files)
}

fn options() -> MasterOptions {
    MasterOptions::new().direct("d").indirect("i")
}

/// A sandbox whose mounts are catatonic, with the master that lives and their image.
fn cut_off() -> Result<(Sandbox, Master, String)> {
    let sandbox = Sandbox::builder().shm().build()?;
    let master = sandbox.master(options())?;
    let image = dump(&sandbox);
    make_catatonic(&sandbox, &image);
    Ok((sandbox, master, image))
}

fn tool(sandbox: &Sandbox, name: &str) -> TestCommand {
    sandbox.command(program(name))
}

#[test]
fn who_has_the_id_of_a_master_of_an_image_is_not_taken_for_it() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let (sandbox, master, image) = cut_off()?;
    let impostor = Impostor::replace(&sandbox, master)?;
    let mounts = sandbox.mountinfo();
    let restore = tool(&sandbox, "autofs-restore").arg("--timeout=2").stdin(image);
    let (restored, fixed) = restore.pipe(tool(&sandbox, "autofs-fixup"));
    restored.assert_code(1).assert_stderr_contains("is not taken for master");
    fixed.assert_code(3).assert_stderr_contains("is not there yet");
    assert_eq!(sandbox.mountinfo(), mounts);
    impostor.end()?;
    sandbox.close()
}

#[test]
fn nor_is_one_that_gets_it_between_restore_and_fixup() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let (sandbox, master, image) = cut_off()?;
    let mounts = sandbox.mountinfo();
    let fifo = sandbox.path("stage");
    nix::unistd::mkfifo(&sandbox.outside(&fifo), nix::sys::stat::Mode::S_IRWXU)?;
    let script = format!("exec {} --timeout=20 > {}", program("autofs-restore").display(), fifo.display());
    let mut restore = sandbox.command("sh").args(["-c", &script]).stdin(image).spawn();
    let stage: Stage = doc::parse(&std::fs::read(sandbox.outside(&fifo))?, "the stage document")?;
    // It would notice the end of the master at once.
    restore.process().signal(Signal::SIGSTOP)?;
    let impostor = Impostor::replace(&sandbox, master)?;
    let fixed = tool(&sandbox, "autofs-fixup").stdin(stage_text(&stage)).run();
    fixed.assert_code(1).assert_stderr_contains("has ended");
    impostor.assert_untouched()?;
    restore.process().signal(Signal::SIGCONT)?;
    restore.finish().assert_code(1);
    assert_eq!(sandbox.mountinfo(), mounts);
    impostor.end()?;
    sandbox.close()
}

#[test]
fn a_report_in_which_it_was_another_process_is_refused_by_dump() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(options())?;
    let pid: Pid = master.pid_inside();
    let report = tool(&sandbox, "autofs-inspect").args(["-f", "yaml"]).run().assert_success().stdout;
    let impostor = Impostor::replace(&sandbox, master)?;
    let dumped = tool(&sandbox, "autofs-dump").args(["-i", "-"]).stdin(report).run().assert_code(1);
    let dumped =
        dumped.assert_stderr_contains(&format!("process {pid} of the report is gone or another one"));
    assert_eq!(dumped.stdout, "");
    impostor.end()?;
    sandbox.close()
}

#[test]
fn inspect_does_not_call_it_the_master_and_freeing_leaves_it_alone() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(options())?;
    let impostor = Impostor::replace(&sandbox, master)?;
    let seen = tool(&sandbox, "autofs-inspect").args(["--check"]).run().assert_code(3);
    assert!(seen.stdout.lines().all(|line| line.contains("orphaned")), "{}", seen.stdout);
    assert_eq!(seen.stdout.lines().count(), 2);
    let freed = tool(&sandbox, "autofs-fixup").arg("--free").run().assert_success();
    freed.assert_stderr_contains("freed 2 mounts and 0 waiters");
    impostor.end()?;
    sandbox.close()
}
