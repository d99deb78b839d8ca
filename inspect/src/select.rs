//! Which mounts are shown.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use autofs_cr_common::doc::Report;

/// Forgets all mounts but those that these paths are about. Paths are compared as texts: nothing is touched.
pub fn narrow(report: &mut Report, paths: &[PathBuf]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let places: Vec<Place> = paths.iter().map(|path| Place::find(report, path)).collect::<Result<_>>()?;
    report.keep_mounts(|mount| places.iter().any(|place| place.has(&mount.mount_point)));
    Ok(())
}

/// What a path is about.
enum Place {
    /// The mounts at it and below it.
    At(PathBuf),
    /// As none is at it, the innermost mount that the path leads through, which serves it; and those below.
    Through(PathBuf, PathBuf),
}

impl Place {
    fn find(report: &Report, path: &Path) -> Result<Self> {
        let points = || report.mounts.iter().map(|mount| &*mount.mount_point);
        if points().any(|point| point == path) {
            return Ok(Self::At(path.to_owned()));
        }
        let above =
            points().filter(|point| path.starts_with(point)).max_by_key(|point| point.as_os_str().len());
        match above {
            Some(above) => Ok(Self::Through(above.to_owned(), path.to_owned())),
            None => points()
                .any(|point| point.starts_with(path))
                .then(|| Self::At(path.to_owned()))
                .with_context(|| {
                    format!(
                        "no autofs mount is at, above or below {} (symbolic links are not followed)",
                        path.display()
                    )
                }),
        }
    }

    fn has(&self, point: &Path) -> bool {
        match self {
            Self::At(path) => point.starts_with(path),
            Self::Through(above, path) => point == above || point.starts_with(path),
        }
    }
}
