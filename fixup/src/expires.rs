//! Where something is being expired, so that nobody may walk there, for many masters together: to tell that, all
//! processes of the machine are looked at.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use autofs_cr_common::model::Device;
use autofs_cr_common::proc::Proc;
use autofs_cr_common::scan::Expiring;
use autofs_cr_common::target::Target;

/// For how long a look is good: about as long as it takes to open 20,000 mounts, which is done after one look too.
const GOOD: Duration = Duration::from_millis(100);

/// What such a look saw.
#[derive(Clone, Debug)]
pub struct Expires {
    superblocks: BTreeSet<Device>,
    seen: Instant,
}

impl Expires {
    /// Looks.
    pub fn look(proc: &Proc) -> io::Result<Self> {
        // Before it: what comes while it goes on may be missed.
        let seen = Instant::now();
        Ok(Self { superblocks: Expiring::superblocks(proc)?, seen })
    }

    /// Whether it is still good for what is done next.
    pub fn is_good(&self) -> bool {
        self.seen.elapsed() < GOOD
    }

    /// Whether it will still be good for who is started now.
    pub fn stays_good(&self) -> bool {
        self.seen.elapsed() < GOOD / 2
    }
}

/// The expires in the mount namespace of a process, or of this one, by a look that was taken before if that is good.
pub fn of_target(target: Option<&Target>, before: Option<Expires>) -> io::Result<Expiring> {
    let proc = Proc::open()?;
    let process = target.map_or_else(|| proc.this(), |target| proc.process(target.pid()))?;
    let look = match before.filter(Expires::is_good) {
        Some(look) => look,
        None => Expires::look(&proc)?,
    };
    Expiring::of(look.superblocks, &process)
}
