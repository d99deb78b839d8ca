//! Single steps on autofs mounts, for the tests of kernel facts: each runs inside a sandbox, prints
//! what it saw, and exits with 10 and the errno on standard error when the kernel refused.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use autofs_cr_common::model::Device;
use autofs_cr_common::sys::autofs::ControlDevice;
use autofs_cr_tests::master::packet::{Packet, SIZE};
use clap::{Parser, Subcommand};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::ioctl_fionread;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, tee};

/// One step.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Mount autofs with a write end cloned from a read end of another process
    Mount { path: PathBuf, kind: String, master: i32, read_fd: i32, pgrp: i32 },
    /// Open the root of the mount with this device
    Open { path: PathBuf, device: Device },
    /// Make it catatonic
    Catatonic { path: PathBuf, device: Device },
    /// Set its pipe from this process, with a write end cloned from a read end of another
    SetPipe { path: PathBuf, device: Device, master: i32, read_fd: i32 },
    /// Make it orphaned: its pipe is one whose reader, this process, ends
    Orphan { path: PathBuf, device: Device },
    /// Mount a directory beneath what is mounted at a path
    Beneath { directory: PathBuf, path: PathBuf },
    /// Set its timeout
    Timeout { path: PathBuf, device: Device, seconds: u64 },
    /// Copy the unread requests of a pipe: prints "bytes COUNT", then one line each
    Peek { master: i32, read_fd: i32 },
    /// Answer a request
    Ready { path: PathBuf, device: Device, token: u32 },
    /// Mount, unmount and mount again: prints the device numbers
    Reuse { path: PathBuf },
    /// statx(2), with AT_NO_AUTOMOUNT or without
    Statx {
        path: PathBuf,
        #[arg(long)]
        no_automount: bool,
    },
    /// mkdir
    Mkdir { path: PathBuf },
    /// Open a name from a descriptor of a directory
    OpenAt { directory: PathBuf, name: PathBuf },
    /// Open each path in a thread of its own
    OpenInThreads { paths: Vec<PathBuf> },
}

fn main() -> ExitCode {
    match run(&Cli::parse().step) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let errno = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error)
                .or_else(|| error.downcast_ref::<Errno>().map(|errno| *errno as i32));
            eprintln!("{}", errno.unwrap_or(-1));
            ExitCode::from(10)
        }
    }
}

fn run(step: &Step) -> Result<()> {
    let device = ControlDevice::open()?;
    match step {
        Step::Mount { path, kind, master, read_fd, pgrp } => {
            let write = write_end(*master, *read_fd)?;
            let data = format!("fd={},pgrp={pgrp},minproto=5,maxproto=5,{kind}", write.as_raw_fd());
            mount(Some("probe"), path, Some("autofs"), MsFlags::empty(), Some(data.as_str()))?;
            // Not by the standard library, which calls statx(2): that starts a mount, and lstat(2) does not.
            println!("{}", Device::from_stat(nix::sys::stat::lstat(path)?.st_dev));
        }
        Step::Open { path, device: number } => {
            let root = open(&device, path, *number)?;
            println!("{}", Device::from_stat(rustix::fs::fstat(&root)?.st_dev));
        }
        Step::Catatonic { path, device: number } => {
            device.make_catatonic(open(&device, path, *number)?.as_fd())?;
        }
        Step::SetPipe { path, device: number, master, read_fd } => {
            let write = write_end(*master, *read_fd)?;
            device.set_pipe(open(&device, path, *number)?.as_fd(), write.as_fd())?;
        }
        Step::Orphan { path, device: number } => {
            let (_read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            let root = open(&device, path, *number)?;
            device.make_catatonic(root.as_fd())?;
            device.set_pipe(root.as_fd(), write.as_fd())?;
        }
        Step::Beneath { directory, path } => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(CWD, directory, flags)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
            move_mount(tree, "", CWD, path, flags)?;
        }
        Step::Timeout { path, device: number, seconds } => {
            device.set_timeout(open(&device, path, *number)?.as_fd(), Duration::from_secs(*seconds))?;
        }
        Step::Peek { master, read_fd } => peek(*master, *read_fd)?,
        Step::Ready { path, device: number, token } => {
            device.ready(open(&device, path, *number)?.as_fd(), *token)?;
        }
        Step::Reuse { path } => reuse(path)?,
        Step::Statx { path, no_automount } => {
            let flags = if *no_automount { AtFlags::NO_AUTOMOUNT } else { AtFlags::empty() };
            statx(CWD, path, flags, StatxFlags::TYPE)?;
        }
        Step::Mkdir { path } => fs::create_dir(path)?,
        Step::OpenAt { directory, name } => {
            let directory = File::open(directory)?;
            rustix::fs::openat(&directory, name, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())?;
        }
        Step::OpenInThreads { paths } => std::thread::scope(|scope| {
            let threads: Vec<_> =
                paths.iter().map(|path| scope.spawn(move || File::open(path).map(drop))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("the thread"))
        })?,
    }
    Ok(())
}

fn open(device: &ControlDevice, path: &Path, number: Device) -> Result<OwnedFd> {
    Ok(device.open_mount(&CString::new(path.as_os_str().as_bytes())?, number)?)
}

fn write_end(master: i32, read_fd: i32) -> io::Result<File> {
    OpenOptions::new().write(true).open(format!("/proc/{master}/fd/{read_fd}"))
}

/// A non-blocking copy of all requests, which stay where they are.
fn peek(master: i32, read_fd: i32) -> Result<()> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let path = format!("/proc/{master}/fd/{read_fd}");
    let source = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    println!("bytes {}", ioctl_fionread(&source)?);
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    if matches!(tee(&source, &write, 1 << 20, SpliceFlags::NONBLOCK), Err(rustix::io::Errno::AGAIN)) {
        return Ok(());
    }
    let mut bytes = [0; SIZE];
    while let Ok(size) = rustix::io::read(&read, &mut bytes) {
        match Packet::parse(&bytes[..size]) {
            Some(packet) => println!(
                "{size} {:?} token {} device {} inode {} pid {} tgid {} name {}",
                packet.kind,
                packet.token,
                packet.device,
                packet.inode,
                packet.pid,
                packet.tgid,
                packet.name.to_string_lossy()
            ),
            None => println!("{size} no packet"),
        }
    }
    Ok(())
}

fn reuse(path: &Path) -> Result<()> {
    for _ in 0..2 {
        mount(Some("probe"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        println!("{}", Device::from_stat(fs::metadata(path)?.dev()));
        umount2(path, MntFlags::empty())?;
    }
    Ok(())
}
