//! Dropping capabilities.

use std::io;

use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Drops all capabilities but these. Of a process that executes a program at its end only out of the effective set, which
/// execve fills again: all others are what that program is given.
pub(super) fn shed(keep: CapabilitySet, executes: bool) -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.effective &= keep;
    if executes {
        return Ok(set_capabilities(None, sets)?);
    }
    shed_bounding(sets.effective)?;
    // Nothing that this process or a child executes, by whatever fault, gets more than it has.
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    sets.permitted &= keep;
    sets.inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, sets)?)
}

/// That is for CAP_SETPCAP. Who does not have it has the other sets and `no_new_privs` all the same.
fn shed_bounding(keep: CapabilitySet) -> io::Result<()> {
    if !capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    let numbers = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    for capability in numbers.filter(|one| !keep.contains(*one)) {
        // An error is a number that this kernel does not know.
        if matches!(capability_is_in_bounding_set(capability), Ok(true)) {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    Ok(())
}
