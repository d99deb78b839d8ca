//! Where the master's mounts come from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use autofs_cr_common::model::{Device, KernelPipe, MountType, SuperOptions};
use autofs_cr_common::proc::mountinfo::{Line, lines, unescape};
use nix::mount::MsFlags;
use nix::unistd::getpgrp;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::pipe::{PipeFlags, pipe_with};

use super::cli::{Cli, Pipes, WriteEnd};
use super::daemon::{Daemon, Mount, open_root};

/// The read end of a pipe.
pub type ReadEnd = OwnedFd;

/// The pipe that this process inherited at a number.
pub fn inherited_pipe(number: i32) -> Result<ReadEnd> {
    autofs_cr_common::sys::inherited::take(number).with_context(|| format!("take descriptor {number}"))
}

/// Makes all mounts of the command line.
pub fn mount_all(cli: &Cli) -> Result<(Daemon, Vec<ReadEnd>)> {
    let mut daemon = Daemon::new(cli)?;
    let mut reads = Vec::new();
    let mut writes: Vec<OwnedFd> = Vec::new();
    for (mount_type, path) in wanted(cli)? {
        if writes.is_empty() || cli.pipes == Pipes::Each {
            let (read, write) = new_pipe(cli)?;
            reads.push(read);
            writes.push(write);
        }
        let (Some(read), Some(write)) = (reads.last(), writes.last()) else { bail!("no pipe") };
        if !(cli.reconnect && reconnect(&daemon, &path, write)?) {
            mount_autofs(cli, mount_type, &path, write)?;
        }
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("stat {}", path.display()))?;
        let device = Device::from_stat(metadata.dev());
        let read_fd = read.as_raw_fd();
        let control = prepare(cli, &daemon, mount_type, &path, device)?;
        daemon.add(Mount { path, device, inode: metadata.ino(), control, read_fd });
    }
    match cli.write_end {
        WriteEnd::Keep => daemon.keep(writes),
        WriteEnd::Close => drop(writes),
    }
    Ok((daemon, reads))
}

/// What the options name, direct ones first.
fn wanted(cli: &Cli) -> Result<Vec<(MountType, PathBuf)>> {
    let mut wanted = Vec::new();
    let named = [
        (MountType::Direct, &cli.direct),
        (MountType::Indirect, &cli.indirect),
        (MountType::Offset, &cli.offset),
    ];
    for (mount_type, paths) in named {
        wanted.extend(paths.iter().map(|path| (mount_type, path.clone())));
    }
    if let Some(file) = &cli.map {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        for line in text.lines() {
            let (mount_type, path) = match line.split_once(' ') {
                Some(("direct", path)) => (MountType::Direct, path),
                Some(("indirect", path)) => (MountType::Indirect, path),
                Some(("offset", path)) => (MountType::Offset, path),
                _ => bail!("{}: '{line}' is no line of a map", file.display()),
            };
            wanted.push((mount_type, path.into()));
        }
    }
    if let [prefix, count] = cli.bulk.as_slice() {
        let count: usize = count.parse().context("the count of --bulk")?;
        wanted.extend((0..count).map(|n| (MountType::Direct, format!("{prefix}/{n:06}").into())));
    }
    Ok(wanted)
}

/// A pipe; its read end has the wanted number or the next free one above.
fn new_pipe(cli: &Cli) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
    let read = match cli.read_fd {
        Some(number) => fcntl_dupfd_cloexec(&read, number).context("move the read end")?,
        None => read,
    };
    if cli.nonblock {
        rustix::io::ioctl_fionbio(&read, true).context("set O_NONBLOCK")?;
    }
    Ok((read, write))
}

fn mount_autofs(cli: &Cli, mount_type: MountType, path: &Path, write: &OwnedFd) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    let mut data = format!(
        "fd={},pgrp={},minproto={},maxproto={},{}",
        write.as_raw_fd(),
        getpgrp(),
        cli.minproto,
        cli.maxproto,
        mount_type
    );
    for (name, value) in [("uid", cli.uid), ("gid", cli.gid)] {
        if let Some(value) = value {
            data.push_str(&format!(",{name}={value}"));
        }
    }
    for (name, set) in [("strictexpire", cli.strictexpire), ("ignore", cli.ignore)] {
        if set {
            data.push_str(&format!(",{name}"));
        }
    }
    nix::mount::mount(Some("reference-master"), path, Some("autofs"), MsFlags::empty(), Some(data.as_str()))
        .with_context(|| format!("mount autofs on {}", path.display()))
}

/// Sets the pipe of a mount that is there already; false if there is none.
fn reconnect(daemon: &Daemon, path: &Path, write: &OwnedFd) -> Result<bool> {
    let Some(line) = autofs_mounts()?.into_iter().rfind(|line| line.path == path) else { return Ok(false) };
    let root = open_root(&daemon.device, path, line.device)?;
    daemon.device.make_catatonic(root.as_fd()).context("make it catatonic")?;
    daemon.device.set_pipe(root.as_fd(), write.as_fd()).context("set the pipe")?;
    Ok(true)
}

/// Sets the timeout and makes what an indirect mount shall have in it.
fn prepare(
    cli: &Cli,
    daemon: &Daemon,
    mount_type: MountType,
    path: &Path,
    device: Device,
) -> Result<Option<OwnedFd>> {
    let root = open_root(&daemon.device, path, device)?;
    daemon.device.set_timeout(root.as_fd(), Duration::from_secs(cli.timeout)).context("set the timeout")?;
    if mount_type == MountType::Indirect {
        for name in &cli.subdir {
            fs::create_dir(path.join(name)).with_context(|| format!("make the directory {name}"))?;
        }
        for link in &cli.symlink {
            let (name, target) = link.split_once('=').context("--symlink wants NAME=TARGET")?;
            symlink(target, path.join(name)).with_context(|| format!("make the symlink {name}"))?;
        }
    }
    Ok(cli.control_fds.then_some(root))
}

/// Finds the mounts whose pipe was inherited. Each superblock counts once, at its first place.
pub fn take_over(cli: &Cli, pipe: ReadEnd) -> Result<(Daemon, Vec<ReadEnd>)> {
    let inode = rustix::fs::fstat(&pipe).context("stat the pipe")?.st_ino;
    let mut daemon = Daemon::new(cli)?;
    let mut found = BTreeMap::new();
    for line in autofs_mounts()? {
        if line.options.pipe == KernelPipe::Inode(inode) {
            found.entry(line.device.encode()).or_insert(line);
        }
    }
    for line in found.into_values() {
        let (path, device) = (line.path, line.device);
        let root = open_root(&daemon.device, &path, device)?;
        let inode = rustix::fs::fstat(&root).context("stat a root")?.st_ino;
        let control = cli.control_fds.then_some(root);
        daemon.add(Mount { path, device, inode, control, read_fd: pipe.as_raw_fd() });
    }
    Ok((daemon, vec![pipe]))
}

/// An autofs line of mountinfo.
pub struct AutofsLine {
    pub path: PathBuf,
    pub device: Device,
    pub options: SuperOptions,
}

/// The autofs mounts of this mount namespace.
pub fn autofs_mounts() -> io::Result<Vec<AutofsLine>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(lines(&text).flatten().filter(Line::is_autofs).filter_map(parse_line).collect())
}

fn parse_line(line: Line<'_>) -> Option<AutofsLine> {
    let options = SuperOptions::parse(std::str::from_utf8(line.super_options).ok()?).ok()?;
    let path = OsString::from_vec(unescape(line.mount_point).into_owned()).into();
    Some(AutofsLine { path, device: line.device()?, options })
}
