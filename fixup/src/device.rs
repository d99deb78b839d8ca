//! The control device.

use std::env;
use std::os::fd::AsFd;

use anyhow::Context;
use autofs_cr_common::sys::autofs::{ControlDevice, DEVICE_PATH, DEVICE_VARIABLE};

use crate::source::take;

/// Opens the control device: /dev/autofs, or the inherited one.
pub fn open() -> anyhow::Result<ControlDevice> {
    let inherited = inherited()?;
    let device = match (ControlDevice::open(), inherited) {
        (Ok(device), _) | (Err(_), Some(device)) => device,
        (Err(error), None) => {
            return Err(error).with_context(|| {
                format!(
                    "cannot open {DEVICE_PATH} (is autofs in the kernel? try modprobe autofs4; in a container \
                    bind it in, or pass it on as {DEVICE_VARIABLE}=fd:N)"
                )
            });
        }
    };
    // The inherited one was not asked yet.
    device.version().context("the control device does not answer as autofs does")?;
    Ok(device)
}

/// The inherited one, which is closed by execve from now on.
fn inherited() -> anyhow::Result<Option<ControlDevice>> {
    let Some(value) = env::var_os(DEVICE_VARIABLE) else { return Ok(None) };
    let number = value.to_str().and_then(|text| text.strip_prefix("fd:")?.parse().ok());
    let number = number.with_context(|| format!("{DEVICE_VARIABLE} is wrong (expected fd:N)"))?;
    Ok(Some(ControlDevice::from_fd(take(DEVICE_VARIABLE, number)?)))
}

/// Moves the device to a number from `lowest` on.
// By value: the old number is free afterwards.
#[expect(clippy::needless_pass_by_value)]
pub fn move_above(device: ControlDevice, lowest: i32) -> anyhow::Result<ControlDevice> {
    let moved = rustix::io::fcntl_dupfd_cloexec(device.as_fd(), lowest);
    Ok(ControlDevice::from_fd(moved.context("cannot copy a descriptor")?))
}
