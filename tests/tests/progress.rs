//! The bar of long work: on a terminal only, and gone at the end.

use anyhow::Result;
use autofs_cr_tests::guard::alone;
use autofs_cr_tests::require;
use autofs_cr_tests::sandbox::{Finished, MasterOptions, Sandbox, TestCommand, program};

/// Enough for a bar.
const MOUNTS: usize = 1100;

/// Erases a line.
const ERASE: &str = "\x1b[2K";

/// Runs a script with a terminal as standard error, and the names of the tools as variables. What is written to the
/// terminal is its output.
fn on_terminal(script: &str, environment: &str) -> Finished {
    let tools = ["dump", "restore", "fixup"]
        .map(|tool| format!("{tool}={}", program(&format!("autofs-{tool}")).display()))
        .join(" ");
    let script = format!("export TERM=xterm {environment}; {tools}; {script}");
    TestCommand::new("script").args(["--quiet", "--return", "--command", &script, "/dev/null"]).run()
}

#[test]
fn every_tool_shows_a_bar_on_a_terminal_and_erases_it() -> Result<()> {
    require!(Root, Autofs, Ptrace);
    let _alone = alone();
    let sandbox = Sandbox::new()?;
    let many = sandbox.path("many");
    let options = MasterOptions::new().args(["--identity=device", "--bulk"]).arg(&many);
    let mut master = sandbox.master(options.arg(MOUNTS.to_string()))?;
    let pid = sandbox.pid();
    let at_once = format!("$dump -p {pid} | $restore -p {pid} --replace > /dev/null");
    let by_fixup = format!("$dump -p {pid} | $restore -p {pid} --replace --connect=fixup | $fixup");
    let whole = format!("{at_once}; {by_fixup}");
    let seen = on_terminal(&whole, "").assert_success().stdout;
    for bar in ["autofs-dump: read ", "autofs-restore: made ", "autofs-fixup: connected "] {
        let start = format!("{bar}0 of {MOUNTS} [");
        let (_, rest) = seen.split_once(&*start).unwrap_or_else(|| panic!("no '{start}' in {seen:?}"));
        let last = rest.rsplit_once(&format!(" of {MOUNTS} [")).map_or(rest, |(_, last)| last);
        assert!(last.contains(ERASE), "the bar of '{bar}' is left in {seen:?}");
    }
    assert!(!seen.contains("\x1b[3"), "it has colours: {seen:?}");

    let quiet = by_fixup.replace(" -p", " -q -p").replace("$fixup", "$fixup -q");
    let in_a_pipe = format!("({whole}) 2>&1 | cat");
    for (script, environment) in [(&quiet, ""), (&in_a_pipe, ""), (&whole, "TERM=dumb")] {
        let seen = on_terminal(script, environment).assert_success().stdout;
        assert!(!seen.contains('[') && !seen.contains('\x1b'), "{script}: {seen:?}");
    }
    sandbox.touch(many.join("000000"))?;
    master.assert_undisturbed();
    sandbox.close()
}
