//! Running one command, in the namespaces of a sandbox or outside.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, raise};
use nix::unistd::{Gid, Uid, chroot, fchdir, setgid, setgroups, setsid, setuid};

use super::Program;
use super::link::Link;

/// Starts the command, tells its pid (as seen here), and later its end.
pub fn run(link: &str, enter: Option<i32>, program: &Program) -> Result<ExitCode> {
    let mut link = Link::connect(link)?;
    let helper = std::env::current_exe().context("find this program")?;
    if let Some(pid) = enter {
        enter_namespaces(pid)?;
    }
    let mut command = Command::new(helper);
    command.arg("exec");
    if let Some(uid) = program.uid {
        command.arg(format!("--uid={uid}"));
    }
    command.args(program.held.then_some("--held"));
    let mut child = command.arg("--").args(&program.words).spawn().context("start the command")?;
    link.tell(&format!("pid {}", child.id()))?;
    link.watch(&mut child)?;
    Ok(ExitCode::SUCCESS)
}

/// Enters the mount and pid namespace and the root of `pid`. The pid namespace counts for children.
fn enter_namespaces(pid: i32) -> Result<()> {
    let open = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        File::open(&path).with_context(|| format!("open {path}"))
    };
    let (pids, mounts, root) = (open("ns/pid")?, open("ns/mnt")?, open("root")?);
    setns(pids, CloneFlags::CLONE_NEWPID).context("enter the pid namespace")?;
    setns(mounts, CloneFlags::CLONE_NEWNS).context("enter the mount namespace")?;
    fchdir(&root).context("enter the root")?;
    chroot(".").context("change the root")?;
    Ok(())
}

/// Becomes the command: in a session of its own, as the wanted user, and killed when its parent ends.
pub fn exec(program: &Program) -> Result<ExitCode> {
    setsid().context("start a session")?;
    let Some((name, arguments)) = program.words.split_first() else { bail!("no command") };
    let mut command = Command::new(name);
    // Held open, so that a user who may not walk to the program can run it.
    let held;
    if let Some(uid) = program.uid {
        held = File::open(name).with_context(|| format!("open {}", name.to_string_lossy()))?;
        command = Command::new(format!("/proc/self/fd/{}", held.as_raw_fd()));
        command.arg0(name);
        setgroups(&[]).context("drop the groups")?;
        setgid(Gid::from_raw(uid)).context("change the group")?;
        setuid(Uid::from_raw(uid)).context("change the user")?;
    }
    // After the change of user, which clears it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("tie this process to its parent")?;
    if program.held {
        raise(Signal::SIGSTOP).context("wait for the tracer")?;
    }
    let error = command.args(arguments).exec();
    eprintln!("sandbox-init: run {}: {error}", name.to_string_lossy());
    Ok(ExitCode::from(127))
}
