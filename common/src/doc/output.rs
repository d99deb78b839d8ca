//! Where a document goes: standard output, or a file that appears whole or not at all.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::DocError;

/// An output that is only seen by others when it is complete.
pub enum Output {
    /// Standard output.
    Stdout(BufWriter<io::Stdout>),
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
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let temporary = NamedTempFile::with_prefix_in(".autofs-cr-", folder)
            .map_err(|source| DocError::Write { name: path.display().to_string(), source })?;
        Ok(Self::File { temporary: BufWriter::with_capacity(1 << 16, temporary), path: path.to_owned() })
    }

    /// Makes what was written visible. Without this, a file is as it was before.
    pub fn finish(self) -> Result<(), DocError> {
        match self {
            Self::Stdout(mut out) => {
                out.flush().map_err(|source| DocError::Write { name: "standard output".into(), source })
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
            Self::File { temporary, .. } => temporary.write(bytes),
        }
    }

    // The usual one goes through `write`, which costs much for the many small parts of a document.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.write_all(bytes),
            Self::File { temporary, .. } => temporary.write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File { temporary, .. } => temporary.flush(),
        }
    }
}
