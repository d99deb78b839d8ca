//! What must hold of an image before anything is planned from it. Its fields are already of the right
//! types; here is whether they fit together, and whether its paths stay where they belong.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use autofs_cr_common::doc::Image;
use autofs_cr_common::doc::image::{End, Mount, Superblock};
use autofs_cr_common::model::{Device, State, TextPath};

/// More superblocks or mounts than any host has (fs.mount-max is 100,000 by default).
const MAX_ENTRIES: usize = 1_000_000;

/// The highest device number that a new superblock can be given in reasonable time. The kernel hands out the
/// lowest free number, so that each lower one that is free costs a superblock and a descriptor until the end.
/// Hosts have some thousands.
const MAX_MINOR: u32 = 1 << 18;

/// The longest timeout, in seconds. The kernel counts it in ticks of a signed long, up to 1,000 a second, and lets a product
/// that is too large wrap: the mounts would expire at once.
const MAX_TIMEOUT: u64 = i64::MAX as u64 / 1000;

/// The longest path that a system call takes, and the longest name in it (linux/limits.h).
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// The longest id of a master.
const MAX_ID: usize = 255;

/// What is wrong with an image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    #[error("{0} has more than {MAX_ENTRIES} entries")]
    TooMany(&'static str),
    #[error("masters: the id '{0}' is empty or stands twice")]
    MasterId(String),
    #[error("masters: the id '{0}...' is longer than {MAX_ID} bytes, or has a control character")]
    NoMasterId(String),
    #[error("master {0}: the pipe {1} stands twice")]
    PipeTwice(String, u64),
    #[error("{0}: {1} is no descriptor number")]
    Descriptor(String, i32),
    #[error("superblock {0} stands twice")]
    DeviceTwice(Device),
    #[error("superblock {0} has a major number; an autofs superblock has none (0:N, N not 0)")]
    Major(Device),
    #[error(
        "superblock {0}: its device number is above 0:{MAX_MINOR}, which cannot be made in reasonable time"
    )]
    HighMinor(Device),
    #[error("superblock {0}: its state is unknown; dump it again with the rights to see it")]
    Unknown(Device),
    #[error("superblock {0}: it is {1}, but names no master and pipe")]
    NoMaster(Device, State),
    #[error("superblock {0}: it is catatonic, but names a master or a pipe")]
    Served(Device),
    #[error("superblock {0}: there is no master '{1}'")]
    WhichMaster(Device, String),
    #[error("superblock {0}: master '{1}' has no pipe {2}")]
    WhichPipe(Device, String, u64),
    #[error("superblock {0}: minproto {1} and maxproto {2} are no range of protocol versions (3 to 5)")]
    Protocol(Device, u32, u32),
    #[error("superblock {0}: a timeout of {1} seconds is more than the kernel can count ({MAX_TIMEOUT})")]
    Timeout(Device, u64),
    #[error("superblock {0}: the path '{1}' inside it is not relative and plain")]
    InnerPath(Device, TextPath),
    #[error("superblock {0}: '{1}' stands twice, or before the directory it is in")]
    InnerOrder(Device, TextPath),
    #[error("superblock {0}: the symlink '{1}' has no target")]
    NoLinkTarget(Device, TextPath),
    #[error("superblock {0}: no mount shows it")]
    NotMounted(Device),
    #[error("mount {0}: there is no superblock {1}")]
    WhichSuperblock(TextPath, Device),
    #[error("mount point '{0}' is not absolute and plain (no '.', '..', '//', and not '/')")]
    MountPoint(TextPath),
    #[error("mount point '{0}...' is longer than {MAX_PATH} bytes, or a name in it than {MAX_NAME}")]
    LongMountPoint(String),
    #[error("mount {0}: its root '{1}' is not absolute and plain")]
    Root(TextPath, TextPath),
    #[error("mount {0}: the option '{1}' is not known")]
    Option(TextPath, String),
}

/// Checks an image.
pub fn check(image: &Image) -> Result<(), Fault> {
    check_size(image)?;
    check_masters(image)?;
    let devices = check_superblocks(image)?;
    check_mounts(image, devices)
}

fn check_size(image: &Image) -> Result<(), Fault> {
    let lists = [
        ("masters", image.masters.len()),
        ("superblocks", image.superblocks.len()),
        ("mounts", image.mounts.len()),
    ];
    match lists.into_iter().find(|(_, length)| *length > MAX_ENTRIES) {
        Some((name, _)) => Err(Fault::TooMany(name)),
        None => Ok(()),
    }
}

fn check_masters(image: &Image) -> Result<(), Fault> {
    let mut ids = HashSet::new();
    for master in &image.masters {
        if master.id.is_empty() || !ids.insert(&master.id) {
            return Err(Fault::MasterId(master.id.clone()));
        }
        if master.id.len() > MAX_ID || master.id.contains(char::is_control) {
            return Err(Fault::NoMasterId(beginning(&master.id)));
        }
        let mut pipes = HashSet::new();
        for pipe in &master.pipes {
            if !pipes.insert(pipe.inode) {
                return Err(Fault::PipeTwice(master.id.clone(), pipe.inode));
            }
            check_ends(&format!("master {}", master.id), pipe.read_end.iter().chain(&pipe.write_end))?;
        }
    }
    Ok(())
}

fn check_ends<'a>(whose: &str, ends: impl Iterator<Item = &'a End>) -> Result<(), Fault> {
    for end in ends {
        // The kernel's own bound (fs.nr_open may be lowered, but not raised above it).
        if !(0..1 << 30).contains(&end.fd) {
            return Err(Fault::Descriptor(whose.to_owned(), end.fd));
        }
    }
    Ok(())
}

fn check_superblocks(image: &Image) -> Result<HashMap<Device, bool>, Fault> {
    let masters: HashMap<&str, HashSet<u64>> = image
        .masters
        .iter()
        .map(|master| (master.id.as_str(), master.pipes.iter().map(|pipe| pipe.inode).collect()))
        .collect();
    let mut shown = HashMap::with_capacity(image.superblocks.len());
    for superblock in &image.superblocks {
        let device = superblock.device;
        if device.major != 0 || device.minor == 0 {
            return Err(Fault::Major(device));
        }
        if device.minor > MAX_MINOR {
            return Err(Fault::HighMinor(device));
        }
        if shown.insert(device, false).is_some() {
            return Err(Fault::DeviceTwice(device));
        }
        check_service(superblock, &masters)?;
        check_protocol(superblock)?;
        if superblock.options.timeout > MAX_TIMEOUT {
            return Err(Fault::Timeout(device, superblock.options.timeout));
        }
        check_inside(superblock)?;
        check_ends(&format!("superblock {device}"), superblock.control_fds.iter())?;
    }
    Ok(shown)
}

fn check_service(superblock: &Superblock, masters: &HashMap<&str, HashSet<u64>>) -> Result<(), Fault> {
    let device = superblock.device;
    match (superblock.state, &superblock.master, superblock.pipe) {
        (State::Unknown, _, _) => Err(Fault::Unknown(device)),
        (State::Catatonic, None, None) => Ok(()),
        (State::Catatonic, _, _) => Err(Fault::Served(device)),
        (_, Some(id), Some(pipe)) => match masters.get(id.as_str()) {
            None => Err(Fault::WhichMaster(device, id.clone())),
            Some(pipes) if !pipes.contains(&pipe) => Err(Fault::WhichPipe(device, id.clone(), pipe)),
            Some(_) => Ok(()),
        },
        (state, _, _) => Err(Fault::NoMaster(device, state)),
    }
}

fn check_protocol(superblock: &Superblock) -> Result<(), Fault> {
    let options = &superblock.options;
    let fits = options.minproto <= options.maxproto && options.maxproto >= 3 && options.minproto <= 5;
    if fits { Ok(()) } else { Err(Fault::Protocol(superblock.device, options.minproto, options.maxproto)) }
}

fn check_inside(superblock: &Superblock) -> Result<(), Fault> {
    let device = superblock.device;
    let mut directories: HashSet<&Path> = HashSet::from([Path::new("")]);
    let directory_paths = superblock.directories.iter().map(|directory| &directory.path);
    let link_paths = superblock.symlinks.iter().map(|link| &link.path);
    for (path, is_directory) in
        directory_paths.map(|path| (path, true)).chain(link_paths.map(|path| (path, false)))
    {
        if path.as_bytes().is_empty() || !is_plain(path) || path.is_absolute() {
            return Err(Fault::InnerPath(device, path.clone()));
        }
        let parent_is_there = path.parent().is_some_and(|parent| directories.contains(parent));
        if !parent_is_there || directories.contains(path.as_ref() as &Path) {
            return Err(Fault::InnerOrder(device, path.clone()));
        }
        if is_directory {
            directories.insert(path);
        }
    }
    match superblock.symlinks.iter().find(|link| link.target.as_bytes().is_empty()) {
        Some(link) => Err(Fault::NoLinkTarget(device, link.path.clone())),
        None => Ok(()),
    }
}

fn check_mounts(image: &Image, mut shown: HashMap<Device, bool>) -> Result<(), Fault> {
    for mount in &image.mounts {
        if !is_absolute_and_plain(&mount.mount_point) || mount.mount_point.as_bytes() == b"/" {
            return Err(Fault::MountPoint(mount.mount_point.clone()));
        }
        if is_too_long(&mount.mount_point) {
            return Err(Fault::LongMountPoint(beginning(&mount.mount_point.to_string())));
        }
        if !is_absolute_and_plain(&mount.root) {
            return Err(Fault::Root(mount.mount_point.clone(), mount.root.clone()));
        }
        match shown.get_mut(&mount.device) {
            Some(shown) => *shown = true,
            None => return Err(Fault::WhichSuperblock(mount.mount_point.clone(), mount.device)),
        }
        check_options(mount)?;
    }
    match shown.into_iter().filter(|(_, shown)| !shown).map(|(device, _)| device).min() {
        Some(device) => Err(Fault::NotMounted(device)),
        None => Ok(()),
    }
}

fn check_options(mount: &Mount) -> Result<(), Fault> {
    match crate::attributes::parse(&mount.options) {
        Ok(_) => Ok(()),
        Err(option) => Err(Fault::Option(mount.mount_point.clone(), option)),
    }
}

fn is_too_long(path: &Path) -> bool {
    let path = path.as_os_str().as_bytes();
    path.len() > MAX_PATH || path.split(|&byte| byte == b'/').any(|name| name.len() > MAX_NAME)
}

/// Enough of a long text to find it.
fn beginning(text: &str) -> String {
    text.chars().take(40).collect()
}

fn is_absolute_and_plain(path: &TextPath) -> bool {
    path.is_absolute() && is_plain(path)
}

/// No `.`, no `..`, no empty part, no slash at the end.
fn is_plain(path: &TextPath) -> bool {
    let path = path.as_bytes();
    let names = path.strip_prefix(b"/").unwrap_or(path);
    names.is_empty() || names.split(|&byte| byte == b'/').all(|name| !matches!(name, b"" | b"." | b".."))
}

#[cfg(test)]
mod tests {
    use autofs_cr_common::doc;

    use super::*;

    const GOOD: &str = r#"format: autofs-cr/image/1
masters:
- {id: m, kind: unknown, command: m, pid: 7, pipes: [{inode: 9, read_end: {fd: 5}}]}
superblocks:
- {device: "0:45", options: {type: direct, timeout: 1, minproto: 5, maxproto: 5}, state: connected, master: m, pipe: 9, directories: [{path: a, mode: "0755"}, {path: a/b, mode: "0755"}], symlinks: [{path: l, target: x}]}
mounts:
- {mount_point: /m, device: "0:45", root: /, source: x, options: "rw,relatime", propagation: private}
...
"#;

    fn fault_of(from: &str, to: &str) -> Option<String> {
        assert!(GOOD.contains(from), "{from} is not in the image");
        let text = GOOD.replacen(from, to, 1);
        let image: Image =
            doc::parse(text.as_bytes(), "image").unwrap_or_else(|error| panic!("{to}: {error}"));
        check(&image).err().map(|fault| fault.to_string())
    }

    #[test]
    fn a_good_image_passes() {
        assert_eq!(fault_of("id: m", "id: m"), None);
    }

    #[test]
    fn each_fault_is_named() {
        for (from, to, named) in [
            ("id: m", "id: ''", "is empty or stands twice"),
            ("fd: 5", "fd: -1", "no descriptor number"),
            ("inode: 9", "inode: 8", "no pipe 9"),
            ("master: m", "master: n", "no master 'n'"),
            ("master: m, pipe: 9, ", "", "names no master and pipe"),
            ("state: connected", "state: unknown", "its state is unknown"),
            ("state: connected", "state: catatonic", "names a master or a pipe"),
            ("\"0:45\", options", "\"8:1\", options", "has a major number"),
            ("\"0:45\", options", "\"0:900000\", options", "cannot be made in reasonable time"),
            ("\"0:45\", root", "\"0:46\", root", "no superblock 0:46"),
            ("minproto: 5", "minproto: 6", "no range of protocol"),
            ("timeout: 1", "timeout: 9223372036854776", "more than the kernel can count"),
            ("id: m", "id: \"m\\e\"", "has a control character"),
            ("point: /m", &format!("point: /{}", "m".repeat(256)), "or a name in it"),
            ("point: /m", &format!("point: {}", "/m".repeat(2048)), "longer than 4095 bytes"),
            ("path: a,", "path: /a,", "not relative and plain"),
            ("path: a,", "path: ../a,", "not relative and plain"),
            ("path: a/b", "path: c/b", "before the directory"),
            ("path: a/b", "path: a", "stands twice"),
            ("path: l", "path: a", "stands twice"),
            ("target: x", "target: ''", "has no target"),
            ("point: /m", "point: m", "is not absolute and plain"),
            ("point: /m", "point: /", "is not absolute and plain"),
            ("point: /m", "point: /a/../m", "is not absolute and plain"),
            ("point: /m", "point: //m", "is not absolute and plain"),
            ("point: /m", "point: /a/./m", "is not absolute and plain"),
            ("point: /m", "point: /m/", "is not absolute and plain"),
            ("root: /,", "root: a,", "is not absolute and plain"),
            ("rw,relatime", "rw,wild", "the option 'wild' is not known"),
        ] {
            let fault = fault_of(from, to).unwrap_or_else(|| panic!("{to} was taken"));
            assert!(fault.contains(named), "{to}: {fault}");
        }
    }

    #[test]
    fn a_superblock_without_a_mount_is_refused() {
        let text = GOOD.replace("mounts:\n- {mount_point: /m, device: \"0:45\"", "mounts: []\n#");
        let image: Image = doc::parse(text.as_bytes(), "image").expect("parses");
        assert_eq!(check(&image), Err(Fault::NotMounted(Device::anonymous(45))));
    }
}
