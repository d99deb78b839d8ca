//! What the tools have in their hands at one system call after the other: capabilities that they have no use for are gone,
//! and every descriptor that they opened is closed by execve. And what a program gets that they execute.
//!
//! Without more, a sample of the points is tried; AUTOFS_CR_SWEEP=all tries all of them.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use autofs_cr_common::model::Pid;
use autofs_cr_common::power::Role;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{dump, make_orphaned, read_image, start_restore};
use autofs_cr_tests::sandbox::{End, Master, MasterOptions, Running, Sandbox, TestCommand, Tool, program};
use autofs_cr_tests::stepper::{Family, Step, step, sweep};

/// Points of each sweep that are tried without more.
const SAMPLE: u64 = 5;

/// Before this call a tool is loaded, counts its descriptors, and drops capabilities.
const EARLY: u64 = 450;

/// A master with content on its mounts.
struct Scene {
    sandbox: Sandbox,
    _master: Master,
    image: String,
}

impl Scene {
    fn new() -> Result<Self> {
        let sandbox = Sandbox::builder().fresh_root().build()?;
        let options = MasterOptions::new().direct("a").indirect("i").like_automount();
        let master = sandbox.master(options.arg("--identity=device"))?;
        ["a", "i/key"].iter().try_for_each(|path| sandbox.touch(sandbox.path(path)))?;
        let image = dump(&sandbox);
        Ok(Self { sandbox, _master: master, image })
    }
}

/// What is found of a tool at a point.
fn look(family: &Family, role: Role) -> Vec<String> {
    // Who started this test may have left some open.
    let given = left_open(Pid::this());
    let left_open = |pid| left_open(pid).into_iter().filter(|one| !given.contains(one));
    let all = family.processes().flat_map(|pid| {
        let power = has_shed(pid).then(|| too_much(pid, role)).into_iter().flatten();
        left_open(pid).chain(power).map(move |what| format!("process {pid}: {what}")).collect::<Vec<_>>()
    });
    all.collect()
}

/// Descriptors beside the standard ones that an executed program would get.
fn left_open(pid: Pid) -> Vec<String> {
    let folder = format!("/proc/{pid}/fdinfo");
    let numbers = fs::read_dir(&folder).into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_inherited = |number: &u32| {
        let info = fs::read_to_string(format!("{folder}/{number}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
        Some(i64::from_str_radix(flags, 8).ok()? & i64::from(libc::O_CLOEXEC) == 0)
    };
    let open = numbers.filter(|number| *number > 2 && is_inherited(number).unwrap_or(false));
    open.map(|number| {
        format!("descriptor {number} is {:?}", fs::read_link(format!("/proc/{pid}/fd/{number}")))
    })
    .collect()
}

/// A line of /proc/PID/status.
fn status(pid: Pid, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))?;
    Some(line.to_owned())
}

/// Whether it has dropped what it does not need: that is one of the first things that it does.
fn has_shed(pid: Pid) -> bool {
    status(pid, "NoNewPrivs").as_deref() == Some("1") && set(pid, "CapPrm") == set(pid, "CapEff")
}

fn set(pid: Pid, name: &str) -> u64 {
    status(pid, name).and_then(|text| u64::from_str_radix(&text, 16).ok()).unwrap_or_default()
}

/// Capabilities beyond those of a role, in any set.
fn too_much(pid: Pid, role: Role) -> Vec<String> {
    let allowed = role.uses().iter().fold(0, |all, one| all | one.capability.bits());
    let sets = ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"].into_iter();
    let more = sets.filter(|name| set(pid, name) & !allowed != 0);
    more.map(|name| format!("{name} is {:#x}, and {allowed:#x} is needed", set(pid, name))).collect()
}

/// Looks at a tool at one point after the other.
fn sweep_looks(
    name: &str,
    role: Role,
    start: impl Fn(&Scene) -> Result<(Running, Vec<Running>)>,
) -> Result<()> {
    sweep(name, SAMPLE, Scene::new, |scene, point| {
        let (mut tool, others) = start(scene)?;
        let (mut found, mut held) = (Vec::new(), false);
        let stepped = step(&mut tool, point, |family| {
            found = look(family, role);
            held = family.processes().all(has_shed);
        })?;
        let ends: Vec<_> = std::iter::once(tool).chain(others).map(Running::finish).collect();
        ensure!(found.is_empty(), "{found:#?}");
        ensure!(ends.iter().all(|end| matches!(end.end, Some(End::Exit(0)))), "{ends:#?}");
        let is_early = point.number < EARLY || matches!(stepped, Step::Ended(_));
        ensure!(is_early || held, "capabilities are not dropped at {point:?}");
        Ok(stepped)
    })
}

#[test]
fn what_looks_drops_its_powers_and_hands_no_descriptor_on() -> Result<()> {
    require!(Root, Autofs);
    // It takes device numbers that the others here free.
    let _alone = alone();
    let alone_with = |tool: TestCommand| Ok((tool.held().spawn(), Vec::new()));
    sweep_looks("inspect", Role::Look, |scene| alone_with(Tool::inspect().target(&scene.sandbox)))?;
    sweep_looks("dump", Role::Dump, |scene| alone_with(Tool::dump().target(&scene.sandbox)))
}

#[test]
fn what_replaces_drops_its_powers_and_hands_no_descriptor_on() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let restore = |scene: &Scene| {
        Tool::restore().target(&scene.sandbox).args(["--replace", "--timeout=20"]).stdin(&*scene.image)
    };
    sweep_looks("restore", Role::Restore, |scene| {
        let (restore, fixup) = restore(scene).held().spawn_pipe(Tool::fixup());
        Ok((restore, vec![fixup]))
    })?;
    sweep_looks("fixup", Role::Fixup, |scene| {
        let (restore, fixup) = restore(scene).spawn_pipe(Tool::fixup().held());
        Ok((fixup, vec![restore]))
    })
}

#[test]
fn what_frees_drops_its_powers_and_hands_no_descriptor_on() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    sweep_looks("fixup --free", Role::FixupFree, |scene| {
        make_orphaned(&scene.sandbox, &scene.image);
        let free = Tool::fixup().args(["--free", "--timeout=20"]).target(&scene.sandbox);
        Ok((free.held().spawn(), Vec::new()))
    })
}

/// The capabilities of who reads this, by their sets, and whether it can get more.
const POWERS: [&str; 4] = ["grep", "-E", "^(Cap|NoNewPrivs)", "/proc/self/status"];

/// The numbers of the descriptors of who reads this, with what they are.
const OPEN: [&str; 3] = ["ls", "-l", "/proc/self/fd"];

/// The numbers in what that says, but for the one by which it looks.
fn numbers(said: &str) -> BTreeSet<i32> {
    let lines = said.lines().filter_map(|line| line.split_once(" -> "));
    let others = lines.filter(|(_, what)| !what.ends_with("/fd"));
    others.filter_map(|(line, _)| line.rsplit_once(' ')?.1.parse().ok()).collect()
}

#[test]
fn what_is_executed_has_what_the_tool_was_given_and_the_pipe_of_its_master() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let master = sandbox.master(MasterOptions::new().direct("d"))?;
    let image = dump(&sandbox);
    master.kill()?;
    let pipe = &read_image(&image).masters[0].pipes[0];
    let ends: BTreeSet<i32> =
        [&pipe.read_end, &pipe.write_end].into_iter().flatten().map(|end| end.fd).collect();
    let open = numbers(&sandbox.command("ls").args(&OPEN[1..]).run().assert_success().stdout);
    let given = ["--inh-caps=+sys_admin,+kill,+net_admin", "--ambient-caps=+sys_admin,+kill,+net_admin"];
    for given in [&given[..], &["--clear-groups"]] {
        let (powers, open_now) = (POWERS.map(quoted).join(" "), OPEN.join(" "));
        let expected = sandbox.command("setpriv").args(given).args(POWERS).run().assert_success().stdout;
        let (restore, stage) = start_restore(&sandbox, &image, "")?;
        let name = stage.segment.context("no segment")?.name;
        let exec = sandbox.command("setpriv").args(given).arg(program("autofs-fixup"));
        let exec = exec.args(["--exec", "--", "sh", "-c", &format!("{powers}; exec {open_now}")]);
        let said = exec.env("AUTOFS_CR_SEGMENT", name).run().assert_success().stdout;
        restore.finish().assert_success();
        assert!(said.starts_with(&expected), "{said}\n{expected}");
        assert_eq!(numbers(&said), &open | &ends, "{said}");
    }
    sandbox.close()
}

fn quoted(word: &str) -> String {
    format!("'{word}'")
}

#[test]
fn the_init_of_fresh_namespaces_has_what_restore_was_given() -> Result<()> {
    require!(Root, Autofs);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut command = sandbox.command(program("autofs-restore"));
    let (powers, open_now) = (POWERS.map(quoted).join(" "), OPEN.join(" "));
    command = command.args(["--init", "--", "sh", "-c", &format!("{powers}; exec {open_now}")]);
    let said = command
        .stdin("format: autofs-cr/image/1\nmasters: []\nsuperblocks: []\nmounts: []\n...\n")
        .run()
        .assert_success()
        .stdout;
    let expected = sandbox.run(POWERS).assert_success().stdout;
    let open = numbers(&sandbox.run(OPEN).assert_success().stdout);
    assert!(said.starts_with(&expected), "{said}\n{expected}");
    assert_eq!(numbers(&said), open, "{said}");
    sandbox.close()
}
