//! The registers of the floating-point and vector units, as a signal frame carries them.

use autofs_cr_common::sys::ptrace as requests;

/// A signal frame's extended state: what XRSTOR reads, with the two marks by which the kernel
/// knows its size (struct _fpx_sw_bytes of asm/sigcontext.h).
pub fn signal_xstate(mut xstate: Vec<u8>) -> Vec<u8> {
    const LEGACY_AND_HEADER: usize = 512 + 64;
    const FEATURES_IN_USE: usize = 512;
    const SOFTWARE_BYTES: usize = 464;
    const MAGIC1: u32 = 0x4650_5853;
    const MAGIC2: u32 = 0x4650_5845;
    const X87_AND_SSE: u64 = 3;

    xstate.resize(xstate.len().max(LEGACY_AND_HEADER), 0);
    let mut in_use = [0u8; 8];
    in_use.copy_from_slice(&xstate[FEATURES_IN_USE..FEATURES_IN_USE + 8]);
    // A component that is not in use is in its first state, and the kernel sets it so.
    let features = u64::from_le_bytes(in_use) | X87_AND_SSE;
    let size = (2..63)
        .filter(|number| features & (1 << number) != 0)
        .filter_map(requests::xstate_component)
        .map(|(offset, size)| offset + size)
        .fold(LEGACY_AND_HEADER, usize::max);
    xstate.resize(size, 0);
    let extended_size = (size + size_of_val(&MAGIC2)) as u32;
    let marks = &mut xstate[SOFTWARE_BYTES..512];
    marks.fill(0);
    marks[0..4].copy_from_slice(&MAGIC1.to_le_bytes());
    marks[4..8].copy_from_slice(&extended_size.to_le_bytes());
    marks[8..16].copy_from_slice(&features.to_le_bytes());
    marks[16..20].copy_from_slice(&(size as u32).to_le_bytes());
    xstate.extend_from_slice(&MAGIC2.to_le_bytes());
    xstate
}
