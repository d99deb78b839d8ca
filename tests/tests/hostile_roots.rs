//! `--init --root` with links and with images that mount where the tools themselves work: nothing gets out of the root.

use std::path::PathBuf;

use anyhow::Result;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{catatonic_image, dump, lasting};
use autofs_cr_tests::sandbox::{Finished, MasterOptions, Sandbox, Tool, program};

/// A directory to be a root, with links that would lead out of another.
fn make_root(sandbox: &Sandbox) -> Result<PathBuf> {
    let root = sandbox.mkdir("root")?;
    let outside = sandbox.mkdir("outside/m")?;
    let script = format!(
        "cd {root} && mkdir -p usr run tmp dev a/m jail/m && mount --bind /usr usr
         for folder in bin sbin lib lib64; do ln -s usr/$folder $folder; done
         ln -s / absolute; ln -s ../../../../../.. up; ln -s {outside} out; ln -s ../outside relative
         ln -s jail proc; ln -s m a/last; ln -s loop loop; ln -s {root} ../root-link",
        root = root.display(),
        outside = outside.display(),
    );
    sandbox.run(["sh", "-c", &script]).assert_success();
    Ok(root)
}

/// Restores a mount in a fresh namespace with this root, and has the command there tell where it is.
fn init(sandbox: &Sandbox, root: &str, mount_point: &str) -> Finished {
    let tell =
        "while read -r _ _ _ _ place _ line; do case $line in *' autofs hostile '*) echo $place; esac; done";
    let tell = format!("{tell} < /proc/self/mountinfo");
    let restore = sandbox.command(program("autofs-restore")).args(["--init", "--timeout=10", "--root", root]);
    restore.args(["--", "sh", "-c", &tell]).stdin(catatonic_image(mount_point)).run()
}

#[test]
fn links_lead_to_a_place_in_the_fresh_root_or_nowhere() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let root = make_root(&sandbox)?.display().to_string();
    let link = sandbox.path("root-link").display().to_string();
    let before = sandbox.mountinfo();
    for (path, ends_at) in [
        ("/a/m", Some("/a/m")),
        ("/absolute/a/m", Some("/a/m")),
        ("/up/a/m", Some("/a/m")),
        // The link leads into the fresh root, where that is not.
        ("/out", None),
        ("/relative/m", None),
        ("/a/last", None),
        ("/loop/m", None),
        ("/proc/m", Some("/jail/m")),
        ("/run", Some("/run")),
        ("/tmp", Some("/tmp")),
        ("/jail", Some("/jail")),
    ] {
        for root in [&root, &link] {
            let finished = init(&sandbox, root, path);
            match ends_at {
                Some(place) => assert_eq!(finished.assert_success().stdout.trim(), place, "{path}"),
                None => drop(finished.assert_code(1).assert_stderr_contains(path)),
            }
            assert_eq!(sandbox.mountinfo(), before, "{path}");
        }
    }
    sandbox.close()
}

#[test]
fn mounts_where_the_tools_work_are_restored_like_others() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    for place in ["/run", "/proc"] {
        let sandbox = Sandbox::builder().fresh_root().build()?;
        let options = MasterOptions::new().like_systemd().direct(place).direct("b").arg("--identity=device");
        let mut master = sandbox.master(options)?;
        for has_content in [false, true] {
            if has_content {
                sandbox.touch(place)?;
            }
            let image = dump(&sandbox);
            let restored = Tool::restore().target(&sandbox).arg("--replace").stdin(&*image).run();
            restored.assert_success();
            assert_eq!(lasting(&dump(&sandbox)), lasting(&image));
            master.assert_undisturbed();
        }
        sandbox.close()?;
    }
    Ok(())
}
