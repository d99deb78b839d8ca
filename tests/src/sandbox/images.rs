//! Images of a sandbox, and a restore that waits for its fixups.

use std::path::Path;

use anyhow::{Context, Result};
use autofs_cr_common::doc::{self, Image, Stage};

use super::tool::Running;
use super::{Inside, TestCommand, Tool, program};

/// What autofs-dump writes of a sandbox or a machine.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn dump(inside: &Inside) -> String {
    Tool::dump().target(inside).run().assert_success().stdout
}

/// An image of one catatonic superblock: it takes no master to restore it.
pub fn catatonic_image(mount_point: &str) -> String {
    format!(
        r#"format: "autofs-cr/image/1"
masters: []
superblocks:
- {{device: "0:1900", options: {{type: "direct", timeout: 1, minproto: 5, maxproto: 5}}, state: "catatonic"}}
mounts:
- {{mount_point: "{mount_point}", device: "0:1900", root: "/", source: "hostile", options: "rw", propagation: "private"}}
...
"#
    )
}

/// An image as it was written.
///
/// # Panics
/// If it is none.
#[track_caller]
pub fn read_image(text: &str) -> Image {
    doc::parse(text.as_bytes(), "the image").expect(text)
}

/// An image without what is another in every new superblock: the inode number of its root.
#[track_caller]
pub fn lasting(text: &str) -> Image {
    let mut image = read_image(text);
    image.superblocks.iter_mut().for_each(|superblock| superblock.inode = None);
    image
}

/// Makes all superblocks of an image catatonic, as a master's death does in the end.
///
/// # Panics
/// If one cannot be.
#[track_caller]
pub fn make_catatonic(inside: &Inside, image: &str) {
    each(inside, image, "catatonic");
}

/// Makes all superblocks of an image orphaned: each has a pipe that nobody reads.
///
/// # Panics
/// If one cannot be.
#[track_caller]
pub fn make_orphaned(inside: &Inside, image: &str) {
    each(inside, image, "orphan");
}

/// A step of autofs-probe on each mount of an image.
#[track_caller]
fn each(inside: &Inside, image: &str, step: &str) {
    for mount in &read_image(image).mounts {
        let probe = inside.command(program("autofs-probe")).arg(step).arg(&mount.mount_point as &Path);
        probe.arg(mount.device.to_string()).run().assert_success();
    }
}

/// Starts a restore, and waits until it has done all that it can do without a fixup: its stage document.
pub fn start_restore(inside: &Inside, image: &str, arguments: &str) -> Result<(Running, Stage)> {
    let directory = tempfile::tempdir()?;
    let fifo = directory.path().join("stage");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
    let restore = program("autofs-restore");
    let script = format!("exec {} -p {} {arguments} > {}", restore.display(), inside.pid(), fifo.display());
    let running = TestCommand::new("sh").args(["-c", &script]).stdin(image).spawn();
    // Restore ends its output when the document is written.
    let text = std::fs::read(&fifo).context("cannot read the stage document")?;
    Ok((running, doc::parse(&text, "the stage document")?))
}

/// A stage document as autofs-fixup reads it.
///
/// # Panics
/// If there is no memory.
pub fn stage_text(stage: &Stage) -> Vec<u8> {
    let mut text = Vec::new();
    doc::write(stage, &mut text).expect("writing to memory");
    text
}
