//! Any other daemon.

use super::{Identity, Known};
use crate::model::{MountType, TextPath};

/// A daemon that nothing is known of.
pub(super) struct Unknown;

impl Known for Unknown {
    fn has_name(&self, _: &[u8]) -> bool {
        false
    }

    fn has_source(&self, _: &[u8]) -> bool {
        false
    }

    /// The device is in every request, and what the known ones compare at least.
    fn identity(&self, _: MountType) -> Identity {
        Identity::Device
    }

    fn can_be_started(&self) -> bool {
        true
    }

    fn restart(&self, _: &[&TextPath]) -> Option<String> {
        None
    }
}
