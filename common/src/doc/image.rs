//! The image: what must be. Written by dump, read by restore; portable between hosts and namespaces.
//!
//! Process ids are those of the masters' own pid namespace, which is the one of the namespace's init.

use serde::{Deserialize, Serialize};

use super::format::{Format, Kind};
use super::report::{Request, Within};
use crate::masters::MasterKind;
use crate::model::{Device, FdFlags, Options, Pid, Propagation, State, TextPath};

/// An image. All lists are in an order that equal states share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// `autofs-cr/image/1`
    pub format: Format<Image>,
    /// Who serves, by id.
    pub masters: Vec<Master>,
    /// The autofs instances, by device.
    pub superblocks: Vec<Superblock>,
    /// The mounts that show them, in the order in which they have to be made.
    pub mounts: Vec<Mount>,
}

impl Kind for Image {
    const NAME: &'static str = "image";
    const VERSION: u32 = 1;
}

/// A master.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Master {
    /// Its name in this image and for `autofs-fixup --master`: command and pid, as in `automount-312`.
    pub id: String,
    /// What kind of master it is.
    pub kind: MasterKind,
    /// Its name (/proc/PID/comm).
    pub command: TextPath,
    /// Its process id; absent if it was dead when the image was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<Pid>,
    /// Its process group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgrp: Option<Pid>,
    /// Its session; absent if it comes from outside the pid namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Pid>,
    /// Its control pipes, by inode.
    pub pipes: Vec<Pipe>,
}

/// A control pipe of a master.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Pipe {
    /// Its inode number when the image was made; `pipe` of the superblocks names it.
    pub inode: u64,
    /// The end that the master reads; absent if no process had it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_end: Option<End>,
    /// The end that the master keeps for itself; absent if it closed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_end: Option<End>,
    /// Requests that nobody had read: copied, not consumed. They cannot be restored, as the kernel
    /// makes new ones; who waited for them gets an error when the superblock is replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<Request>,
}

/// A descriptor of the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Its number.
    pub fd: i32,
    /// Its flags.
    #[serde(default, skip_serializing_if = "FdFlags::is_empty")]
    pub flags: FdFlags,
}

/// One autofs instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Superblock {
    /// Its device number.
    pub device: Device,
    /// What it was made with.
    pub options: Options,
    /// Its state when the image was made; never `unknown`.
    pub state: State,
    /// Who serves it: an `id` of `masters`; absent if it is catatonic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// Its pipe: an `inode` of the master's pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipe: Option<u64>,
    /// The process group that may walk freely, where it is another than the master's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgrp: Option<Pid>,
    /// The inode number of its root. It cannot be chosen; some masters look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// Directories inside it, parents first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<Directory>,
    /// Symbolic links inside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symlinks: Vec<Symlink>,
    /// The master's descriptors on its root, by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control_fds: Vec<End>,
}

/// A directory inside an autofs superblock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Its path from the superblock's root, without a leading slash.
    pub path: TextPath,
    /// Its permission bits, in octal.
    pub mode: Mode,
}

/// A symbolic link inside an autofs superblock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Symlink {
    /// Its path from the superblock's root, without a leading slash.
    pub path: TextPath,
    /// What it points to.
    pub target: TextPath,
}

/// Permission bits, written in octal as in `0755`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(pub u32);

#[cfg(any(test, feature = "fuzzing"))]
impl<'a> arbitrary::Arbitrary<'a> for Mode {
    fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
        u.int_in_range(0..=0o7777).map(Self)
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        format!("{:04o}", mode.0)
    }
}

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        let mode =
            digits.then(|| u32::from_str_radix(&text, 8).ok()).flatten().filter(|mode| *mode <= 0o7777);
        mode.map(Self).ok_or_else(|| format!("'{text}' is no file mode (expected octal, as in 0755)"))
    }
}

/// One mount that shows an autofs superblock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(any(test, feature = "fuzzing"), derive(arbitrary::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where it is, from the root of the target: absolute, without `.`, `..` or empty parts.
    pub mount_point: TextPath,
    /// The superblock.
    pub device: Device,
    /// The directory of the superblock that it shows: `/`, but for a bind mount of less.
    pub root: TextPath,
    /// The source, which automount(8) and systemd set to the name of the map or of themselves.
    pub source: TextPath,
    /// The options of the mount, as in mountinfo.
    pub options: String,
    /// Its propagation; peer groups are numbered from 1 in the order of this list.
    pub propagation: Propagation,
    /// What it is mounted on.
    #[serde(default, skip_serializing_if = "Within::is_other")]
    pub within: Within,
    /// It is mounted on the root of another mount, and covers that one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub covers: bool,
}

impl Image {
    /// The master with this id, if the image has it.
    pub fn master(&self, id: &str) -> Option<&Master> {
        self.masters.iter().find(|master| master.id == id)
    }
}
