//! Answering requests.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use autofs_cr_common::model::Device;
use autofs_cr_common::sys::autofs::ControlDevice;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::cli::{Cli, Identity};
use super::mounts::autofs_mounts;
use super::packet::{Kind, Packet};
use super::report::{Counters, MountReport, Report};

/// The key that does not exist.
const MISSING: &str = "missing";

/// One autofs mount of this master.
#[derive(Debug)]
pub struct Mount {
    pub path: PathBuf,
    pub device: Device,
    pub inode: u64,
    pub control: Option<OwnedFd>,
    pub read_fd: i32,
}

/// What the master knows.
#[derive(Debug)]
pub struct Daemon {
    pub device: ControlDevice,
    pub counters: Counters,
    pub mood: Mood,
    mounts: Vec<Mount>,
    by_device: HashMap<u32, usize>,
    identity: Identity,
    browsed: Vec<String>,
    _write_ends: Vec<OwnedFd>,
}

/// What it does about requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It answers them.
    Serving,
    /// It reads them, and does not answer.
    Swallowing,
    /// It does not read them.
    Ignoring,
}

impl Mood {
    fn of(cli: &Cli) -> Self {
        match (cli.ignore_requests, cli.swallow) {
            (true, _) => Self::Ignoring,
            (_, true) => Self::Swallowing,
            _ => Self::Serving,
        }
    }
}

/// Opens the root of a mount, also where something covers it.
pub fn open_root(device: &ControlDevice, path: &Path, number: Device) -> Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).context("a path with a NUL byte")?;
    device.open_mount(&name, number).with_context(|| format!("open the autofs mount {}", path.display()))
}

impl Daemon {
    /// One without mounts.
    pub fn new(cli: &Cli) -> Result<Self> {
        Ok(Self {
            device: ControlDevice::open().context("open /dev/autofs")?,
            counters: Counters::default(),
            mounts: Vec::new(),
            by_device: HashMap::new(),
            identity: cli.identity,
            mood: Mood::of(cli),
            browsed: cli.subdir.clone(),
            _write_ends: Vec::new(),
        })
    }

    /// Adds a mount.
    pub fn add(&mut self, mount: Mount) {
        self.by_device.insert(mount.device.encode(), self.mounts.len());
        self.mounts.push(mount);
    }

    /// Keeps the write ends open.
    pub fn keep(&mut self, write_ends: Vec<OwnedFd>) {
        self._write_ends = write_ends;
    }

    /// What it holds and has counted.
    pub fn report(&self) -> Report {
        let mounts = self.mounts.iter().map(|mount| MountReport {
            path: mount.path.clone(),
            device: mount.device.to_string(),
            inode: mount.inode,
            control_fd: mount.control.as_ref().map(AsRawFd::as_raw_fd),
            read_fd: mount.read_fd,
        });
        Report { pid: nix::unistd::getpid().as_raw(), mounts: mounts.collect(), counters: self.counters }
    }

    /// A descriptor on the root of the mount at `path`, for an expire from another thread.
    pub fn root_at(&self, path: &Path) -> Result<OwnedFd> {
        let mount = self.mounts.iter().find(|mount| mount.path == path).context("no such mount")?;
        match &mount.control {
            Some(control) => control.try_clone().context("copy the control descriptor"),
            None => open_root(&self.device, &mount.path, mount.device),
        }
    }

    /// Answers what was read from a pipe: one packet.
    pub fn handle(&mut self, bytes: &[u8]) {
        let Some(packet) = Packet::parse(bytes) else {
            eprintln!("reference-master: {} bytes that are no packet", bytes.len());
            self.counters.errors += 1;
            return;
        };
        if self.mood == Mood::Swallowing {
            self.counters.swallowed += 1;
            return;
        }
        let Some(place) = self.place(&packet) else {
            self.counters.ignored += 1;
            return;
        };
        let outcome = self.act(&packet, &place);
        if let Err(error) = self.answer(&packet, &place, outcome) {
            // EINVAL: no wait has that token (autofs_wait_release in fs/autofs/waitq.c).
            if is_errno(&error, Errno::EINVAL) {
                self.counters.stale += 1;
                return;
            }
            eprintln!("reference-master: answer request {}: {error:#}", packet.token);
            self.counters.errors += 1;
        }
    }

    /// The mount that a packet is about; `None` if it is none of this master's.
    fn place(&self, packet: &Packet) -> Option<Place> {
        let known = self.by_device.get(&packet.device.encode()).map(|at| &self.mounts[*at]);
        match self.identity {
            Identity::Device => {}
            Identity::Inode if known.is_some_and(|mount| mount.inode == packet.inode) => {}
            Identity::Inode => return None,
            Identity::None if known.is_none() => {
                let lines = autofs_mounts().ok()?;
                let line = lines.into_iter().find(|line| line.device == packet.device)?;
                return Some(Place { path: line.path, device: packet.device, control: None });
            }
            Identity::None => {}
        }
        let mount = known?;
        let control = mount.control.as_ref().and_then(|control| control.try_clone().ok());
        Some(Place { path: mount.path.clone(), device: mount.device, control })
    }

    fn act(&mut self, packet: &Packet, place: &Place) -> Result<(), Errno> {
        let target = match packet.kind {
            Kind::MissingDirect | Kind::ExpireDirect => place.path.clone(),
            Kind::MissingIndirect | Kind::ExpireIndirect => place.path.join(&packet.name),
        };
        match packet.kind {
            Kind::MissingIndirect if packet.name == MISSING => Err(Errno::ENOENT),
            Kind::MissingIndirect => {
                match nix::unistd::mkdir(&target, nix::sys::stat::Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error),
                }
                self.mount_content(&target)
            }
            Kind::MissingDirect => self.mount_content(&target),
            // The kernel asks for a bare trigger too; that must not be unmounted itself.
            Kind::ExpireDirect if is_bare(&target, place.device) => Ok(()),
            Kind::ExpireDirect => umount2(&target, MntFlags::empty()),
            Kind::ExpireIndirect => {
                umount2(&target, MntFlags::empty())?;
                if self.browsed.iter().any(|name| **name == *packet.name) {
                    return Ok(());
                }
                fs::remove_dir(&target).map_err(|error| errno(&error))
            }
        }
    }

    fn mount_content(&self, target: &Path) -> Result<(), Errno> {
        mount(Some("content"), target, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
        let content = format!("{} {}\n", std::process::id(), self.counters.served + 1);
        fs::write(target.join("served-by"), content).map_err(|error| errno(&error))
    }

    fn answer(&mut self, packet: &Packet, place: &Place, outcome: Result<(), Errno>) -> Result<()> {
        let opened;
        let root = match &place.control {
            Some(control) => control.as_fd(),
            None => {
                opened = open_root(&self.device, &place.path, place.device)?;
                opened.as_fd()
            }
        };
        match outcome {
            Ok(()) => {
                self.device.ready(root, packet.token).context("ready")?;
                match packet.kind {
                    Kind::MissingDirect | Kind::MissingIndirect => self.counters.served += 1,
                    Kind::ExpireDirect | Kind::ExpireIndirect => self.counters.expired += 1,
                }
            }
            Err(errno) => {
                self.device.fail(root, packet.token, errno).context("fail")?;
                self.counters.failed += 1;
            }
        }
        Ok(())
    }
}

/// Whether nothing is mounted on a direct trigger. The master's own walks start no mount.
fn is_bare(trigger: &Path, device: Device) -> bool {
    fs::symlink_metadata(trigger).is_ok_and(|metadata| Device::from_stat(metadata.dev()) == device)
}

struct Place {
    path: PathBuf,
    device: Device,
    control: Option<OwnedFd>,
}

fn is_errno(error: &anyhow::Error, errno: Errno) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.raw_os_error() == Some(errno as i32))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}
