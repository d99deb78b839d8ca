//! For fuzz/: ways to what is private and reads what comes from elsewhere. Each does with the bytes what the tools do.

pub use crate::doc::fuzzing::round_trip;
pub use crate::proc::fuzzing::texts as proc_texts;
pub use crate::scan::fuzzing::{packet, stack};
