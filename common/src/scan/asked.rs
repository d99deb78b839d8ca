//! The paths that a blocked system call names.
//!
//! Only texts are put together here, and links of /proc read: nothing is walked. So a symbolic link in the middle of
//! a path stays one, and `..` takes away the name before it, whatever that is.

use super::memory::Memory;
use crate::model::Pid;
use crate::proc::{ProcessDir, Syscall};

/// How a system call names a file: by the numbers of its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// A path, from the working directory.
    Path(usize),
    /// A descriptor of a directory, and a path from there.
    At(usize, usize),
    /// A descriptor.
    Descriptor(usize),
    /// The descriptor of an ioctl; on the control device of autofs, the descriptor or the path in the struct behind
    /// this address, by the command.
    Ioctl(usize, usize, usize),
}

use Name::{At, Descriptor, Ioctl, Path};

/// Where `struct autofs_dev_ioctl` of linux/auto_dev-ioctl.h has the descriptor of a mount.
const IOCTLFD: u64 = 12;
/// Where it has the path.
const IOCTL_PATH: u64 = 24;

/// The numbers of the commands that walk the path: OPENMOUNT and ISMOUNTPOINT.
const WALKING_COMMANDS: [u64; 2] = [0x74, 0x7e];

/// Where the control device is.
const CONTROL_DEVICE: &[u8] = b"/dev/autofs";

/// The system calls that walk a path, or work on an open file of autofs.
const CALLS: &[(libc::c_long, &[Name])] = &[
    (libc::SYS_openat, &[At(0, 1)]),
    (libc::SYS_openat2, &[At(0, 1)]),
    (libc::SYS_statx, &[At(0, 1)]),
    (libc::SYS_newfstatat, &[At(0, 1)]),
    (libc::SYS_faccessat, &[At(0, 1)]),
    (libc::SYS_faccessat2, &[At(0, 1)]),
    (libc::SYS_readlinkat, &[At(0, 1)]),
    (libc::SYS_execve, &[Path(0)]),
    (libc::SYS_execveat, &[At(0, 1)]),
    (libc::SYS_chdir, &[Path(0)]),
    (libc::SYS_chroot, &[Path(0)]),
    (libc::SYS_mkdirat, &[At(0, 1)]),
    (libc::SYS_mknodat, &[At(0, 1)]),
    (libc::SYS_unlinkat, &[At(0, 1)]),
    (libc::SYS_symlinkat, &[At(1, 2)]),
    (libc::SYS_linkat, &[At(0, 1), At(2, 3)]),
    (libc::SYS_renameat2, &[At(0, 1), At(2, 3)]),
    (libc::SYS_truncate, &[Path(0)]),
    (libc::SYS_statfs, &[Path(0)]),
    (libc::SYS_fchmodat, &[At(0, 1)]),
    (libc::SYS_fchownat, &[At(0, 1)]),
    (libc::SYS_utimensat, &[At(0, 1)]),
    (libc::SYS_name_to_handle_at, &[At(0, 1)]),
    (libc::SYS_inotify_add_watch, &[Path(1)]),
    (libc::SYS_fanotify_mark, &[At(3, 4)]),
    (libc::SYS_setxattr, &[Path(0)]),
    (libc::SYS_lsetxattr, &[Path(0)]),
    (libc::SYS_getxattr, &[Path(0)]),
    (libc::SYS_lgetxattr, &[Path(0)]),
    (libc::SYS_listxattr, &[Path(0)]),
    (libc::SYS_llistxattr, &[Path(0)]),
    (libc::SYS_removexattr, &[Path(0)]),
    (libc::SYS_lremovexattr, &[Path(0)]),
    // The source may be no path at all.
    (libc::SYS_mount, &[Path(1), Path(0)]),
    (libc::SYS_umount2, &[Path(0)]),
    (libc::SYS_pivot_root, &[Path(0), Path(1)]),
    (libc::SYS_open_tree, &[At(0, 1)]),
    (libc::SYS_move_mount, &[At(0, 1), At(2, 3)]),
    (libc::SYS_mount_setattr, &[At(0, 1)]),
    (libc::SYS_fspick, &[At(0, 1)]),
    (libc::SYS_fstat, &[Descriptor(0)]),
    (libc::SYS_fchdir, &[Descriptor(0)]),
    (libc::SYS_getdents64, &[Descriptor(0)]),
    (libc::SYS_ioctl, &[Ioctl(0, 1, 2)]),
];

/// Those that newer architectures do not have any more.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[(libc::c_long, &[Name])] = &[
    (libc::SYS_open, &[Path(0)]),
    (libc::SYS_creat, &[Path(0)]),
    (libc::SYS_stat, &[Path(0)]),
    (libc::SYS_lstat, &[Path(0)]),
    (libc::SYS_access, &[Path(0)]),
    (libc::SYS_readlink, &[Path(0)]),
    (libc::SYS_mkdir, &[Path(0)]),
    (libc::SYS_mknod, &[Path(0)]),
    (libc::SYS_rmdir, &[Path(0)]),
    (libc::SYS_unlink, &[Path(0)]),
    (libc::SYS_symlink, &[Path(1)]),
    (libc::SYS_link, &[Path(0), Path(1)]),
    (libc::SYS_rename, &[Path(0), Path(1)]),
    (libc::SYS_renameat, &[At(0, 1), At(2, 3)]),
    (libc::SYS_chmod, &[Path(0)]),
    (libc::SYS_chown, &[Path(0)]),
    (libc::SYS_lchown, &[Path(0)]),
    (libc::SYS_utime, &[Path(0)]),
    (libc::SYS_utimes, &[Path(0)]),
    (libc::SYS_futimesat, &[At(0, 1)]),
    (libc::SYS_getdents, &[Descriptor(0)]),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[(libc::c_long, &[Name])] = &[];

/// Whether a system call walks a path, or works on an open file that may be one of autofs.
pub(super) fn names_a_file(call: &Syscall) -> bool {
    !names(call).is_empty()
}

fn names(call: &Syscall) -> &'static [Name] {
    let known = CALLS.iter().chain(OLD_CALLS).find(|(number, _)| *number == call.number);
    known.map_or(&[], |(_, names)| names)
}

/// The paths that a thread's system call names, absolute and from the thread's own root directory, in the order of the
/// arguments. Those that cannot be told are left out.
pub(super) fn paths(dir: &ProcessDir, tid: Pid, call: &Syscall, memory: &mut Memory) -> Vec<Vec<u8>> {
    let mut task = Task { dir, tid, memory };
    names(call).iter().filter_map(|name| task.path(*name, &call.arguments)).collect()
}

/// A thread whose call is looked at.
struct Task<'a> {
    dir: &'a ProcessDir,
    tid: Pid,
    memory: &'a mut Memory,
}

impl Task<'_> {
    fn path(&mut self, name: Name, arguments: &[u64; 6]) -> Option<Vec<u8>> {
        // The kernel takes the lower half of the register as the number.
        let descriptor = |at: usize| arguments[at] as i32;
        match name {
            Path(at) => self.from(libc::AT_FDCWD, arguments[at]),
            At(directory, at) => self.from(descriptor(directory), arguments[at]),
            Descriptor(at) => self.base(descriptor(at)),
            Ioctl(device, command, at) => self.ioctl(descriptor(device), arguments[command], arguments[at]),
        }
    }

    fn ioctl(&mut self, device: i32, command: u64, address: u64) -> Option<Vec<u8>> {
        let place = self.base(device)?;
        if place != CONTROL_DEVICE {
            return Some(place);
        }
        // The number is in the lowest byte (asm-generic/ioctl.h).
        if WALKING_COMMANDS.contains(&(command & 0xff)) {
            let text = self.memory.text(self.tid, address.checked_add(IOCTL_PATH)?)?;
            return Some(join(b"/", &text));
        }
        let mount = self.memory.int(self.tid, address.checked_add(IOCTLFD)?)?;
        self.base(mount)
    }

    fn from(&mut self, directory: i32, address: u64) -> Option<Vec<u8>> {
        // No path at all stands for the descriptor itself (AT_EMPTY_PATH).
        let text = if address == 0 { Vec::new() } else { self.memory.text(self.tid, address)? };
        if text.starts_with(b"/") {
            return Some(join(b"/", &text));
        }
        Some(join(&self.base(directory)?, &text))
    }

    /// Where a directory is, from the thread's own root.
    fn base(&self, directory: i32) -> Option<Vec<u8>> {
        let link = match directory {
            libc::AT_FDCWD => self.dir.cwd(),
            number => self.dir.descriptor_link(number),
        };
        below(&self.dir.root().ok()?, &link.ok()?)
    }
}

/// A path of the reader as a process names it whose root directory is there; `None` if it cannot name it.
fn below(root: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let root = if root == b"/" { &[][..] } else { root };
    let inside = path.strip_prefix(root)?;
    match inside {
        [] => Some(b"/".to_vec()),
        // What was removed has no path any more; the kernel shows the old one with this mark.
        [b'/', ..] if !inside.ends_with(b" (deleted)") => Some(inside.to_vec()),
        _ => None,
    }
}

/// The path `path` from the directory `base`, without `.`, `..` and empty parts.
fn join(base: &[u8], path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in base.split(|&byte| byte == b'/').chain(path.split(|&byte| byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    let mut joined = Vec::with_capacity(base.len() + path.len() + 1);
    for part in parts {
        joined.push(b'/');
        joined.extend_from_slice(part);
    }
    if joined.is_empty() { b"/".to_vec() } else { joined }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_as_texts() {
        for (base, path, joined) in [
            ("/", "/net/a", "/net/a"),
            ("/net", "a/b", "/net/a/b"),
            ("/net", "", "/net"),
            ("/", "", "/"),
            ("/a/b", "../c/./d//e/", "/a/c/d/e"),
            ("/", "../../net", "/net"),
        ] {
            assert_eq!(join(base.as_bytes(), path.as_bytes()), joined.as_bytes(), "{base} {path}");
        }
    }

    #[test]
    fn a_path_is_named_from_the_root_of_its_process() {
        let named = |root: &str, path: &str| {
            below(root.as_bytes(), path.as_bytes()).map(|path| String::from_utf8(path).expect("a text"))
        };
        assert_eq!(named("/", "/net/a").as_deref(), Some("/net/a"));
        assert_eq!(named("/jail", "/jail/net").as_deref(), Some("/net"));
        assert_eq!(named("/jail", "/jail").as_deref(), Some("/"));
        for (root, path) in
            [("/jail", "/jailer/x"), ("/jail", "/net"), ("/", "pipe:[7]"), ("/", "/x (deleted)")]
        {
            assert_eq!(named(root, path), None, "{root} {path}");
        }
    }

    #[test]
    fn no_system_call_is_listed_twice() {
        let mut numbers: Vec<_> = CALLS.iter().chain(OLD_CALLS).map(|(number, _)| number).collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
    }
}
