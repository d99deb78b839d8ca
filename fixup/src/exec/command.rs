//! The program that the master is.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use autofs_cr_common::channel::{Channel, ChannelError};
use autofs_cr_common::child::Child;
use autofs_cr_common::segment;
use autofs_cr_common::sys::autofs::DEVICE_VARIABLE;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

/// How long the trial may take: the program may be on a slow disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program with its arguments.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    words: Vec<OsString>,
}

impl Program {
    /// Looks it up in PATH, as a shell does. By a child: a directory of that may be on a mount that hangs.
    pub fn find_in_time(words: &[OsString]) -> anyhow::Result<Self> {
        let child = Child::spawn(|channel| {
            let found = Self::find(words).map_err(|error| format!("{error:#}"));
            Ok(channel.send(&found.map(|program| program.path.into_os_string().into_vec()), &[])?)
        });
        let child = child.context("cannot start a child")?;
        match child.receive::<Result<Vec<u8>, String>>(Some(Instant::now() + PATIENCE)) {
            Ok((Ok(path), _)) => Ok(Self { path: OsString::from_vec(path).into(), words: words.to_vec() }),
            Ok((Err(why), _)) => bail!(why),
            Err(ChannelError::TimedOut) => bail!(
                "cannot look for {} in PATH: no answer for {PATIENCE:.0?}, so a mount on the way hangs (autofs-inspect \
                 shows who waits where); name the program by its path",
                words.first().map(|name| name.to_string_lossy()).unwrap_or_default()
            ),
            Err(error) => Err(error).context("the child that looks for the program failed"),
        }
    }

    fn find(words: &[OsString]) -> anyhow::Result<Self> {
        let name = words.first().context("no command was given")?;
        let candidates = if name.as_bytes().contains(&b'/') {
            vec![PathBuf::from(name)]
        } else {
            let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
            std::env::split_paths(&path).map(|directory| directory.join(name)).collect()
        };
        let there = candidates.iter().find(|path| path.is_file());
        let Some(path) = candidates.iter().find(|path| is_executable(path)) else {
            match there {
                Some(path) => bail!("cannot execute {}: it is not executable", path.display()),
                None => bail!("cannot execute {}: it is not there", name.to_string_lossy()),
            }
        };
        Ok(Self { path: path.clone(), words: words.to_vec() })
    }

    /// Has a child execute it, traced, so that it stops before its first instruction: what could fail
    /// is known before anything is changed.
    pub fn try_out(&self) -> anyhow::Result<()> {
        let child = Child::spawn(|channel| self.trial(&channel)).context("cannot start a child")?;
        match child.receive::<Option<i32>>(Some(Instant::now() + PATIENCE)) {
            // The channel was closed by the execution.
            Err(ChannelError::Closed) | Ok((None, _)) => Ok(()),
            Ok((Some(errno), _)) => Err(Errno::from_raw(errno)).with_context(|| self.cannot()),
            Err(error) => Err(error).with_context(|| self.cannot()),
        }
    }

    /// Answers with the error number, with nothing where it may not be traced, and with the end of the
    /// channel where it could be executed.
    fn trial(&self, channel: &Channel) -> anyhow::Result<()> {
        let errno = match nix::sys::ptrace::traceme() {
            Ok(()) => self.command().exec().raw_os_error(),
            Err(_) => None,
        };
        channel.send(&errno, &[])?;
        Ok(())
    }

    /// Executes it in place of this process. Returns only if that fails.
    pub fn exec(&self) -> anyhow::Error {
        anyhow!(self.command().exec()).context(self.cannot())
    }

    fn cannot(&self) -> String {
        format!("cannot execute {}", self.path.display())
    }

    /// The standard library sets the signal mask and SIGPIPE as they are for a fresh program.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        if let Some((name, arguments)) = self.words.split_first() {
            command.arg0(name).args(arguments);
        }
        command.env_remove(segment::VARIABLE).env_remove(DEVICE_VARIABLE);
        command
    }
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.words
            .iter()
            .skip(1)
            .try_for_each(|word| write!(f, " {}", crate::show::quoted(&word.to_string_lossy())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &str) -> anyhow::Result<Program> {
        Program::find(&[name.into()])
    }

    #[test]
    fn a_program_is_found_in_path_or_by_its_path() {
        assert!(find("sh").expect("there is a shell").path.is_absolute());
        assert!(find("/bin/sh").is_ok());
    }

    #[test]
    fn what_cannot_be_executed_is_named() {
        assert_eq!(
            find("no-such-program").expect_err("it is not there").to_string(),
            "cannot execute no-such-program: it is not there"
        );
        assert_eq!(
            find("/etc/passwd").expect_err("it is no program").to_string(),
            "cannot execute /etc/passwd: it is not executable"
        );
    }
}
