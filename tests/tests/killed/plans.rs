//! A scene for each plan.

use anyhow::Result;
use autofs_cr_tests::sandbox::MasterOptions;
use autofs_cr_tests::sandbox::images::make_catatonic;

use crate::scene::Scene;

fn like_systemd() -> MasterOptions {
    MasterOptions::new().like_systemd().arg("--timeout=77")
}

fn unmount(scene: &Scene, paths: &[&str]) -> Result<()> {
    for path in paths.iter().map(|path| scene.sandbox.path(path)) {
        // An undo may have done it.
        if scene.sandbox.mount_line(&path).is_some() {
            scene.sandbox.run(["umount", &path.to_string_lossy()]).assert_success();
        }
    }
    Ok(())
}

pub fn keep() -> Result<Scene> {
    Scene::new([like_systemd().direct("a")])
}

pub fn connect() -> Result<Scene> {
    let mut scene = Scene::new([MasterOptions::new().direct("a").direct("b").arg("--identity=device")])?;
    scene.reset = |scene| unmount(scene, &["a", "b"]);
    scene.touched = vec!["a", "b"];
    Ok(scene)
}

pub fn create() -> Result<Scene> {
    let options = MasterOptions::new().direct("a").indirect("i").arg("--subdir=in").arg("--identity=device");
    let mut scene = Scene::new([options])?;
    scene.reset = |scene| unmount(scene, &["a", "i"]);
    scene.arguments = vec!["--connect=fixup"];
    scene.with_fixup = true;
    scene.touched = vec!["a", "i/in", "i/new"];
    Ok(scene)
}

pub fn adopt() -> Result<Scene> {
    let mut scene = Scene::new([MasterOptions::new().direct("a").indirect("i").like_automount()])?;
    scene.reset = |scene| {
        make_catatonic(&scene.sandbox, &scene.image);
        Ok(())
    };
    scene.with_fixup = true;
    scene.touched = vec!["a", "i/new"];
    Ok(scene)
}

pub fn replace_idle() -> Result<Scene> {
    let mut scene = Scene::new([like_systemd().direct("a").direct("b")])?;
    scene.arguments = vec!["--replace"];
    scene.touched = vec!["a", "b"];
    Ok(scene)
}

pub fn replace_with_content() -> Result<Scene> {
    let mut scene = Scene::new([like_systemd().direct("a").direct("b")])?.with_content(&["a"])?;
    scene.arguments = vec!["--replace"];
    scene.touched = vec!["a", "b"];
    Ok(scene)
}

/// The same, where content cannot stay in its place meanwhile.
pub fn replace_with_parked_content() -> Result<Scene> {
    Ok(replace_with_content()?.where_content_is_parked())
}

pub fn replace_by_fixup() -> Result<Scene> {
    let indirect = MasterOptions::new().indirect("i").arg("--subdir=in");
    let indirect = indirect.args(["--control-fds", "--identity=device"]);
    let scene = Scene::new([indirect, like_systemd().direct("a").direct("b")])?;
    let mut scene = scene.with_content(&["a", "i/key", "i/other"])?;
    scene.arguments = vec!["--replace", "--connect=fixup"];
    scene.with_fixup = true;
    scene.touched = vec!["a", "b", "i/new"];
    Ok(scene)
}

/// What was left without a master is made anew as it was.
pub fn leave() -> Result<Scene> {
    let mut scene = Scene::new([MasterOptions::new().direct("a").direct("b")])?;
    make_catatonic(&scene.sandbox, &scene.image);
    scene.look_again();
    scene.reset = |scene| unmount(scene, &["a", "b"]);
    Ok(scene)
}

/// The same, where it is replaced.
pub fn leave_in_place() -> Result<Scene> {
    let mut scene = leave()?;
    scene.reset = |_| Ok(());
    scene.arguments = vec!["--replace"];
    Ok(scene)
}
