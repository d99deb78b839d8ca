//! The options of a mount (not of its superblock), as mountinfo shows them (`show_mnt_opts` in
//! fs/proc_namespace.c).

use rustix::mount::MountAttrFlags;

/// Reads a list of options; an unknown one is the error.
pub fn parse(options: &str) -> Result<MountAttrFlags, String> {
    options.split(',').try_fold(
        // mountinfo shows neither relatime nor noatime for a mount that updates times strictly.
        MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        |attributes, option| match option {
            "rw" => Ok(attributes),
            "ro" => Ok(attributes | MountAttrFlags::MOUNT_ATTR_RDONLY),
            "nosuid" => Ok(attributes | MountAttrFlags::MOUNT_ATTR_NOSUID),
            "nodev" => Ok(attributes | MountAttrFlags::MOUNT_ATTR_NODEV),
            "noexec" => Ok(attributes | MountAttrFlags::MOUNT_ATTR_NOEXEC),
            "nodiratime" => Ok(attributes | MountAttrFlags::MOUNT_ATTR_NODIRATIME),
            "nosymfollow" => Ok(attributes | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
            "relatime" => Ok(with_time(attributes, MountAttrFlags::MOUNT_ATTR_RELATIME)),
            "noatime" => Ok(with_time(attributes, MountAttrFlags::MOUNT_ATTR_NOATIME)),
            other => Err(other.to_owned()),
        },
    )
}

fn with_time(attributes: MountAttrFlags, time: MountAttrFlags) -> MountAttrFlags {
    (attributes - MountAttrFlags::MOUNT_ATTR__ATIME) | time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_attributes() {
        let expected = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_RELATIME;
        assert_eq!(parse("rw,nosuid,relatime"), Ok(expected));
        assert_eq!(parse("rw"), Ok(MountAttrFlags::MOUNT_ATTR_STRICTATIME));
        assert_eq!(parse("rw,what"), Err("what".to_owned()));
    }
}
