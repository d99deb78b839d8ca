//! A mount whose pipe is read by a process outside of its process group.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{DEADLINE, Master, Running, Sandbox, program};

/// A direct mount that is delegated to a master, and the process of its group.
pub struct Delegated {
    /// Where it is.
    pub place: String,
    /// The leader of its group, which does nothing more.
    pub group: Running,
}

impl Delegated {
    /// Makes one with the pipe of the first mount of `reader`; something is mounted on it where it shall have content.
    pub fn start(sandbox: &Sandbox, reader: &mut Master, has_content: bool) -> Result<Self> {
        let place = sandbox.mkdir("delegated")?.display().to_string();
        let (probe, pid) = (program("autofs-probe"), reader.pid_inside());
        let read_fd = reader.report()?.mounts[0].read_fd;
        // Who is in the group can walk to it without a request.
        let content = if has_content { format!("mount -t tmpfs content {place} &&") } else { String::new() };
        let script = format!(
            "{} mount {place} direct {pid} {read_fd} $$ && {content} exec sleep 1000",
            probe.display()
        );
        let mut group = sandbox.command("sh").args(["-c", &script]).spawn();
        let wanted = if has_content { " content " } else { " autofs " };
        let is_there = |line: &str| line.contains(&format!(" {place} ")) && line.contains(wanted);
        let deadline = Instant::now() + DEADLINE;
        while !sandbox.mountinfo().lines().any(is_there) {
            ensure!(group.process().is_running(), "it ended: {}", group.finish());
            ensure!(Instant::now() < deadline, "the delegated mount was not made in time");
            std::thread::yield_now();
        }
        Ok(Self { place, group })
    }
}
