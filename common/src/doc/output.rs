//! Where a document goes: standard output, or a file that appears whole or not at all.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use super::DocError;

/// An output that is only seen by others when it is complete.
pub enum Output {
    /// Standard output.
    Stdout(BufWriter<io::Stdout>),
    /// Something that is there and is no regular file, such as a device or a fifo: it is written to as it is.
    Special {
        /// What is there.
        file: BufWriter<File>,
        /// Its path.
        path: PathBuf,
    },
    /// A file beside its final place.
    File {
        /// The file under its temporary name.
        temporary: BufWriter<NamedTempFile>,
        /// Its final place.
        path: PathBuf,
    },
}

impl Output {
    /// Opens the output: a file, or standard output if there is none or it is `-`.
    pub fn open(path: Option<&Path>) -> Result<Self, DocError> {
        match path {
            Some(path) if path != Path::new("-") => Self::file(path),
            _ => Ok(Self::Stdout(BufWriter::with_capacity(1 << 16, io::stdout()))),
        }
    }

    fn file(path: &Path) -> Result<Self, DocError> {
        let failed = |source| DocError::Write { name: path.display().to_string(), source };
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
            return Ok(Self::Special {
                file: BufWriter::with_capacity(1 << 16, file),
                path: path.to_owned(),
            });
        }
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let temporary = Builder::new()
            .prefix(".autofs-cr-")
            // As for every new file, the umask takes its bits away.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(failed)?;
        Ok(Self::File { temporary: BufWriter::with_capacity(1 << 16, temporary), path: path.to_owned() })
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
            Self::File { temporary, path } => {
                let write = |source| DocError::Write { name: path.display().to_string(), source };
                let file = temporary.into_inner().map_err(|error| write(error.into_error()))?;
                file.as_file().sync_all().map_err(write)?;
                file.persist(&path).map(drop).map_err(|error| write(error.error))
            }
        }
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
        let mut reader = OpenOptions::new().read(true).write(true).open(&path).expect("a reader");
        let mut out = Output::open(Some(&path)).expect("an output");
        out.write_all(b"text").expect("written");
        out.finish().expect("finished");
        let mut read = [0; 4];
        io::Read::read_exact(&mut reader, &mut read).expect("read");
        assert_eq!(&read, b"text");
    }
}
