//! The words of the project as types. What they mean is in the design; here is how they are written.

#[cfg(any(test, feature = "fuzzing"))]
mod arbitrary;
mod device;
mod fdflags;
mod options;
mod path;
mod pid;
mod propagation;
mod runs_in;
mod state;

pub use device::{Device, ParseDeviceError};
pub use fdflags::FdFlags;
pub use options::{KernelPipe, MountType, Options, OptionsReader, ParseOptionsError, SuperOptions};
pub use path::{ParsePathError, TextPath};
pub use pid::{ParsePidError, Pid};
pub use propagation::{ParsePropagationError, Propagation};
pub use runs_in::RunsIn;
pub use state::State;
