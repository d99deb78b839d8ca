//! How many descriptors a process may have open (RLIMIT_NOFILE, getrlimit(2)).

use std::fs;
use std::io;
use std::sync::OnceLock;

use anyhow::Context;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The kernel's default for fs.nr_open.
const DEFAULT_HIGHEST: u64 = 1 << 20;

/// How many descriptors a tool needs at least, beside those that it was started with. The rest are for mounts, of which
/// few can be open at a time.
const ENOUGH: usize = 64;

/// What the limit was before it was raised.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Lets this process open as many descriptors as it may, and tells how many these are.
///
/// The tools hold at least one descriptor for each mount, and a shell gives 1,024: that soft limit is only
/// there for programs that use select(2). The soft limit is raised to the hard one, and the hard one to
/// fs.nr_open where that is allowed (CAP_SYS_RESOURCE). Nothing fails here: if the limit stays too low,
/// what opens a descriptor says so (EMFILE).
///
/// Child processes have the raised limit too. [`put_back_descriptors`] is for those that execute another
/// program.
pub fn raise_descriptors() -> usize {
    let before = *BEFORE.get_or_init(|| getrlimit(Resource::Nofile));
    let highest = highest();
    let hard = before.maximum.unwrap_or(highest);
    for wanted in [hard.max(highest), hard] {
        if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: Some(wanted) }).is_ok() {
            break;
        }
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(highest);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Raises the limit, and fails where it is still too low for any work. A look at /proc would miss then what it cannot
/// open, and a change could not be undone.
pub fn ensure_enough_descriptors() -> anyhow::Result<()> {
    raise_descriptors();
    // Kept until all are there. A number says nothing: any of those below the limit may be in use.
    let mut open = Vec::with_capacity(ENOUGH);
    while open.len() < ENOUGH {
        match eventfd(0, EventfdFlags::CLOEXEC) {
            Ok(descriptor) => open.push(descriptor),
            Err(error) => {
                let had = open.len();
                open.clear();
                return Err(io::Error::from(error)).with_context(|| {
                    format!("cannot open {ENOUGH} files at a time, but {had} (RLIMIT_NOFILE; raise it with ulimit -n)")
                });
            }
        }
    }
    Ok(())
}

/// Sets the limit back to what it was before [`raise_descriptors`], in this process or in the one that it
/// was forked from; does nothing if it was not raised. Descriptors above the limit stay open.
pub fn put_back_descriptors() -> io::Result<()> {
    match BEFORE.get() {
        Some(before) => Ok(setrlimit(Resource::Nofile, *before)?),
        None => Ok(()),
    }
}

/// The highest limit that the kernel takes.
fn highest() -> u64 {
    let text = fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT_HIGHEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_raised_can_be_put_back() {
        let before = getrlimit(Resource::Nofile);
        let raised = raise_descriptors();
        assert!(before.maximum.is_none_or(|hard| raised as u64 >= hard));
        assert_eq!(raise_descriptors(), raised);
        put_back_descriptors().expect("it was so before");
        assert_eq!(getrlimit(Resource::Nofile), before);
    }
}
