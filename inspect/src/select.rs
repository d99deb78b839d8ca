//! Which mounts are shown.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use autofs_cr_common::doc::Report;
use autofs_cr_common::model::TextPath;

/// A path that no autofs mount has to do with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotThere(TextPath);

impl NotThere {
    /// An error that names the first.
    pub fn refuse(paths: &[Self]) -> Result<()> {
        match paths.first() {
            Some(path) => bail!("{path}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for NotThere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no autofs mount is at, above or below {} (symbolic links are not followed)", self.0)
    }
}

/// Forgets all mounts but those that these paths are about, and gives the paths that are about none. Paths are compared as
/// texts: nothing is touched.
pub fn narrow(report: &mut Report, paths: &[PathBuf]) -> Vec<NotThere> {
    if paths.is_empty() {
        return Vec::new();
    }
    let mut places = Vec::new();
    let mut missing = Vec::new();
    for path in paths {
        match Place::find(report, path) {
            Some(place) => places.push(place),
            None => missing.push(NotThere(TextPath::from(&**path))),
        }
    }
    report.keep_mounts(|mount| places.iter().any(|place| place.has(&mount.mount_point)));
    missing
}

/// What a path is about.
enum Place {
    /// The mounts at it and below it.
    At(PathBuf),
    /// As none is at it, the innermost mount that the path leads through, which serves it; and those below.
    Through(PathBuf, PathBuf),
}

impl Place {
    fn find(report: &Report, path: &Path) -> Option<Self> {
        let points = || report.mounts.iter().map(|mount| &*mount.mount_point);
        if points().any(|point| point == path) {
            return Some(Self::At(path.to_owned()));
        }
        let above =
            points().filter(|point| path.starts_with(point)).max_by_key(|point| point.as_os_str().len());
        match above {
            Some(above) => Some(Self::Through(above.to_owned(), path.to_owned())),
            None => points().any(|point| point.starts_with(path)).then(|| Self::At(path.to_owned())),
        }
    }

    fn has(&self, point: &Path) -> bool {
        match self {
            Self::At(path) => point.starts_with(path),
            Self::Through(above, path) => point == above || point.starts_with(path),
        }
    }
}
