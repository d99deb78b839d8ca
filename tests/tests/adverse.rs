//! Masters with whom no system call can be made, or not as usual: each is refused by its reason with nothing changed,
//! or connected as every other.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use autofs_cr_common::model::Pid;
use autofs_cr_tests::guard::skip;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, make_catatonic};
use autofs_cr_tests::sandbox::{DEADLINE, MasterOptions, Running, Sandbox, TestCommand, Tool, program};

/// A process in a sandbox that reads the pipe of a direct mount, and does not answer.
struct Odd {
    sandbox: Sandbox,
    process: Running,
    /// What a dump says, from when its mount was connected; it is catatonic now.
    image: String,
}

impl Odd {
    /// `program` is executed by a shell that has made the mount: the read end is its descriptor 8.
    fn start(program: &str) -> Result<Self> {
        Self::start_in(Sandbox::new()?, program)
    }

    fn start_in(sandbox: Sandbox, program: &str) -> Result<Self> {
        let place = sandbox.mkdir("d")?;
        let options = "fd=9,pgrp=$$,minproto=5,maxproto=5,direct";
        let script = format!(
            "exec 8< <(:) && exec 9>/proc/self/fd/8 && mount -i -t autofs -o {options} odd {} && exec {program}",
            place.display()
        );
        let process = sandbox.command("bash").args(["-c", &script]).stdin("").spawn();
        let mut odd = Self { sandbox, process, image: String::new() };
        odd.wait_until("it has become what it is to be", |pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            !["bash\n", "setpriv\n", "unshare\n", "sandbox-init\n", ""].contains(&&*name)
        });
        odd.image = Tool::dump().target(&odd.sandbox).arg(&place).run().assert_success().stdout;
        make_catatonic(&odd.sandbox, &odd.image);
        Ok(odd)
    }

    fn pid(&mut self) -> Pid {
        self.process.process().pid()
    }

    fn wait_until(&mut self, what: &str, condition: impl Fn(Pid) -> bool) {
        let pid = self.pid();
        let deadline = Instant::now() + DEADLINE;
        while !condition(pid) {
            assert!(self.process.process().is_running(), "it ended: {what}");
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::yield_now();
        }
    }

    /// It cannot be connected, for this reason, which is told soon and with nothing changed.
    #[track_caller]
    fn assert_refused(&mut self, why: &str) {
        let before = self.sandbox.mountinfo();
        let state = status(self.pid());
        refused(&self.sandbox, &self.image, why);
        assert_eq!(self.sandbox.mountinfo(), before);
        assert_eq!(status(self.pid()), state);
        assert!(self.process.process().is_running());
        self.sandbox.assert_nothing_blocked();
    }

    /// It is connected, again and again.
    #[track_caller]
    fn assert_connected(&mut self) {
        for _ in 0..3 {
            connected(&self.sandbox, &self.image);
            let lines = self.sandbox.autofs_lines();
            assert!(lines.iter().all(|line| !line.contains("fd=-1,")), "{lines:#?}");
            assert!(self.process.process().is_running());
            make_catatonic(&self.sandbox, &self.image);
        }
    }
}

/// What is the same of a process as long as nobody works on it.
fn status(pid: Pid) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let lasting = ["State", "TracerPid", "SigPnd", "SigBlk", "Seccomp", "FDSize"];
    let lines = status.lines().filter(|line| lasting.iter().any(|name| line.starts_with(name)));
    lines.map(str::to_owned).collect()
}

/// A restore of mounts whose masters cannot be connected: both tools tell it long before their timeout.
#[track_caller]
fn refused(sandbox: &Sandbox, image: &str, why: &str) {
    let begun = Instant::now();
    let restore = Tool::restore().target(sandbox).arg("--timeout=30").stdin(image);
    let (restored, fixed) = restore.pipe(Tool::fixup());
    fixed.assert_code(1).assert_stderr_contains(why);
    restored.assert_code(1).assert_stderr_contains("everything was undone");
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
}

/// Before any timeout.
const SOON: Duration = Duration::from_secs(15);

/// A program of 32-bit code that says "ready", and once more for each byte that it reads.
const PROGRAM_32: &[u8] = &[
    0xb8, 0x04, 0, 0, 0, // mov $4, %eax (write)
    0xbb, 0x01, 0, 0, 0, // mov $1, %ebx
    0xb9, 0x8b, 0x80, 0x04, 0x08, // mov $ready, %ecx
    0xba, 0x06, 0, 0, 0, // mov $6, %edx
    0xcd, 0x80, // int $0x80
    0xb8, 0x03, 0, 0, 0, // mov $3, %eax (read)
    0x31, 0xdb, // xor %ebx, %ebx
    0xb9, 0x00, 0x90, 0x04, 0x08, // mov $buffer, %ecx
    0xba, 0x01, 0, 0, 0, // mov $1, %edx
    0xcd, 0x80, // int $0x80
    0x83, 0xf8, 0x01, // cmp $1, %eax
    0x74, 0xd2, // je start
    0xb8, 0x01, 0, 0, 0, // mov $1, %eax (exit)
    0x31, 0xdb, // xor %ebx, %ebx
    0xcd, 0x80, // int $0x80
];

/// Where the program is loaded.
const ADDRESS: u32 = 0x0804_8000;

/// The file of that program (elf(5)): one segment, with all of the file and a page to write to.
fn program_32() -> Vec<u8> {
    let text = b"ready\n";
    // Right behind one program header.
    let entry = 52 + 32;
    let code_at = ADDRESS + entry;
    let size = entry + (PROGRAM_32.len() + text.len()) as u32;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    let halves = |one: u16, two: u16| u32::from(one) | u32::from(two) << 16;
    // Executable for the 80386, version, entry, program headers, section headers, flags, sizes.
    for word in [halves(2, 3), 1, code_at, 52, 0, 0, halves(52, 32), halves(1, 40), 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    // PT_LOAD at 0, to be read, written and executed, with a second page that is not in the file.
    for word in [1, 0, ADDRESS, ADDRESS, size, 0x2000, 7, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.resize(entry as usize, 0);
    file.extend_from_slice(PROGRAM_32);
    file.extend_from_slice(text);
    file
}

#[test]
fn a_master_of_32_bits_is_refused_before_it_is_stopped() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("of-32-bits");
    fs::write(&file, program_32())?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    let runs = TestCommand::new(&file).stdin("x").run();
    if runs.stdout != "ready\nready\n" {
        skip("the kernel runs no 32-bit programs");
        return Ok(());
    }
    Odd::start(&format!("{} <&8", file.display()))?.assert_refused("it runs a 32-bit program");
    Ok(())
}

#[test]
fn a_master_without_the_rights_is_told_from_one_in_another_user_namespace() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let drop = "setpriv --inh-caps=-sys_admin --bounding-set=-sys_admin";
    Odd::start(&format!("{drop} sleep infinity"))?.assert_refused("has no CAP_SYS_ADMIN");
    Odd::start("unshare --user --map-root-user sleep infinity")?
        .assert_refused("is in another user namespace: the kernel does not let it use /dev/autofs");
    Ok(())
}

#[test]
fn a_master_with_a_debugger_is_refused_by_the_debugger() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let mut odd = Odd::start("sleep infinity")?;
    let pid = odd.pid().to_nix();
    // In a thread, whose end ends the tracing.
    std::thread::scope(|scope| {
        let debugger = scope.spawn(|| {
            nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty())?;
            odd.assert_refused(&format!("is traced by process {}", nix::unistd::gettid()));
            Ok(())
        });
        debugger.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_master_in_a_frozen_group_is_refused_and_goes_on_when_it_is_thawed() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let Some(group) = Group::new()? else {
        skip("there is no control group with a freezer");
        return Ok(());
    };
    let sandbox = Sandbox::new()?;
    let mut master = sandbox.master(MasterOptions::new().direct("d"))?;
    let image = dump(&sandbox);
    make_catatonic(&sandbox, &image);
    group.take(master.pid())?;
    group.freeze(true)?;
    refused(&sandbox, &image, "is frozen");
    group.freeze(false)?;
    master.assert_undisturbed();
    connected(&sandbox, &image);
    sandbox.touch(sandbox.path("d"))?;
    master.assert_undisturbed();
    drop(master);
    sandbox.close()
}

/// All is connected.
#[track_caller]
fn connected(sandbox: &Sandbox, image: &str) {
    let (restored, fixed) =
        Tool::restore().target(sandbox).arg("--timeout=30").stdin(image).pipe(Tool::fixup());
    fixed.assert_success();
    restored.assert_success();
}

/// A control group of its own (cgroups(7), version 2).
struct Group(PathBuf);

impl Group {
    fn new() -> Result<Option<Self>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let root =
            mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let Some(root) = root else { return Ok(None) };
        let group = Path::new(root).join(format!("autofs-cr-frozen-{}", std::process::id()));
        if fs::create_dir(&group).is_err() {
            return Ok(None);
        }
        let group = Self(group);
        Ok(group.0.join("cgroup.freeze").exists().then_some(group))
    }

    fn take(&self, pid: Pid) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).context("move a process")
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        fs::write(self.0.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        let wanted = format!("frozen {}", u8::from(frozen));
        let deadline = Instant::now() + DEADLINE;
        while !fs::read_to_string(self.0.join("cgroup.events"))?.contains(&wanted) {
            ensure!(Instant::now() < deadline, "it is not {wanted} in time");
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.freeze"), "0");
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let deadline = Instant::now() + DEADLINE;
        while fs::remove_dir(&self.0).is_err() && self.0.exists() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_master_that_hangs_itself_is_named_by_its_thread() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    let _hung = sandbox.master(MasterOptions::new().direct("hung").arg("--swallow"))?;
    let program = format!("cat {}", sandbox.path("hung").display());
    let mut odd = Odd::start_in(sandbox, &program)?;
    let pid = odd.pid();
    odd.wait_until("it hangs", |pid| {
        fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|name| name == "autofs_wait")
    });
    let (image, before) = (odd.image.clone(), odd.sandbox.mountinfo());
    refused(
        &odd.sandbox,
        &image,
        &format!("thread {pid} of process {pid} does not stop (it sleeps in autofs_wait"),
    );
    assert_eq!(odd.sandbox.mountinfo(), before);
    assert!(odd.process.process().is_running());
    Ok(())
}

#[test]
fn a_master_is_connected_whatever_it_may_not_do_and_does_meanwhile() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let target = program("remote-target").display().to_string();
    Odd::start("setpriv --no-new-privs sleep infinity")?.assert_connected();
    Odd::start(&format!("{target} undumpable <&8"))?.assert_connected();
    Odd::start(&format!("{target} timer <&8"))?.assert_connected();
    // It starts others all the time, and waits for them.
    Odd::start("sh -c 'while /bin/true; do :; done'")?.assert_connected();
    Ok(())
}

#[test]
fn a_master_that_executes_itself_all_the_time_is_connected() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let sandbox = Sandbox::new()?;
    let again = sandbox.path("again");
    fs::write(sandbox.outside(&again), format!("#!/bin/sh\nexec {}\n", again.display()))?;
    fs::set_permissions(sandbox.outside(&again), fs::Permissions::from_mode(0o755))?;
    Odd::start_in(sandbox, &again.display().to_string())?.assert_connected();
    Ok(())
}
