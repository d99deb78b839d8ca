//! Driving autofs through `/dev/autofs`: the ioctls of `linux/auto_dev-ioctl.h`.
//!
//! Every call sends a 24-byte header (version, size, descriptor, two words of arguments), with a
//! NUL-terminated path behind it where the call names a mount. Version 1.0 of the interface asks
//! for the least and is what every kernel since 2.6.28 answers.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;

use crate::model::Device;

/// The path of the control device (character device 10:235).
pub const DEVICE_PATH: &str = "/dev/autofs";

/// The environment variable by which a descriptor of it is passed on, as `fd:N`, where there is no /dev.
pub const DEVICE_VARIABLE: &str = "AUTOFS_CR_DEVICE";

/// The size of the fixed part of the argument, in bytes.
pub const HEADER_SIZE: usize = 24;

const IOCTL_TYPE: u8 = 0x93;
const VERSION_MAJOR: u32 = 1;
const VERSION_MINOR: u32 = 0;

/// The ioctl requests that this project uses, by their numbers in `linux/auto_dev-ioctl.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Command {
    Version = 0x71,
    ProtoSubVersion = 0x73,
    OpenMount = 0x74,
    Ready = 0x76,
    Fail = 0x77,
    SetPipeFd = 0x78,
    Catatonic = 0x79,
    Timeout = 0x7a,
    Expire = 0x7c,
}

impl Command {
    /// The request number: `_IOWR(0x93, nr, struct autofs_dev_ioctl)`.
    const fn request(self) -> libc::c_ulong {
        nix::request_code_readwrite!(IOCTL_TYPE, self as u8, HEADER_SIZE) as libc::c_ulong
    }
}

/// The ioctl request number of `AUTOFS_DEV_IOCTL_SETPIPEFD`, for a call that is made inside
/// another process.
pub const SETPIPEFD_REQUEST: u64 = Command::SetPipeFd.request();

/// The argument of `AUTOFS_DEV_IOCTL_SETPIPEFD`, for a call that is made inside another process:
/// both numbers are descriptors of that process.
pub fn setpipefd_argument(mount: RawFd, pipe: RawFd) -> [u8; HEADER_SIZE] {
    Argument { descriptor: mount, words: [pipe as u32, 0] }.encode(HEADER_SIZE)
}

/// The ioctl request number of `AUTOFS_DEV_IOCTL_CATATONIC`, for a call that is made inside another
/// process.
pub const CATATONIC_REQUEST: u64 = Command::Catatonic.request();

/// The argument of `AUTOFS_DEV_IOCTL_CATATONIC`, for a call that is made inside another process, whose
/// descriptor it names.
pub fn catatonic_argument(mount: RawFd) -> [u8; HEADER_SIZE] {
    Argument { descriptor: mount, words: [0, 0] }.encode(HEADER_SIZE)
}

/// The ioctl request number of `AUTOFS_DEV_IOCTL_OPENMOUNT`, for a call that is made inside another
/// process.
pub const OPENMOUNT_REQUEST: u64 = Command::OpenMount.request();

/// Where the kernel writes the number of the new descriptor into the argument of
/// `AUTOFS_DEV_IOCTL_OPENMOUNT`. It leaves it alone when the call fails.
pub const OPENED_AT: usize = 12;

/// The argument of `AUTOFS_DEV_IOCTL_OPENMOUNT`: the mount with this device at `path`.
pub fn openmount_argument(path: &CStr, device: Device) -> Vec<u8> {
    let path = path.to_bytes_with_nul();
    let size = HEADER_SIZE + path.len();
    let mut bytes = Argument { descriptor: -1, words: [device.encode(), 0] }.encode(size).to_vec();
    bytes.extend_from_slice(path);
    bytes
}

/// The fixed part of `struct autofs_dev_ioctl`.
struct Argument {
    descriptor: RawFd,
    words: [u32; 2],
}

impl Argument {
    fn encode(&self, size: usize) -> [u8; HEADER_SIZE] {
        let fields =
            [VERSION_MAJOR, VERSION_MINOR, size as u32, self.descriptor as u32, self.words[0], self.words[1]];
        let mut bytes = [0; HEADER_SIZE];
        for (slot, field) in bytes.chunks_exact_mut(4).zip(fields) {
            slot.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }
}

/// What the kernel wrote back into the fixed part.
struct Answer {
    descriptor: RawFd,
    words: [u32; 2],
}

/// An open control device.
#[derive(Debug)]
pub struct ControlDevice(File);

impl ControlDevice {
    /// Opens `/dev/autofs`, close-on-exec, and asks it for its version, as anything could stand there.
    pub fn open() -> io::Result<Self> {
        let device = OpenOptions::new().read(true).open(DEVICE_PATH).map(Self)?;
        let wrong = |error: io::Error| {
            io::Error::new(error.kind(), format!("it does not answer as autofs does: {error}"))
        };
        device.version().map_err(wrong)?;
        Ok(device)
    }

    /// Wraps a descriptor of the control device that was inherited from another process.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }

    /// The version of the kernel's interface: major and minor.
    pub fn version(&self) -> io::Result<(u32, u32)> {
        // The kernel writes its version over the first two words, which `call` does not return,
        // so this call has its own buffer.
        let mut buffer = Argument { descriptor: -1, words: [0, 0] }.encode(HEADER_SIZE).to_vec();
        self.ioctl(Command::Version, &mut buffer)?;
        Ok((word(&buffer, 0), word(&buffer, 4)))
    }

    /// The minor version of the protocol that a mount speaks.
    pub fn protocol_subversion(&self, mount: BorrowedFd<'_>) -> io::Result<u32> {
        self.on_mount(Command::ProtoSubVersion, mount, [0, 0]).map(|answer| answer.words[0])
    }

    /// Opens the root of the autofs superblock `device` that is mounted at `path`, also when other
    /// mounts cover it. Needs CAP_SYS_ADMIN in the initial user namespace.
    ///
    /// This walks the path: it **blocks** while a request is pending on a direct root. Call it only
    /// where that is excluded, or in a [`crate::child`] with a deadline.
    pub fn open_mount(&self, path: &CStr, device: Device) -> io::Result<OwnedFd> {
        let mut buffer = openmount_argument(path, device);
        let answer = self.ioctl(Command::OpenMount, &mut buffer)?;
        // SAFETY: OPENMOUNT succeeded, so the kernel put a new descriptor (close-on-exec) into this
        // process's table that nothing else knows of.
        Ok(unsafe { OwnedFd::from_raw_fd(answer.descriptor) })
    }

    /// Hands the kernel the write end of a pipe. The kernel takes the caller's process group along;
    /// the superblock must be catatonic (EBUSY).
    pub fn set_pipe(&self, mount: BorrowedFd<'_>, pipe: BorrowedFd<'_>) -> io::Result<()> {
        self.on_mount(Command::SetPipeFd, mount, [pipe.as_raw_fd() as u32, 0]).map(drop)
    }

    /// Makes the superblock catatonic: its pipe is dropped, all who wait get ENOENT.
    pub fn make_catatonic(&self, mount: BorrowedFd<'_>) -> io::Result<()> {
        self.on_mount(Command::Catatonic, mount, [0, 0]).map(drop)
    }

    /// Sets the timeout after which unused mounts on this superblock may expire, in whole seconds;
    /// returns the one before.
    pub fn set_timeout(&self, mount: BorrowedFd<'_>, timeout: Duration) -> io::Result<Duration> {
        let seconds = timeout.as_secs();
        let words = [seconds as u32, (seconds >> 32) as u32];
        let answer = self.on_mount(Command::Timeout, mount, words)?;
        Ok(Duration::from_secs(u64::from(answer.words[0]) | u64::from(answer.words[1]) << 32))
    }

    /// Answers a request: what was asked for is mounted.
    pub fn ready(&self, mount: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        self.on_mount(Command::Ready, mount, [token, 0]).map(drop)
    }

    /// Answers a request: it fails with `error` for those who wait.
    pub fn fail(&self, mount: BorrowedFd<'_>, token: u32, error: Errno) -> io::Result<()> {
        self.on_mount(Command::Fail, mount, [token, -(error as i32) as u32]).map(drop)
    }

    /// Asks the kernel to pick something to expire and to send the master an expire request for it.
    /// The caller must be in the superblock's process group and blocks until that was answered.
    pub fn expire(&self, mount: BorrowedFd<'_>, immediately: bool) -> io::Result<()> {
        self.on_mount(Command::Expire, mount, [u32::from(immediately), 0]).map(drop)
    }

    fn on_mount(&self, command: Command, mount: BorrowedFd<'_>, words: [u32; 2]) -> io::Result<Answer> {
        let mut buffer = Argument { descriptor: mount.as_raw_fd(), words }.encode(HEADER_SIZE);
        self.ioctl(command, &mut buffer)
    }

    fn ioctl(&self, command: Command, buffer: &mut [u8]) -> io::Result<Answer> {
        debug_assert!(buffer.len() >= HEADER_SIZE);
        // SAFETY: the kernel reads and writes at most the number of bytes that the size field of the
        // argument names, and every caller sets that to the length of `buffer`.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command.request(), buffer.as_mut_ptr()) };
        Errno::result(result)?;
        Ok(Answer { descriptor: word(buffer, 12) as RawFd, words: [word(buffer, 16), word(buffer, 20)] })
    }
}

/// Sets the timeout of a superblock by the older ioctl on its root, `AUTOFS_IOC_SETTIMEOUT`
/// (linux/auto_fs.h), and gives the one before: CAP_SYS_ADMIN is enough for it, where the one of the control
/// device is for the mount's own process group. `root` must be open for reading, not with O_PATH.
pub fn set_timeout_as_admin(root: BorrowedFd<'_>, timeout: Duration) -> io::Result<Duration> {
    const SETTIMEOUT: libc::c_ulong =
        nix::request_code_readwrite!(IOCTL_TYPE, 0x64, size_of::<libc::c_ulong>()) as libc::c_ulong;
    let mut seconds: libc::c_ulong = timeout.as_secs();
    // SAFETY: the kernel reads and writes one unsigned long through the pointer, which is valid.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), SETTIMEOUT, &raw mut seconds) };
    Errno::result(result)?;
    Ok(Duration::from_secs(seconds))
}

impl AsFd for ControlDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_those_of_the_header() {
        assert_eq!(Command::OpenMount.request(), 0xc018_9374);
        assert_eq!(SETPIPEFD_REQUEST, 0xc018_9378);
    }

    #[test]
    fn an_argument_is_laid_out_as_the_kernel_reads_it() {
        let bytes = setpipefd_argument(7, 9);
        let words: Vec<u32> = (0..6).map(|i| word(&bytes, i * 4)).collect();
        assert_eq!(words, [1, 0, 24, 7, 9, 0]);
    }
}
