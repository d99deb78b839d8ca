//! Where a document goes: standard output, or a file that appears whole or not at all.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use super::DocError;
use super::reach::{self, Folder, Place};

/// How much is collected before it is written.
const BUFFER: usize = 1 << 16;

/// An output that is only seen by others when it is complete.
pub enum Output {
    /// Standard output.
    Stdout(BufWriter<io::Stdout>),
    /// Something that is there and is no regular file of its own, such as a device, a fifo or /dev/stdout: it is
    /// written to as it is.
    Special {
        /// What is there.
        file: BufWriter<File>,
        /// Its path.
        path: PathBuf,
    },
    /// A file beside its final place. A symbolic link that is there is replaced, and not followed.
    File {
        /// The file under its temporary name.
        temporary: BufWriter<NamedTempFile>,
        /// Where it is; after the file, which is removed from there if it is not finished.
        folder: Folder,
        /// Its final place.
        path: PathBuf,
    },
}

impl Output {
    /// Opens the output: a file, or standard output if there is none or it is `-`.
    pub fn open(path: Option<&Path>) -> Result<Self, DocError> {
        match path {
            Some(path) if path != Path::new("-") => Self::file(path),
            _ => Ok(Self::Stdout(BufWriter::with_capacity(BUFFER, io::stdout()))),
        }
    }

    fn file(path: &Path) -> Result<Self, DocError> {
        let failed = |source| DocError::Write { name: path.display().to_string(), source };
        let folder = match reach::output(path).map_err(failed)? {
            Place::Special(file) => {
                let file = BufWriter::with_capacity(BUFFER, file);
                return Ok(Self::Special { file, path: path.to_owned() });
            }
            Place::Folder(folder) => folder,
        };
        let temporary = temporary(&folder).map_err(|error| failed(plain(error)))?;
        Ok(Self::File {
            temporary: BufWriter::with_capacity(BUFFER, temporary),
            folder,
            path: path.to_owned(),
        })
    }

    /// Makes what was written visible. Without this, a file is as it was before.
    pub fn finish(self) -> Result<(), DocError> {
        match self {
            Self::Stdout(mut out) => {
                out.flush().map_err(|source| DocError::Write { name: "standard output".into(), source })
            }
            Self::Special { mut file, path } => {
                file.flush().map_err(|source| DocError::Write { name: path.display().to_string(), source })
            }
            Self::File { temporary, folder, path } => {
                let write = |source| DocError::Write { name: path.display().to_string(), source };
                let file = temporary.into_inner().map_err(|error| write(error.into_error()))?;
                file.as_file().sync_all().map_err(write)?;
                let name = path.file_name().ok_or_else(|| write(io::ErrorKind::IsADirectory.into()))?;
                file.persist(folder.path().join(name)).map(drop).map_err(|error| write(plain(error.error)))
            }
        }
    }
}

/// A new file under a name of its own.
fn temporary(folder: &Folder) -> io::Result<NamedTempFile> {
    // As for every new file, the umask takes its bits away.
    let mode = folder.mode.unwrap_or(0o666);
    let file = Builder::new()
        .prefix(".autofs-cr-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder.path())?;
    if folder.mode.is_some() {
        // It takes the place of one that somebody chose this mode for.
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(file)
}

/// Without the path of a descriptor, which tells nobody anything.
fn plain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => error,
        None => error.kind().into(),
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::Special { file, .. } => file.write(bytes),
            Self::File { temporary, .. } => temporary.write(bytes),
        }
    }

    // The usual one goes through `write`, which costs much for the many small parts of a document.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.write_all(bytes),
            Self::Special { file, .. } => file.write_all(bytes),
            Self::File { temporary, .. } => temporary.write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::Special { file, .. } => file.flush(),
            Self::File { temporary, .. } => temporary.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        let mut out = Output::open(Some(&path)).expect("an output");
        out.write_all(b"text").expect("written");
        drop(out);
        assert_eq!(folder.path().read_dir().expect("a folder").count(), 0);
        let mut out = Output::open(Some(&path)).expect("an output");
        out.write_all(b"text").expect("written");
        assert!(!path.exists());
        out.finish().expect("finished");
        assert_eq!(std::fs::read(&path).expect("a file"), b"text");
    }

    #[test]
    fn what_is_no_regular_file_is_written_to_and_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)
            .expect("a fifo");
        // Open for both, so that opening it for writing does not wait.
        let mut reader = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("a reader");
        let mut out = Output::open(Some(&path)).expect("an output");
        out.write_all(b"text").expect("written");
        out.finish().expect("finished");
        let mut read = [0; 4];
        io::Read::read_exact(&mut reader, &mut read).expect("read");
        assert_eq!(&read, b"text");
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_mode_and_a_link_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, link) = (folder.path().join("image"), folder.path().join("link"));
        std::fs::write(&path, "old").expect("a file");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its mode");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        let write = |path: &Path| {
            let mut out = Output::open(Some(path)).expect("an output");
            out.write_all(b"new").expect("written");
            out.finish().expect("finished");
        };
        write(&link);
        assert!(link.symlink_metadata().expect("there").is_file());
        assert_eq!(std::fs::read(&path).expect("a file"), b"old");
        write(&path);
        assert_eq!(std::fs::read(&path).expect("a file"), b"new");
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_link_to_an_open_file_is_written_through_and_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, link) = (folder.path().join("file"), folder.path().join("stdout"));
        let file = File::create(&path).expect("a file");
        let descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        std::os::unix::fs::symlink(descriptor, &link).expect("a link");
        let mut out = Output::open(Some(&link)).expect("an output");
        out.write_all(b"text").expect("written");
        out.finish().expect("finished");
        assert!(link.symlink_metadata().expect("there").is_symlink());
        assert_eq!(std::fs::read(&path).expect("a file"), b"text");
    }
}
