//! A process in a machine that holds a file open.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::Machine;
use crate::sandbox::Running;

/// Holds a file open, and reads it in the end.
pub struct Holder {
    process: Running,
    go: File,
}

impl Holder {
    /// Starts it, and waits until it has opened the file.
    pub fn start(machine: &Machine, path: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let go = format!("/run/go-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        machine.run(["mkfifo", &go]).assert_success();
        let process = machine.spawn(["sh", "-ec", "exec 3<\"$0\"; read line <\"$1\"; cat <&3", path, &go]);
        // It opens the named pipe after the file, and a pipe can only be opened for writing when it has a reader.
        let mut opened = None;
        machine.wait_until("the file is open", || {
            let mut options = File::options();
            opened = options.write(true).custom_flags(libc::O_NONBLOCK).open(machine.outside(&go)).ok();
            opened.is_some()
        });
        Ok(Self { process, go: opened.context("not opened")? })
    }

    /// Has it read the file by the descriptor that it opened at first, and end; what it read.
    ///
    /// # Panics
    /// When it could not.
    pub fn read(mut self) -> Result<String> {
        self.go.write_all(b"\n").context("wake it up")?;
        Ok(self.process.finish().assert_success().stdout)
    }
}
