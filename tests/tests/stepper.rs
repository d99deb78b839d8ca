//! The stepper itself, on commands that everybody has.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use autofs_cr_tests::sandbox::{End, Running, TestCommand};
use autofs_cr_tests::stepper::{Family, Point, Step, step};
use nix::sys::signal::Signal;

fn held(script: &str) -> Running {
    TestCommand::new("sh").args(["-c", script]).held().spawn()
}

/// How many calls a script makes.
fn count(script: &str) -> Result<u64> {
    let mut running = held(script);
    let Step::Ended(count) = step(&mut running, Point::any(u64::MAX), |_| panic!("not so many"))? else {
        panic!("not so many")
    };
    running.finish().assert_success();
    Ok(count)
}

#[test]
fn a_command_that_does_not_come_to_the_point_ends_by_itself() -> Result<()> {
    let calls = count("echo a")?;
    assert!(calls > 10, "{calls}");
    let mut last = held("echo a");
    assert_eq!(step(&mut last, Point::any(calls), |_| {})?, Step::Reached);
    last.finish().assert_success().assert_stdout_contains("a");
    let mut beyond = held("exit 7");
    assert!(matches!(step(&mut beyond, Point::any(100_000), |_| {})?, Step::Ended(_)));
    beyond.finish().assert_code(7);
    Ok(())
}

#[test]
fn every_state_between_two_calls_is_met_and_a_killed_family_does_nothing_more() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let base = directory.path().display();
    // What is made is made by children of the shell.
    let script =
        |run: u64| format!("mkdir {base}/{run}; mkdir {base}/{run}/a; mkdir {base}/{run}/b; echo end");
    let mut met = Vec::new();
    // A program makes many calls before it makes a directory.
    for number in (1..).step_by(5) {
        let mut running = held(&script(number));
        let reached = step(&mut running, Point::change(number), |family| {
            family.kill();
            let is_dead =
                |pid| fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z "));
            assert!(family.processes().all(is_dead));
        })?;
        let end = running.finish();
        if matches!(reached, Step::Ended(_)) {
            end.assert_success().assert_stdout_contains("end");
            break;
        }
        assert_eq!(end.end, Some(End::Signal(Signal::SIGKILL as i32)), "{number}: {end}");
        let run = directory.path().join(number.to_string());
        met.push(["", "a", "b"].map(|name| run.join(name).exists()));
    }
    // A child and its parent run side by side, so that a number is not always the same call.
    for state in [[false; 3], [true, false, false], [true, true, false], [true; 3]] {
        assert!(met.contains(&state), "{state:?} was not met: {met:?}");
    }
    Ok(())
}

#[test]
fn the_children_of_a_command_that_is_killed_alone_go_on() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("file");
    let script = format!("(mkdir {0}.half; mkdir {0}) & wait; mkdir {0}.end", file.display());
    let has_child = |family: &Family| family.processes().count() > 1;
    let mut number = 1;
    loop {
        let mut running = held(&script);
        let mut was_alone = true;
        let step = step(&mut running, Point::any(number), |family| {
            was_alone = !has_child(family);
            if !was_alone {
                family.kill_tool();
            }
        })?;
        assert_eq!(step, Step::Reached, "the command has a child at some point");
        let end = running.finish();
        if !was_alone {
            assert_eq!(end.end, Some(End::Signal(Signal::SIGKILL as i32)), "{end}");
            break;
        }
        end.assert_success();
        for left in ["", ".half", ".end"] {
            fs::remove_dir(format!("{}{left}", file.display()))?;
        }
        number += 5;
    }
    wait_for(&file);
    assert!(!Path::new(&format!("{}.end", file.display())).exists(), "the command itself is dead");
    Ok(())
}

/// A process that nobody waits for tells nobody when it is done.
fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} is not made", path.display());
        std::thread::yield_now();
    }
}

#[test]
fn a_run_costs_little_time() -> Result<()> {
    let runs: u32 = 10;
    let started = Instant::now();
    for _ in 0..runs {
        let mut running = TestCommand::new("true").held().spawn();
        assert!(matches!(step(&mut running, Point::any(u64::MAX), |_| {})?, Step::Ended(_)));
        running.finish().assert_success();
    }
    let each = started.elapsed() / runs;
    println!("{each:?} for each run");
    // On a machine that has nothing else to do it is some milliseconds.
    assert!(each < Duration::from_secs(1), "{each:?}");
    Ok(())
}
