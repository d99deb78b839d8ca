//! The floors: plain loops of the system calls that a stage cannot do without.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use autofs_cr_common::model::{Device, Pid};
use autofs_cr_common::sys::autofs::{ControlDevice, set_timeout_as_admin};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::cli::{Loop, LoopOrder};
use crate::measure::say;

/// The timeout that the mounts get.
pub const TIMEOUT: Duration = Duration::from_secs(300);

/// Reads all of a process's mountinfo.
pub fn read_mountinfo(pid: Pid) -> Result<Duration> {
    let mut buffer = vec![0; 1 << 16];
    let start = Instant::now();
    let mut file = File::open(format!("/proc/{pid}/mountinfo")).context("open mountinfo")?;
    while file.read(&mut buffer).context("read mountinfo")? > 0 {}
    Ok(start.elapsed())
}

/// The subcommand: a loop inside the sandbox. Prints the nanoseconds that it took.
pub fn run(order: &LoopOrder) -> Result<()> {
    let place = Mounts::new(order)?;
    let paths: Vec<_> = (0..order.count).map(|n| order.prefix.join(format!("{n:06}"))).collect();
    match order.what {
        Loop::Unmount => paths.iter().try_for_each(clear),
        Loop::Connect => timed(|| paths.iter().try_for_each(|path| place.connect(path))),
        Loop::Replace => timed(|| {
            paths.iter().try_for_each(|path| {
                unmount(path)?;
                place.connect(path)
            })
        }),
        Loop::Staged => place.staged(&paths),
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    work()?;
    say(&start.elapsed().as_nanos().to_string())
}

fn unmount(path: &PathBuf) -> Result<()> {
    umount2(path, MntFlags::UMOUNT_NOFOLLOW).with_context(|| format!("unmount {}", path.display()))
}

/// Unmounts all that is mounted at a place.
fn clear(path: &PathBuf) -> Result<()> {
    loop {
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("unmount {}", path.display())),
        }
    }
}

/// What all mounts have in common.
struct Mounts {
    device: ControlDevice,
    write_end: OwnedFd,
    master: i32,
}

impl Mounts {
    fn new(order: &LoopOrder) -> Result<Self> {
        let read_end = format!("/proc/{}/fd/{}", order.master, order.read_fd);
        let write_end = OpenOptions::new().write(true).open(&read_end);
        Ok(Self {
            device: ControlDevice::open().context("open /dev/autofs")?,
            write_end: write_end.with_context(|| format!("open {read_end} for writing"))?.into(),
            master: order.master,
        })
    }

    /// A mount that is connected to the master.
    fn connect(&self, path: &PathBuf) -> Result<()> {
        let mount = self.superblock(self.master)?;
        let root = open_root(&mount)?;
        set_timeout_as_admin(root.as_fd(), TIMEOUT).context("set the timeout")?;
        attach(&mount, path)
    }

    /// Mounts that are catatonic and of this process's group; then what a fixup does with them in the
    /// master, done with them here.
    fn staged(&self, paths: &[PathBuf]) -> Result<()> {
        let group = nix::unistd::getpgrp().as_raw();
        timed(|| paths.iter().try_for_each(|path| self.create(path, group)))?;
        let devices: Vec<_> = paths
            .iter()
            .map(|path| {
                let metadata = std::fs::symlink_metadata(path).context("stat a mount")?;
                Ok((CString::new(path.as_os_str().as_bytes())?, Device::from_stat(metadata.dev())))
            })
            .collect::<Result<_>>()?;
        timed(|| devices.iter().try_for_each(|(path, device)| self.fix(path, *device)))?;
        paths.iter().try_for_each(unmount)
    }

    fn create(&self, path: &PathBuf, group: i32) -> Result<()> {
        let mount = self.superblock(group)?;
        let root = open_root(&mount)?;
        rustix::fs::fstat(&mount).context("read the device number")?;
        set_timeout_as_admin(root.as_fd(), TIMEOUT).context("set the timeout")?;
        self.device.make_catatonic(root.as_fd()).context("make it catatonic")?;
        attach(&mount, path)
    }

    fn fix(&self, path: &CString, device: Device) -> Result<()> {
        let root = self.device.open_mount(path, device).context("open a mount")?;
        self.device.set_pipe(root.as_fd(), self.write_end.as_fd()).context("set the pipe")
    }

    fn superblock(&self, group: i32) -> Result<OwnedFd> {
        let context = fsopen("autofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |name, value: String| fsconfig_set_string(context.as_fd(), name, value);
        fsconfig_set_string(context.as_fd(), "source", "reference-master")?;
        set("fd", self.write_end.as_raw_fd().to_string())?;
        set("pgrp", group.to_string())?;
        fsconfig_set_string(context.as_fd(), "minproto", "5")?;
        fsconfig_set_string(context.as_fd(), "maxproto", "5")?;
        fsconfig_set_flag(context.as_fd(), "direct")?;
        fsconfig_create(context.as_fd())?;
        Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    }
}

/// Opens the root, for the ioctls that the control device does not take from another group.
fn open_root(mount: &OwnedFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(mount, ".", flags, Mode::empty()).context("open a root")
}

fn attach(mount: &OwnedFd, path: &PathBuf) -> Result<()> {
    move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("mount on {}", path.display()))
}
