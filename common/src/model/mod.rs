//! The words of the project as types. What they mean is in the design; here is how they are written.

mod device;
mod options;
mod path;
mod pid;
mod state;

pub use device::{Device, ParseDeviceError};
pub use options::{KernelPipe, MountType, Options, ParseOptionsError, SuperOptions};
pub use path::{ParsePathError, TextPath};
pub use pid::{ParsePidError, Pid};
pub use state::State;
