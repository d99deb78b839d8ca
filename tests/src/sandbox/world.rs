//! The private world of a test.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::link::{Link, Listener};
use super::{DEADLINE, Inside, Master, MasterOptions, program};

/// What a sandbox shall have.
#[derive(Clone, Debug)]
pub struct Builder {
    own_pid_namespace: bool,
    fresh_root: bool,
    shm: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self { own_pid_namespace: true, fresh_root: false, shm: false }
    }
}

impl Builder {
    /// Whether it has a pid namespace of its own (it has, by default).
    pub fn own_pid_namespace(mut self, own: bool) -> Self {
        self.own_pid_namespace = own;
        self
    }

    /// A root of its own, on a tmpfs, with only what programs need.
    pub fn fresh_root(mut self) -> Self {
        self.fresh_root = true;
        self
    }

    /// A /dev/shm of its own.
    pub fn shm(mut self) -> Self {
        self.shm = true;
        self
    }

    /// Makes it.
    pub fn build(self) -> Result<Sandbox> {
        let work = tempfile::Builder::new().prefix("acr").tempdir().context("make a work directory")?;
        let listener = Listener::new().context("make a link")?;
        let helper = program("sandbox-init");
        let mut command = Command::new(&helper);
        command.arg("new").arg("--link").arg(listener.name()).arg("--work").arg(work.path());
        command.args((!self.own_pid_namespace).then_some("--same-pid-namespace"));
        command.args(self.shm.then_some("--shm"));
        if self.fresh_root {
            command.arg("--fresh-root").arg("--bind").arg(helper.parent().context("no directory")?);
        }
        let mut helper = command.stdin(Stdio::null()).spawn().context("start sandbox-init")?;
        let connected = listener.accept(DEADLINE).and_then(|mut link| Ok((link.pid(DEADLINE)?, link)));
        let connected = connected.map_err(anyhow::Error::from);
        match connected.and_then(|(pid, link)| Ok((Inside::of(pid)?, link))) {
            Ok((inside, link)) => Ok(Sandbox { helper, link, inside, work }),
            Err(error) => {
                let _ = helper.kill();
                let _ = helper.wait();
                Err(error).context("make a sandbox")
            }
        }
    }
}

/// A private world: a mount namespace, a pid namespace, a fresh /proc, and a work directory on a
/// tmpfs. Dropping it ends every process in it.
pub struct Sandbox {
    helper: Child,
    link: Link,
    inside: Inside,
    work: TempDir,
}

impl Sandbox {
    /// One as most tests want it.
    pub fn new() -> Result<Self> {
        Builder::default().build()
    }

    /// One of another kind.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The work directory: the same path inside and outside, but a tmpfs inside.
    pub fn work(&self) -> &Path {
        self.work.path()
    }

    /// A path in the work directory, as seen inside.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.work.path().join(name)
    }

    /// Makes a directory, and those above it, in the work directory; returns its path inside.
    pub fn mkdir(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.path(name);
        let outside = self.outside(&path);
        std::fs::create_dir_all(&outside).with_context(|| format!("make {}", outside.display()))?;
        Ok(path)
    }

    /// Starts a reference master inside and waits until it serves.
    pub fn master(&self, options: MasterOptions) -> Result<Master> {
        options.start(self)
    }

    /// Ends it now, and checks that nothing of it is left.
    pub fn close(mut self) -> Result<()> {
        self.end()?;
        super::assert_no_leaks(self.work());
        Ok(())
    }

    /// Ends all processes of its pid namespace by ending its init; where it has none of its own,
    /// those of its mount namespace, which nobody else can be in.
    fn end(&mut self) -> Result<()> {
        // An error tells that the helper is gone, and with it the init.
        let _ = self.link.hang_up();
        let _ = self.link.end(DEADLINE);
        let _ = self.helper.kill();
        let _ = self.helper.wait();
        self.inside.end_all()
    }
}

impl Deref for Sandbox {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("end the sandbox: {error:#}");
        }
    }
}
