//! Least power: which capabilities a tool has use for, what it says where one is missing, and how it lets go of all others.
//!
//! | stage | file |
//! |---|---|
//! | what each tool needs, and for what: the one table | `table.rs` |
//! | let go of the rest, before any input is read | `shed.rs` |
//! | say what is missing, where the kernel refuses something | here |

mod shed;
mod table;

use std::fmt::Write;
use std::io::ErrorKind;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use rustix::thread::{CapabilitySet, capabilities};

use crate::proc::Proc;
use shed::shed;
pub use table::{Role, Use};

/// The inode number of the initial user namespace (`USER_NS_INIT_INO` in linux/nsfs.h).
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// What this process may use, once it has settled for that.
static SETTLED: OnceLock<Vec<Use>> = OnceLock::new();

/// Settles for what these roles have use for: an error if one cannot do without a capability that this process does not
/// have. All other capabilities are dropped. For the beginning of a tool, while it has one thread.
pub fn settle(roles: &[Role]) -> Result<()> {
    let uses: Vec<Use> = roles.iter().flat_map(|role| role.uses()).copied().collect();
    let held = held()?;
    if let Some(missing) = uses.iter().find(|one| one.is_must && !held.contains(one.capability)) {
        bail!(
            "{missing} is needed, and this process does not have it: run it as root, or give it that capability"
        );
    }
    if uses.iter().any(|one| one.is_must) {
        check_user_namespace()?;
    }
    let keep = uses.iter().fold(CapabilitySet::empty(), |all, one| all | one.capability);
    shed(keep, roles.iter().any(|role| role.executes()))
        .context("cannot drop capabilities that are not needed")?;
    let _ = SETTLED.set(uses);
    Ok(())
}

/// An error that names a capability, if this process does not have it.
pub fn require(role: Role, capability: CapabilitySet) -> Result<()> {
    let named = role.uses().iter().find(|one| one.capability == capability);
    match (held()?.contains(capability), named) {
        (false, Some(named)) => bail!("{named} is needed, and this process does not have it"),
        _ => Ok(()),
    }
}

/// An error in full. Where the kernel refused something, with the capabilities that this process would use and does not have.
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = format!("{error:#}");
    let missing = if is_refusal(error) { missing() } else { Vec::new() };
    for (index, one) in missing.iter().enumerate() {
        let _ = write!(text, "{} {one}", if index == 0 { " (this process does not have" } else { "," });
    }
    if !missing.is_empty() {
        text.push(')');
    }
    text
}

fn missing() -> Vec<Use> {
    let Ok(held) = held() else { return Vec::new() };
    let uses = SETTLED.get().into_iter().flatten();
    let mut missing: Vec<Use> = Vec::new();
    for one in uses.filter(|one| !held.contains(one.capability)) {
        if missing.iter().all(|known| known.capability != one.capability) {
            missing.push(*one);
        }
    }
    missing
}

/// Whether the kernel has said EPERM or EACCES.
fn is_refusal(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let of_nix = cause.downcast_ref::<nix::Error>().map(|&error| std::io::Error::from(error).kind());
        let of_rustix = cause.downcast_ref::<rustix::io::Errno>().map(|error| error.kind());
        [kind, of_nix, of_rustix].contains(&Some(ErrorKind::PermissionDenied))
    })
}

fn held() -> Result<CapabilitySet> {
    Ok(capabilities(None).context("cannot read the capabilities of this process")?.effective)
}

/// Capabilities of another user namespace are none for autofs.
fn check_user_namespace() -> Result<()> {
    let own = Proc::open().and_then(|proc| proc.this()?.user_namespace());
    if own.context("cannot look at the user namespace of this process")? != INITIAL_USER_NAMESPACE {
        bail!(
            "this is not the initial user namespace: the kernel lets nobody use /dev/autofs from here; run it on the host, \
             with -p for the namespaces of a container"
        );
    }
    Ok(())
}
