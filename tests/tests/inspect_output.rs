//! What autofs-inspect writes in each format, on the real kernel. `inspect/src/golden` has each format as a whole.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use autofs_cr_common::doc::{self, Report};
use autofs_cr_common::model::TextPath;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{
    Finished, Master, MasterOptions, Running, Sandbox, TestCommand, Tool, program, wait_until_blocked,
};
use serde_json::Value;

/// autofs-inspect on a sandbox, from outside.
#[track_caller]
fn run<const N: usize>(sandbox: &Sandbox, arguments: [&str; N]) -> Finished {
    Tool::inspect().target(sandbox).args(arguments).run().assert_success()
}

/// The mounts that `-J` shows.
#[track_caller]
fn mounts<const N: usize>(sandbox: &Sandbox, arguments: [&str; N]) -> Vec<Value> {
    let text = run(sandbox, arguments).stdout;
    let document: Value = serde_json::from_str(&text).expect("JSON");
    document["mounts"].as_array().expect("a list of mounts").clone()
}

/// What was said, without what this user may not see, and who entered the sandbox: that depends on what else runs.
fn said(finished: &Finished) -> String {
    let others = [": not visible: ", " is in a pid namespace that "];
    let lines = finished.stderr.lines().filter(|line| !others.iter().any(|other| line.contains(other)));
    lines.map(|line| format!("{line}\n")).collect()
}

fn shown(sandbox: &Sandbox, name: &str) -> String {
    sandbox.path(name).display().to_string()
}

/// A command that waits in autofs.
fn start_blocked(command: TestCommand) -> Running {
    let mut running = command.spawn();
    let pid = running.process().pid();
    wait_until_blocked(running.process(), 1, || vec![pid]);
    running
}

/// Waits until a shell inside finds that something is so.
#[track_caller]
fn wait_until(sandbox: &Sandbox, condition: &str) {
    sandbox.run(["sh", "-c", &format!("until {condition}; do sleep 0.01; done")]).assert_success();
}

/// A wait for a master that has read the request, and does not answer.
fn swallowed(sandbox: &Sandbox, name: &str) -> Result<(Master, Running)> {
    let mut master = sandbox.master(MasterOptions::new().indirect(name).arg("--swallow"))?;
    let waiter = start_blocked(sandbox.command("cat").arg(sandbox.path(name).join("key")));
    while master.report()?.counters.swallowed == 0 {}
    Ok((master, waiter))
}

#[test]
fn the_table_has_a_line_for_each_mount_and_the_counts_go_to_standard_error() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let master = sandbox.master(MasterOptions::new().direct("d").indirect("a name"))?;
    let table = run(&sandbox, []);
    let lines: Vec<&str> = table.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].starts_with("TARGET "), "{table}");
    let column = lines[0].find("MASTER").context("a column")?;
    let named = format!("reference-maste[{}]", master.pid());
    assert!(lines[1..].iter().all(|line| line[column..].starts_with(&named)), "{table}");
    assert!(!table.stdout.contains('\u{1b}'));
    assert_eq!(said(&table), "autofs-inspect: 2 mounts: 2 connected\n");

    assert_eq!(run(&sandbox, ["-q"]).stderr, "");
    let bare = run(&sandbox, ["-n"]).stdout;
    assert!(bare.lines().count() == 2 && bare.lines().all(|line| line.contains(&named)), "{bare}");
    let besides = run(&sandbox, ["-o", "+timeout,PROTO"]).stdout;
    assert!(
        besides.lines().next().is_some_and(|head| head.ends_with("WAITERS  TIMEOUT  PROTO")),
        "{besides}"
    );
    let raw = run(&sandbox, ["-rn", "-o", "TARGET,STATE,TIMEOUT"]).stdout;
    let name = shown(&sandbox, "a name").replace(' ', "\\x20");
    assert_eq!(raw, format!("{} connected 300\n{name} connected 300\n", shown(&sandbox, "d")));
    let silent = Sandbox::builder().fresh_root().build()?;
    assert_eq!(run(&silent, []).stdout, "");
    Ok(())
}

#[test]
fn json_has_all_columns_unless_some_are_named() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let master = sandbox.master(MasterOptions::new().direct("d").args(["--strictexpire", "--timeout=7"]))?;
    sandbox.touch(sandbox.path("d"))?;
    let all = mounts(&sandbox, ["-J"]);
    let [mount] = all.as_slice() else { panic!("one mount: {all:?}") };
    let list = run(&sandbox, ["--list-columns"]).stdout;
    let names: Vec<String> =
        list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_lowercase).collect();
    let keys: Vec<&String> = mount.as_object().context("an object")?.keys().collect();
    assert!(names.len() > 30 && names.iter().all(|name| keys.contains(&name)), "{names:?} {keys:?}");
    assert_eq!(keys.len(), names.len());
    assert_eq!(mount["target"], *shown(&sandbox, "d"));
    assert_eq!(mount["pid"], u32::from(master.pid()));
    assert_eq!((&mount["timeout"], &mount["strictexpire"]), (&Value::from(7), &Value::from(true)));
    assert_eq!(mount["content"][0], format!("tmpfs {}", shown(&sandbox, "d")));
    assert_eq!((&mount["waiters"], &mount["waiting"]), (&Value::Null, &Value::from(Vec::<u8>::new())));

    let some = mounts(&sandbox, ["-f", "json", "-o", "STATE,TYPE"]);
    assert_eq!(some, [serde_json::json!({"state": "connected", "type": "direct"})]);
    Ok(())
}

#[test]
fn strange_mount_points_are_one_word_or_one_line_and_can_be_told_apart() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let prefix = sandbox.work().as_os_str().len() + 1;
    let long: String = (0..15).map(|part| format!("{}{part:02}/", "x".repeat(252))).collect::<String>()
        + &"y".repeat(200 - prefix);
    assert!(prefix + long.len() > 4000);
    let names: [&[u8]; 8] = [
        b"plain",
        b"with space",
        b"new\nline\ttab",
        b"back\\slash\\040",
        b"#hash",
        b"\xff\xfe",
        "größe 日本".as_bytes(),
        long.as_bytes(),
    ];
    let mut options = MasterOptions::new();
    for name in names {
        options = options.direct(PathBuf::from(std::ffi::OsStr::from_bytes(name)));
    }
    let _master = sandbox.master(options)?;
    let expected: Vec<Vec<u8>> =
        names.iter().map(|name| [sandbox.work().as_os_str().as_bytes(), b"/", name].concat()).collect();

    let raw = run(&sandbox, ["-rn", "-o", "TARGET,TYPE"]).stdout;
    let words: Vec<Vec<&str>> = raw.lines().map(|line| line.split(' ').collect()).collect();
    assert!(words.iter().all(|words| words.len() == 2 && words[1] == "direct"), "{raw}");
    let read = |word: &str| TextPath::parse(word).expect("an escaped path").as_bytes().to_vec();
    assert_eq!(words.iter().map(|words| read(words[0])).collect::<Vec<_>>(), expected);
    let table = run(&sandbox, []).stdout;
    assert_eq!(table.lines().count(), 1 + names.len(), "{table}");
    let json: Vec<Vec<u8>> = mounts(&sandbox, ["-J"])
        .iter()
        .map(|mount| read(mount["target"].as_str().expect("a text")))
        .collect();
    assert_eq!(json, expected);
    for path in &expected {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        let one =
            Tool::inspect().target(&sandbox).args(["-rn", "-o", "TARGET"]).arg(path).run().assert_success();
        assert_eq!(read(one.stdout.trim_end()), path.as_os_str().as_bytes());
    }
    for format in [&["--tree"][..], &["-f", "yaml"], &["-f", "openmetrics"], &["--check"]] {
        Tool::inspect().target(&sandbox).args(format).run().assert_success();
    }
    Ok(())
}

#[test]
fn a_path_shows_what_serves_it_and_is_never_touched() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let options = MasterOptions::new().direct("d/one").direct("d/two").indirect("i").arg("--ignore-requests");
    let _master = sandbox.master(options)?;
    let targets = |paths: &[&str]| -> Vec<String> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| sandbox.path(path)).collect();
        let run =
            Tool::inspect().target(&sandbox).args(["-rn", "-o", "TARGET"]).args(paths).run().assert_success();
        run.stdout.lines().map(|line| line.trim_start_matches(&shown(&sandbox, "")).to_owned()).collect()
    };
    assert_eq!(targets(&["d"]), ["d/one", "d/two"]);
    assert_eq!(targets(&["d/one"]), ["d/one"]);
    assert_eq!(targets(&["d/one/below/it"]), ["d/one"]);
    assert_eq!(targets(&["i/key/x", "d/two"]), ["d/two", "i"]);
    let unread = |mount: &Value| mount["requests"].as_array().map_or(0, Vec::len);
    assert_eq!(mounts(&sandbox, ["-J"]).iter().map(unread).sum::<usize>(), 0, "nobody asked");

    // Somebody waits: every walk would hang now.
    let mut waiter = start_blocked(sandbox.command("cat").arg(sandbox.path("d/one/file")));
    assert_eq!(targets(&["d/one/file"]), ["d/one"]);
    let other = run(&sandbox, ["-v", &shown(&sandbox, "i")]);
    assert!(!other.stderr.contains("waits on"), "{other}");
    waiter.process().kill()?;

    Tool::inspect()
        .inside(&sandbox)
        .arg("nowhere")
        .run()
        .assert_code(1)
        .assert_stderr_contains("no autofs mount is at");
    let relative = Tool::inspect().target(&sandbox).arg("i").run().assert_code(1);
    relative.assert_stderr_contains("i: with -p and -A a path has to be absolute");
    let here =
        format!("cd {} && exec {} -rn -o TARGET d", shown(&sandbox, ""), program("autofs-inspect").display());
    let here = sandbox.run(["sh", "-c", &here]).assert_success();
    assert_eq!(here.stdout.lines().count(), 2, "{here}");
    Ok(())
}

#[test]
fn the_tree_goes_from_the_master_to_those_who_wait() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let (master, mut waiter) = swallowed(&sandbox, "i")?;
    let tree = run(&sandbox, ["--tree"]).stdout;
    let lines: Vec<&str> = tree.lines().collect();
    assert_eq!(lines.len(), 4, "{tree}");
    assert!(lines[0].starts_with(&format!("reference-maste[{}]", master.pid())), "{tree}");
    assert!(lines[1].starts_with("└── pipe "), "{tree}");
    assert_eq!(lines[2], format!("    └── {} (indirect, connected)", shown(&sandbox, "i")));
    let wait = format!("        └── waits: cat[{}] of root", waiter.process().pid());
    assert!(lines[3].starts_with(&wait) && lines[3].ends_with("i/key (asked first)"), "{tree}");
    assert_eq!(run(&sandbox, ["-T"]).stdout.lines().next(), Some(lines[0]));
    Ok(())
}

#[test]
fn a_wait_that_is_not_answered_is_named_at_once_and_a_fault_when_patience_ends() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let (master, mut waiter) = swallowed(&sandbox, "i")?;
    let (pid, i, serves) = (waiter.process().pid(), shown(&sandbox, "i"), master.pid());
    let table = run(&sandbox, []);
    table.assert_stderr_contains(&format!("cat[{pid}] of root ")).assert_stderr_contains(&format!(
        " on {i} for {i}/key (asked first): reference-maste[{serves}] has read the request and not answered yet\n"
    ));
    let check = || Tool::inspect().target(&sandbox).arg("--check");
    assert_eq!(check().run().assert_success().stdout, "", "a mount may be in progress");
    let late = check().args(["--patience", "0"]).run().assert_code(3);
    let said = format!("{i}: unanswered: reference-maste[{serves}] has read a request and not answered for ");
    assert!(late.stdout.starts_with(&said), "{late}");
    let repair = format!("; to repair: autofs-fixup --free -p {} {i}\n", sandbox.pid());
    assert!(late.stdout.ends_with(&repair), "{late}");
    Ok(())
}

#[test]
fn a_request_that_is_not_read_yet_is_only_told_in_detail() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().indirect("i").arg("--ignore-requests"))?;
    let _waiter = start_blocked(sandbox.command("/bin/cat").arg(sandbox.path("i/key")).user(65534));
    let table = run(&sandbox, []);
    assert!(!table.stderr.contains("has not read"), "{table}");
    let verbose = run(&sandbox, ["-v"]);
    verbose.assert_stderr_contains("] of nobody ").assert_stderr_contains("has not read the request yet");
    let all = mounts(&sandbox, ["-J", &shown(&sandbox, "i")]);
    let [mount] = all.as_slice() else { panic!("one mount: {all:?}") };
    assert!(
        mount["requests"][0].as_str().is_some_and(|text| text.starts_with("mount key for process ")),
        "{mount}"
    );
    assert_eq!(mount["waiters"], 1);
    Ok(())
}

#[test]
fn check_is_silent_when_all_is_well_and_names_what_is_not() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let _well = sandbox.master(MasterOptions::new().direct("well"))?;
    let check = || Tool::inspect().target(&sandbox).arg("--check").run();
    let silent = check().assert_success();
    assert_eq!((silent.stdout.as_str(), silent.stderr.as_str()), ("", ""));
    sandbox.master(MasterOptions::new().direct("ill"))?.kill()?;
    let found = check().assert_code(3);
    let line = format!("{}: orphaned: no process holds", shown(&sandbox, "ill"));
    assert!(found.stdout.starts_with(&line) && found.stdout.lines().count() == 1, "{found}");
    Ok(())
}

#[test]
fn metrics_count_and_the_file_appears_as_a_whole() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let (_master, _waiter) = swallowed(&sandbox, "i")?;
    sandbox.master(MasterOptions::new().direct("ill"))?.kill()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("autofs.prom");
    let written =
        Tool::inspect().target(&sandbox).args(["-f", "openmetrics", "-o"]).arg(&file).run().assert_success();
    assert_eq!((written.stdout.as_str(), said(&written).as_str()), ("", ""));
    let text = std::fs::read_to_string(&file)?;
    for line in [
        "autofs_mounts{state=\"connected\"} 1\n",
        "autofs_mounts{state=\"orphaned\"} 1\n",
        "autofs_mounts{state=\"catatonic\"} 0\n",
        "autofs_waiting_threads{outlook=\"read\"} 1\n",
        "autofs_not_visible ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.ends_with("# EOF\n"));
    let nowhere = folder.path().join("no/where");
    let failed =
        Tool::inspect().target(&sandbox).args(["-f", "yaml", "-o"]).arg(nowhere).run().assert_code(1);
    failed.assert_stderr_contains("no/where");
    Tool::inspect().target(&sandbox).args(["-f", "yaml", "-o"]).arg(&file).run().assert_success();
    doc::parse::<Report>(&std::fs::read(&file)?, "the file")?;
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 1);
    Ok(())
}

#[test]
fn it_is_written_again_when_the_mount_table_changes() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("first"))?;
    // Long enough that only a change can be the reason.
    let watch = Tool::inspect()
        .inside(&sandbox)
        .args(["--watch=1000", "-f", "yaml", "-o"])
        .arg(sandbox.path("report"));
    let mut watch = watch.spawn();
    let report = shown(&sandbox, "report");
    wait_until(&sandbox, &format!("grep -q {} {report}", shown(&sandbox, "first")));
    let _other = sandbox.master(MasterOptions::new().direct("second"))?;
    wait_until(&sandbox, &format!("grep -q {} {report}", shown(&sandbox, "second")));
    watch.process().kill()?;
    Ok(())
}

#[test]
fn on_a_terminal_it_is_written_in_place_every_so_often() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::new()?;
    let _master = sandbox.master(MasterOptions::new().direct("d"))?;
    let command = format!("stty rows 20 cols 100; exec {} --watch=0.1", program("autofs-inspect").display());
    let typescript = shown(&sandbox, "typescript");
    let mut terminal = sandbox.command("script").args(["-qfc", &command, &typescript]).spawn();
    wait_until(&sandbox, &format!("[ $(grep -ac TARGET {typescript} || :) -ge 3 ]"));
    terminal.process().kill()?;
    let written = std::fs::read_to_string(sandbox.outside(&typescript))?;
    let screens: Vec<&str> = written.split("\u{1b}[H").skip(1).collect();
    assert!(screens.len() >= 3, "{written:?}");
    assert!(
        screens[0].contains("\u{1b}[32mconnected\u{1b}[0m") && screens[0].contains(": 1 connected"),
        "{written:?}"
    );
    assert!(screens[0].trim_end().ends_with("\u{1b}[J\u{1b}[?7h"), "{written:?}");
    Ok(())
}

#[test]
fn another_user_sees_what_is_hidden_marked() -> Result<()> {
    require!(Root, Autofs, PipeInode);
    let sandbox = Sandbox::builder().fresh_root().build()?;
    let _master = sandbox.master(MasterOptions::new().direct("d"))?;
    let run = Tool::inspect()
        .inside(&sandbox)
        .user(65534)
        .args(["-rn", "-o", "STATE,MASTER,PID,PIPE-ENDS,CONTENT"])
        .run();
    let run = run.assert_success();
    assert_eq!(run.stdout, "unknown ? ? ? -\n", "{run}");
    run.assert_stderr_contains("not visible: the descriptors of ");
    let check = Tool::inspect().inside(&sandbox).user(65534).arg("--check").run().assert_code(3);
    assert!(check.stdout.contains(": unknown: "), "{check}");
    Ok(())
}

#[test]
fn what_cannot_be_looked_at_is_named() {
    let gone = i32::MAX.to_string();
    let run = Tool::inspect().args(["-p", &gone]).run().assert_code(1);
    assert_eq!(run.stderr, format!("autofs-inspect: process {gone} does not exist\n"));
    for arguments in [
        &["-p", "0"][..],
        &["-p", "x"],
        &["-A", "-p", "1"],
        &["-f", "xml"],
        &["-o", "TARGET,NO"],
        &["--watch=x"],
    ] {
        Tool::inspect().args(arguments).run().assert_code(2);
    }
    Tool::inspect()
        .args(["-o", "report.yaml"])
        .run()
        .assert_stderr_contains("there is no column 'report.yaml'");
    Tool::inspect().arg("--help").run().assert_success();
    Tool::inspect().arg("--version").run().assert_success();
}

#[test]
fn a_proc_of_another_pid_namespace_is_refused() -> Result<()> {
    require!(Root);
    let tool = program("autofs-inspect").display().to_string();
    let run = TestCommand::new("unshare").args(["--pid", "--fork", &tool]).run().assert_code(1);
    run.assert_stderr_contains("belongs to another pid namespace");
    Ok(())
}
