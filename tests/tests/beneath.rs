//! Mounts that are in use are replaced beneath what is mounted on them: who uses that sees no gap.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, lasting, read_image};
use autofs_cr_tests::sandbox::{Master, MasterOptions, Sandbox, TestCommand, Tool};

/// How many mounts each of these tests replaces.
const MOUNTS: usize = 24;

/// How many threads use them.
const THREADS: usize = 2;

/// A master with mounts that all have something mounted on them.
fn in_use(options: MasterOptions) -> Result<(Sandbox, Master)> {
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let options = names().fold(options, MasterOptions::direct);
    let master = sandbox.master(options.arg("--timeout=77"))?;
    for name in names() {
        sandbox.touch(sandbox.path(name))?;
    }
    Ok((sandbox, master))
}

/// One that takes a request of any superblock.
fn like_any() -> MasterOptions {
    MasterOptions::new().arg("--identity=none")
}

fn names() -> impl Iterator<Item = String> {
    (0..MOUNTS).map(|number| format!("m{number:02}"))
}

fn replace(sandbox: &Sandbox, image: &str) -> TestCommand {
    Tool::restore().target(sandbox).args(["--replace", "--timeout=20"]).stdin(image)
}

/// All mounts but those of autofs, by their ids and places, and how many those are.
fn content(sandbox: &Sandbox) -> (BTreeSet<(String, String)>, usize) {
    let text = sandbox.mountinfo();
    let (autofs, others): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains(" - autofs "));
    let fields = others.iter().map(|line| line.split(' ').collect::<Vec<_>>());
    (fields.map(|fields| (fields[0].to_owned(), fields[4].to_owned())).collect(), autofs.len())
}

/// The inode numbers of the roots of superblocks, which no two have had.
fn roots(image: &str) -> BTreeSet<Option<u64>> {
    read_image(image).superblocks.iter().map(|superblock| superblock.inode).collect()
}

/// Whether a mount is shared or follows another one, by its place.
fn propagation(sandbox: &Sandbox) -> Vec<String> {
    let text = sandbox.mountinfo();
    let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|fields| fields[6] != "-").map(|fields| format!("{} {}", fields[4], fields[6])).collect()
}

/// Reads a file on each mount all the time while `work` is done, and tells what failed. No reader is in the master's pid
/// namespace: where nothing is mounted, it is refused, and cannot have the master mount it again.
fn read_meanwhile<T>(sandbox: &Sandbox, work: impl FnOnce() -> T) -> (T, Vec<String>) {
    let files: Vec<PathBuf> =
        names().map(|name| sandbox.outside(sandbox.path(name).join("served-by"))).collect();
    let (stop, all_read) = (AtomicBool::new(false), Barrier::new(THREADS + 1));
    thread::scope(|scope| {
        let readers: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let read = || {
                        files.iter().filter_map(|file| fs::read(file).err()).map(|error| error.to_string())
                    };
                    let mut failed: Vec<String> = read().collect();
                    all_read.wait();
                    while !stop.load(Ordering::Relaxed) {
                        failed.extend(read());
                    }
                    failed
                })
            })
            .collect();
        all_read.wait();
        let done = work();
        stop.store(true, Ordering::Relaxed);
        (done, readers.into_iter().flat_map(|reader| reader.join().expect("a reader")).collect())
    })
}

/// Replaces mounts in use, and checks that nobody noticed.
fn nobody_notices(options: MasterOptions, arguments: &[&str], by_fixup: bool) -> Result<()> {
    let (sandbox, mut master) = in_use(options)?;
    let (image, before, propagated) = (dump(&sandbox), content(&sandbox), propagation(&sandbox));
    let (told, failed) = read_meanwhile(&sandbox, || {
        let restore = replace(&sandbox, &image).args(arguments);
        match by_fixup {
            true => {
                let (restored, fixed) = restore.pipe(Tool::fixup());
                fixed.assert_success();
                restored.assert_success()
            }
            false => restore.run().assert_success(),
        }
    });
    ensure!(failed.is_empty(), "{} accesses failed: {:?}\n{told}", failed.len(), failed.first());
    ensure!(content(&sandbox) == before, "{before:?}\n{}", sandbox.mountinfo());
    ensure!(roots(&dump(&sandbox)).is_disjoint(&roots(&image)), "not all are new: {}", dump(&sandbox));
    ensure!(propagation(&sandbox) == propagated, "{propagated:?}\n{}", sandbox.mountinfo());
    let keeps_numbers = !arguments.contains(&"--identity=none");
    ensure!(!keeps_numbers || lasting(&dump(&sandbox)) == lasting(&image), "{}", dump(&sandbox));

    // What is there now serves.
    let place = sandbox.path("m07");
    sandbox.run(["umount", &place.to_string_lossy()]).assert_success();
    let served = sandbox.read(place.join("served-by"))?;
    ensure!(served.trim_end().ends_with(&format!(" {}", MOUNTS + 1)), "{served}");
    master.assert_undisturbed();
    Ok(())
}

#[test]
fn nobody_who_uses_mounts_notices_that_they_are_replaced_with_their_numbers() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    nobody_notices(MasterOptions::new().like_systemd(), &[], false)
}

#[test]
fn nobody_who_uses_mounts_notices_that_they_are_replaced_with_other_numbers() -> Result<()> {
    require!(Root, Autofs);
    nobody_notices(like_any(), &["--identity=none"], false)
}

#[test]
fn nobody_who_uses_mounts_notices_that_they_are_replaced_by_way_of_the_fixup() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    nobody_notices(like_any(), &["--identity=none", "--connect=fixup"], true)
}

#[test]
fn a_shared_mount_stays_as_it_is_when_mounts_in_it_are_replaced() -> Result<()> {
    require!(Root, Autofs);
    let (sandbox, mut master) = in_use(like_any())?;
    sandbox.run(["mount", "--make-shared", "/"]).assert_success();
    let (image, before, propagated) = (dump(&sandbox), content(&sandbox), propagation(&sandbox));
    ensure!(!propagated.is_empty(), "{}", sandbox.mountinfo());
    replace(&sandbox, &image).arg("--identity=none").run().assert_success();
    ensure!(content(&sandbox) == before, "{before:?}\n{}", sandbox.mountinfo());
    ensure!(propagation(&sandbox) == propagated, "{propagated:?}\n{}", sandbox.mountinfo());
    master.assert_undisturbed();
    Ok(())
}
