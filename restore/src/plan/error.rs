//! Why there is no plan: each says what the user can do.

use autofs_cr_common::model::{Device, TextPath};

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(
        "{mount_point} is in the way: an autofs mount with device {found} is mounted there, and the image wants {wanted}; \
         use --replace to replace it"
    )]
    InTheWay { mount_point: TextPath, found: Device, wanted: Device },
    #[error(
        "{mount_point}: superblock {device} is there, but was made with other options than the image says; \
         use --replace to replace it"
    )]
    MadeOtherwise { mount_point: TextPath, device: Device },
    #[error("{mount_point} shows superblock {first}, another mount of the same image entry shows {second}")]
    Mixed { mount_point: TextPath, first: Device, second: Device },
    #[error(
        "superblock {device} is to be replaced, but is also mounted at {mount_point}, which the image does not have; \
         unmount that, or dump again"
    )]
    AlsoMounted { device: Device, mount_point: TextPath },
    #[error(
        "superblock {device} is to be replaced, but the autofs mount {mount_point} is on it, which the image does not have; \
         unmount that, or dump again"
    )]
    Foreign { device: Device, mount_point: TextPath },
    #[error(
        "{mount_point}: {master} compares the inode number of its mount, which cannot be chosen for a new one: \
         leave out --replace, so that the superblock is kept{}", renew.map(|how| format!("; or {how}")).unwrap_or_default()
    )]
    NeedsInode { mount_point: TextPath, master: String, renew: Option<&'static str> },
    #[error("device {device} of the image is taken by {what}, which is not replaced")]
    DeviceTaken { device: Device, what: String },
    #[error(
        "{mount_point} is delegated: its process group is {group}, and its reader {master} is not in it; \
         that can only be made anew while both live, and with nothing inside it"
    )]
    Delegated { mount_point: TextPath, group: String, master: String },
    #[error(
        "superblock {device} is to be replaced, but {what} shows it too, and would not be replaced with it: \
         {advice}, or leave out --replace, so that the superblock is kept"
    )]
    Elsewhere { device: Device, what: String, advice: String },
    #[error(
        "{mount_point} is served by {server}, and not by {master} of the image; use --replace to take it over"
    )]
    ServedByAnother { mount_point: TextPath, server: String, master: String },
    #[error(
        "{mount_point}: {master} lives, but does not read the pipe of the image any more, so nothing that is mounted \
         there would be served; have it start again: {advice}"
    )]
    NotRead { mount_point: TextPath, master: String, advice: String },
    #[error(
        "{mount_point}: {master} serves it with another pipe than that of the image: leave out --replace, so that it is \
         left as it is, or dump again"
    )]
    ServedSince { mount_point: TextPath, master: String },
    #[error("{mount_point} is to be taken away again, and {content} is mounted on it: unmount that first")]
    InUse { mount_point: TextPath, content: TextPath },
    #[error("{mount_point} is only partly there: {missing} is missing; unmount it, or use --replace")]
    PartlyThere { mount_point: TextPath, missing: TextPath },
}
