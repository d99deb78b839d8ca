//! Names that were chosen to mislead whoever reads them: no tool sends what steers a terminal, be it in its output or in a
//! message, and each name comes through the whole pipeline as it is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::Result;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::images::{lasting, make_catatonic};
use autofs_cr_tests::sandbox::{End, Finished, MasterOptions, Sandbox, TestCommand, Tool, program};

/// Each is a directory that a master serves.
const NAMES: &[&[u8]] = &[
    b" two  spaces ",
    b"tab\tnew\nline\r",
    b"\x1b[2J\x1b[1;1Hcleared",
    b"\x1b]0;title\x07\x1b\\",
    b"\x1bP+q\x1b\\\x1b_\x9c",
    // The same as C1 controls, in UTF-8 and bare.
    "\u{9b}31m\u{9d}0;title\u{9c}".as_bytes(),
    b"\x9b31m\xff\xfe\xc3(",
    b"\\040\\x1b\\134\\",
    b"back\x08\x7fspace",
    b"- mount autofs rw,fd=3",
    b"$(touch x)`touch y`;&|<>*?'\"!#%s",
    b"-rf",
    b"(deleted) //deleted",
    "\u{fffd}\u{1f4be}\u{e4}".as_bytes(),
];

/// As long as a path can be for a system call, all but a little.
const LONG: usize = 4000;

fn long(sandbox: &Sandbox) -> std::path::PathBuf {
    let mut path = sandbox.path("long");
    while path.as_os_str().len() < LONG {
        let left = LONG - path.as_os_str().len();
        path.push(OsStr::from_bytes(&[b'\x1b'; 200][..left.min(200)]));
    }
    path
}

/// Nothing that a tool writes steers a terminal.
#[track_caller]
fn harmless(finished: Finished) -> Finished {
    let text = [&finished.stdout, &finished.stderr].map(|text| text.chars());
    let steers = text.into_iter().flatten().find(|&c| c.is_control() && c != '\n');
    // What is no UTF-8 is replaced by this where the output of a program is read, and is in one of the names.
    finished.check(steers.is_none(), &format!("no control characters, and not {steers:?}"))
}

#[test]
fn none_of_them_reaches_a_terminal_and_all_come_back() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let mut paths: Vec<_> = NAMES.iter().map(|name| sandbox.path(OsStr::from_bytes(name))).collect();
    paths.push(long(&sandbox));
    let options = paths.iter().fold(MasterOptions::new(), |options, path| options.direct(path));
    let master = sandbox.master(options.indirect("\x1b[31mred"))?;
    let inspect = |arguments: &[&str]| harmless(Tool::inspect().args(arguments).target(&sandbox).run());
    let all = || {
        for arguments in [
            &["-o", "+STATE"][..],
            &["--raw"],
            &["--tree"],
            &["--json"],
            &["-f", "yaml"],
            &["-f", "openmetrics"],
            &["--check"],
            &["-v"],
        ] {
            inspect(arguments);
        }
    };
    all();
    let image = harmless(Tool::dump().target(&sandbox).run()).assert_success().stdout;
    make_catatonic(&sandbox, &image);
    all();
    let restore = || Tool::restore().target(&sandbox).arg("-v").stdin(&*image);
    harmless(restore().arg("-n").run()).assert_success();
    harmless(restore().arg("--timeout=0.1").run()).assert_code(1);
    let (restored, fixed) = restore().pipe(Tool::fixup().arg("-v"));
    harmless(restored).assert_success();
    harmless(fixed).assert_success();
    assert_eq!(lasting(&Tool::dump().target(&sandbox).run().stdout), lasting(&image));
    for path in &paths {
        sandbox.touch(path)?;
    }
    sandbox.touch(sandbox.path("\x1b[31mred/\x1b[32mgreen"))?;
    all();
    master.kill()?;
    all();
    harmless(Tool::fixup().args(["--free", "-v"]).target(&sandbox).run()).assert_success();
    sandbox.close()
}

/// What a user names, or somebody who makes the user do so.
#[test]
fn nor_is_any_repeated_in_a_message() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    for name in NAMES.iter().chain([&&[b'\x1b'; 5000][..]]) {
        // Nothing is there, and nothing can be made there.
        let file = sandbox.path("none").join(OsStr::from_bytes(name));
        let tools = ["autofs-inspect", "autofs-dump", "autofs-restore", "autofs-fixup"];
        for (tool, option) in
            tools.iter().flat_map(|tool| ["-i", "-o", "--pid", "--timeout"].map(|o| (tool, o)))
        {
            let command = sandbox.command(program(tool)).arg(option).arg(&file);
            let finished = harmless(command.stdin(name.to_vec()).run());
            let has_failed = !matches!(finished.end, Some(End::Exit(0)));
            finished.check(has_failed, "a failure");
        }
        let documents: [fn(&str) -> String; 3] = [
            |name| format!("format: {name:?}\n"),
            |name| format!("format: \"autofs-cr/image/1\"\n{name:?}: 1\n"),
            |name| format!("format: \"autofs-cr/image/1\"\nmasters: [{{id: {name:?}, kind: {name:?}}}]\n"),
        ];
        for document in documents {
            let text = document(&String::from_utf8_lossy(name));
            for tool in tools.iter().filter(|tool| **tool != "autofs-inspect") {
                let command: TestCommand = sandbox.command(program(tool)).args(["-i", "-"]);
                harmless(command.stdin(text.clone()).run()).assert_code(1);
            }
        }
    }
    sandbox.close()
}

/// Some libraries leave escape sequences out where the output is no terminal.
#[test]
fn nor_on_a_terminal() -> Result<()> {
    require!(Root, Autofs);
    let sandbox = Sandbox::new()?;
    for tool in ["autofs-inspect", "autofs-dump", "autofs-restore", "autofs-fixup"] {
        for arguments in
            ["-o \"$NAME\"", "--timeout \"$NAME\"", "--pid \"$NAME\"", "-i \"$NAME\"", "\"-$NAME\""]
        {
            let command = format!("{} {arguments} < /dev/null", program(tool).display());
            let script = sandbox.command("script").args(["-qec", &command, "/dev/null"]);
            let name = sandbox.path("none/\x1b[2J\x1b]0;title\x07\x1b[31;7m");
            let shown = script.env("NAME", name).run();
            let steers = shown.stdout.chars().any(|c| c.is_control() && c != '\n' && c != '\r');
            shown.check(!steers, "no control characters").assert_stdout_contains(": ");
        }
    }
    sandbox.close()
}
