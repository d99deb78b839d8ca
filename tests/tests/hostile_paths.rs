//! Paths that try to get out of the target's root directory, also while they change under a restore at work: nothing is ever
//! mounted outside of that root.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use autofs_cr_common::model::Pid;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::catatonic_image;
use autofs_cr_tests::sandbox::{End, Finished, Running, Sandbox, Tool};
use autofs_cr_tests::stepper::{Point, Step, step};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// A process with a root directory of its own, in which it can do what it likes.
struct Jail<'a> {
    sandbox: &'a Sandbox,
    root: PathBuf,
    process: Running,
}

impl<'a> Jail<'a> {
    fn new(sandbox: &'a Sandbox) -> Result<Self> {
        let root = sandbox.mkdir("jail")?;
        let outside = sandbox.mkdir("outside/m")?;
        let script = format!(
            "cd {root} && mkdir usr proc run a a/m && mount --bind /usr usr && mount -t proc proc proc
             for folder in bin sbin lib lib64; do ln -s usr/$folder $folder; done
             mkfifo ready
             ln -s / absolute; ln -s ../../../../../.. up; ln -s {outside} out; ln -s ../outside relative
             ln -s /proc/1/root magic; ln -s /proc/self/root self; ln -s m a/last; ln -s loop loop",
            root = root.display(),
            outside = outside.display(),
        );
        sandbox.run(["sh", "-c", &script]).assert_success();
        let jailed =
            sandbox.command("chroot").arg(&root).args(["sh", "-c", "echo > /ready; exec sleep 1000"]);
        let process = jailed.spawn();
        std::fs::read(sandbox.outside(root.join("ready")))?;
        Ok(Self { sandbox, root, process })
    }

    fn pid(&mut self) -> Pid {
        self.process.process().pid()
    }

    fn restore(&mut self, mount_point: &str) -> Finished {
        let pid = self.pid().to_string();
        Tool::restore()
            .args(["-p", &pid, "--timeout=10"])
            .about(self.sandbox)
            .stdin(catatonic_image(mount_point))
            .run()
    }

    /// Where the mounts of the image are now, from the root of the sandbox.
    fn mounted(&self) -> Vec<String> {
        let lines = self.sandbox.autofs_lines();
        let ours = lines.iter().filter(|line| line.contains(" autofs hostile "));
        ours.filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
    }

    fn unmount(&self) {
        for place in self.mounted() {
            self.sandbox.run(["umount", &place]).assert_success();
        }
    }

    /// The same while directories above it are exchanged: until it is met.
    fn unmount_wherever_it_is(&self) {
        while let Some(place) = self.mounted().first() {
            self.sandbox.run(["umount", "-c", "-i", place]);
        }
    }
}

#[test]
fn links_out_of_the_root_directory_lead_to_a_place_inside_or_nowhere() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut jail = Jail::new(&sandbox)?;
    let before = sandbox.mountinfo();
    let inside = jail.root.join("a/m").display().to_string();
    for (path, ends_at) in [
        ("/a/m", Some(&inside)),
        ("/absolute/a/m", Some(&inside)),
        ("/up/a/m", Some(&inside)),
        ("/absolute/up/absolute/a/m", Some(&inside)),
        ("/out", None),
        ("/out/m", None),
        ("/relative/m", None),
        ("/a/last", None),
        ("/absolute", None),
        ("/loop/m", None),
        ("/magic/tmp", None),
        ("/self/a/m", None),
        ("/proc/1/root/tmp", None),
        ("/proc/self/cwd", None),
        ("/proc/thread-self/root/a/m", None),
    ] {
        let restored = jail.restore(path);
        match ends_at {
            Some(place) => {
                restored.assert_success();
                assert_eq!(jail.mounted(), [place.as_str()], "{path}");
                jail.unmount();
            }
            None => drop(restored.assert_code(1).assert_stderr_contains(path)),
        }
        assert_eq!(sandbox.mountinfo(), before, "{path}");
    }
    drop(jail);
    sandbox.close()
}

/// Exchanges two paths all the time while `work` runs.
fn exchanging<T>(one: &Path, other: &Path, work: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).expect("exchanged");
            }
        });
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        done
    })
}

#[test]
fn a_directory_that_turns_into_a_link_and_back_never_leads_out_of_the_root() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut jail = Jail::new(&sandbox)?;
    let [one, other] = ["a", "out"].map(|name| sandbox.outside(jail.root.join(name)));
    let inside = jail.root.to_string_lossy().into_owned();
    exchanging(&one, &other, || {
        for _ in 0..20 {
            let restored = jail.restore("/a/m");
            let is_told = matches!(restored.end, Some(End::Exit(0 | 1)));
            restored.check(is_told, "exit code 0 or 1");
            let mounted = jail.mounted();
            assert!(mounted.iter().all(|place| place.starts_with(&inside)), "{mounted:?}");
            jail.unmount_wherever_it_is();
        }
    });
    drop(jail);
    sandbox.close()
}

/// A scene in which the mount at `/a/m` is replaced while the directory above it is exchanged with that of a decoy.
struct Exchange<'a> {
    jail: Jail<'a>,
    directories: [PathBuf; 2],
    /// What is mounted where, whatever is tried.
    mounts: Vec<String>,
    /// Another one each time, so that what is there is replaced.
    timeout: u64,
}

impl<'a> Exchange<'a> {
    /// `content` is what is mounted on it.
    fn new(sandbox: &'a Sandbox, content: Option<&str>) -> Result<Self> {
        let mut jail = Jail::new(sandbox)?;
        let [place, decoy] = ["a/m", "b/m"].map(|name| jail.root.join(name).display().to_string());
        let script = format!("mkdir -p {decoy} && mount -t tmpfs decoy {decoy}");
        sandbox.run(["sh", "-c", &script]).assert_success();
        jail.restore("/a/m").assert_success();
        if let Some(content) = content {
            sandbox.run(["mount", "-t", "tmpfs", content, &place]).assert_success();
        }
        let directories = ["a", "b"].map(|name| sandbox.outside(jail.root.join(name)));
        Ok(Self { mounts: mounts(sandbox), jail, directories, timeout: 1 })
    }

    fn exchange(&self) {
        let [one, other] = &self.directories;
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).expect("exchanged");
    }

    /// Exchanges the directories at this step of a restore, and back when it is over.
    fn round(&mut self, number: u64) -> Result<(Step, Option<End>)> {
        self.timeout += 1;
        let changed = catatonic_image("/a/m").replace("timeout: 1,", &format!("timeout: {},", self.timeout));
        let pid = self.jail.pid().to_string();
        let tool = Tool::restore()
            .args(["-p", &pid, "--timeout=10", "--replace", "--identity=none"])
            .about(self.jail.sandbox);
        let mut running = tool.stdin(changed).held().spawn();
        let reached = step(&mut running, Point::mount(number), |_| self.exchange())?;
        let restored = running.finish();
        if reached == Step::Reached {
            self.exchange();
        }
        let is_told = matches!(restored.end, Some(End::Exit(0 | 1)));
        let restored = restored.check(is_told, "exit code 0 or 1");
        let told = format!("exchanged at step {number}: {}", restored.stderr);
        assert_eq!(mounts(self.jail.sandbox), self.mounts, "{told}\n{}", self.jail.sandbox.mountinfo());
        Ok((reached, restored.end))
    }
}

/// The source and the place of each mount.
fn mounts(sandbox: &Sandbox) -> Vec<String> {
    let field = |text: &str, number| text.split(' ').nth(number).unwrap_or_default().to_owned();
    let name = |line: &str| {
        let (mount, superblock) = line.split_once(" - ").unwrap_or_default();
        format!("{} {}", field(superblock, 1), field(mount, 4))
    };
    let mut names: Vec<_> = sandbox.mountinfo().lines().map(name).collect();
    names.sort_unstable();
    names
}

fn exchanged_at_every_step(content: Option<&str>) -> Result<()> {
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut scene = Exchange::new(&sandbox, content)?;
    let mut number = 1;
    let end = loop {
        match scene.round(number)? {
            (Step::Reached, _) => number += 1,
            (Step::Ended(_), end) => break end,
        }
    };
    assert_eq!(end, Some(End::Exit(0)), "nothing was exchanged in the last round");
    drop(scene);
    sandbox.close()
}

#[test]
fn a_mount_that_takes_the_place_of_the_right_one_is_never_unmounted() -> Result<()> {
    require!(Root, Autofs);
    exchanged_at_every_step(None)
}

#[test]
fn nor_is_one_that_takes_the_place_of_a_mount_with_content() -> Result<()> {
    require!(Root, Autofs);
    exchanged_at_every_step(Some("content"))
}
