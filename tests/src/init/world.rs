//! The namespaces of a sandbox and what is mounted in them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, pivot_root, setsid};

use super::World;
use super::link::Link;

/// Makes the namespaces, starts their init, tells its pid when it is ready, and ends it when the
/// link closes.
pub fn new(link: &str, same_pid_namespace: bool, world: &World) -> Result<ExitCode> {
    let mut link = Link::connect(link)?;
    let helper = std::env::current_exe().context("find this program")?;
    let pids = if same_pid_namespace { CloneFlags::empty() } else { CloneFlags::CLONE_NEWPID };
    unshare(CloneFlags::CLONE_NEWNS | pids).context("make the namespaces")?;
    mount_at(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;

    let mut command = Command::new(helper);
    command.arg("init").arg("--work").arg(&world.work);
    command.args(same_pid_namespace.then_some("--same-pid-namespace"));
    command.args(world.fresh_root.then_some("--fresh-root"));
    command.args(world.shm.then_some("--shm"));
    for directory in &world.bind {
        command.arg("--bind").arg(directory);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start the init")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("the init has no output")?).read_line(&mut line)?;
    if line != "ready\n" {
        child.wait()?;
        bail!("the init did not become ready");
    }
    link.tell(&format!("pid {}", child.id()))?;
    let watched = link.watch(&mut child);
    if same_pid_namespace {
        end_all_others()?;
    }
    watched.map(|_| ExitCode::SUCCESS)
}

/// Ends the processes of this mount namespace, which is the sandbox's own. Where it has a pid
/// namespace too, the end of its init does this.
fn end_all_others() -> Result<()> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = namespace("self").context("read the own mount namespace")?;
    loop {
        let mut others = 0;
        for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
            let name = entry.file_name();
            let Some((text, pid)) = name.to_str().and_then(|text| Some((text, text.parse().ok()?))) else {
                continue;
            };
            let pid = Pid::from_raw(pid);
            if pid != Pid::this() && namespace(text).as_ref() == Some(&own) {
                // One that has ended meanwhile is fine.
                let _ = kill(pid, Signal::SIGKILL);
                others += 1;
            }
        }
        if others == 0 {
            return Ok(());
        }
    }
}

/// The init: mounts what the sandbox has, says so, and reaps until it is killed.
pub fn init(same_pid_namespace: bool, world: &World) -> Result<ExitCode> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("tie the init to its parent")?;
    setsid().context("start a session")?;
    if same_pid_namespace {
        nix::sys::prctl::set_child_subreaper(true).context("become a reaper")?;
    }
    build(world)?;
    reap_for_ever()
}

fn build(world: &World) -> Result<()> {
    if world.fresh_root {
        fresh_root(world)?;
    }
    mount_at(Some("proc"), Path::new("/proc"), Some("proc"), MsFlags::empty())?;
    mount_at(Some("work"), &world.work, Some("tmpfs"), MsFlags::empty())?;
    if world.shm {
        mount_at(Some("shm"), Path::new("/dev/shm"), Some("tmpfs"), MsFlags::empty())?;
    }
    chdir("/").context("go to the root")
}

/// A root on a tmpfs with only what programs need.
fn fresh_root(world: &World) -> Result<()> {
    let root = &world.work;
    mount_at(Some("root"), root, Some("tmpfs"), MsFlags::empty())?;
    for directory in ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/dev"].map(PathBuf::from) {
        show(root, &directory)?;
    }
    for directory in &world.bind {
        show(root, directory)?;
    }
    for directory in [Path::new("/proc"), Path::new("/tmp"), root, Path::new("/.old")] {
        fs::create_dir_all(inside(root, directory)).context("make a directory of the root")?;
    }
    pivot_root(root, &inside(root, Path::new("/.old"))).context("change the root")?;
    chdir("/").context("go to the root")?;
    umount2("/.old", MntFlags::MNT_DETACH).context("leave the old root")?;
    fs::remove_dir("/.old").context("remove the old root")
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Has a directory or a symlink of the old root in the new one.
fn show(root: &Path, path: &Path) -> Result<()> {
    let place = inside(root, path);
    let Ok(kind) = path.symlink_metadata() else { return Ok(()) };
    if kind.is_symlink() {
        return symlink(fs::read_link(path)?, &place).with_context(|| format!("link {}", place.display()));
    }
    fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(path), &place, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("bind {}", path.display()))
}

fn mount_at(source: Option<&str>, path: &Path, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    let data = (kind == Some("tmpfs")).then_some("mode=0755");
    mount(source, path, kind, flags, data).with_context(|| format!("mount on {}", path.display()))
}

fn reap_for_ever() -> Result<ExitCode> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().context("block SIGCHLD")?;
    std::io::stdout().write_all(b"ready\n").context("say ready")?;
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => {
                children.wait().context("wait for children")?;
            }
            _ => {}
        }
    }
}
