//! What is run in a world where something hangs. `@` stands for the work directory, and `@HUNG` and `@MOUNT` for what hangs and
//! the mount that it is on.

use anyhow::Result;
use autofs_cr_common::doc::{self, Image};
use autofs_cr_tests::sandbox::{End, Finished, TestCommand, Tool, program};

use crate::kinds::World;

/// A command, and what must have come of it.
pub struct Command {
    pub name: &'static str,
    pub build: fn(&World) -> TestCommand,
    pub check: fn(Finished, &World),
}

/// The sentences by which a command may fail: each tells what is wrong.
const REASONS: &[&str] = &[
    "no answer for",
    "is not answered",
    "a request or an expire is pending",
    "it is in use",
    "the timeout passed",
    "the restore that made this segment",
    "is stopped",
    "still waits",
    "(nothing was changed)",
    "nothing was changed, as",
    "cannot be opened",
    "cannot stop it",
    "which the image does not have",
    "permission denied",
    "make the directory",
    "cannot execute /bin/true",
    // The copy of a namespace that another of these commands makes.
    "would not be replaced with it",
    "lives (process",
    "the stage document has no segment",
];

const fn command(
    name: &'static str,
    build: fn(&World) -> TestCommand,
    check: fn(Finished, &World),
) -> Command {
    Command { name, build, check }
}

/// Commands that change nothing, or nothing that hangs.
pub const HARMLESS: &[Command] = &[
    command("inspect", |world| tool(world, Tool::inspect(), ""), shows_all),
    command("inspect -A", |world| tool(world, Tool::inspect(), "-A"), shows),
    command("inspect -J", |world| tool(world, Tool::inspect(), "-J"), shows_all),
    command("inspect --tree", |world| tool(world, Tool::inspect(), "--tree"), shows_all),
    command("inspect -f yaml", |world| tool(world, Tool::inspect(), "-f yaml"), shows_all),
    command("inspect -f openmetrics", |world| tool(world, Tool::inspect(), "-f openmetrics"), done),
    command("inspect --check", |world| tool(world, Tool::inspect(), "--check"), checks),
    command("inspect PATH", |world| tool(world, Tool::inspect(), "@HUNG/x"), shows),
    command("inspect in a directory", |world| script(world, "cd i && exec {inspect}"), shows_all),
    command("dump", |world| tool(world, Tool::dump(), "--timeout 1"), dumps_all),
    command("dump PATH", |world| tool(world, Tool::dump(), "--timeout 1 @MOUNT"), dumps),
    command("dump -i", |world| script(world, "{inspect} -f yaml | {dump} --timeout 1 -i -"), dumps_all),
    command("dump -p", |world| outside(world, Tool::dump().args(["--timeout", "1"])), dumps_all),
    command("restore", |world| restore(world, "", "@hung-image"), fails_or_done),
    command("restore --replace", |world| restore(world, "--replace", "@hung-image"), fails_or_done),
    command("restore --replace -p", |world| outside(world, by_stdin(world, "--replace")), fails_or_done),
    command("restore -n", |world| restore(world, "--replace -n", "@image"), fails_or_done),
    command("restore below it", |world| restore(world, "--identity none", "@below"), fails_or_done),
    command("restore --init", |world| init(world, "--init"), fails_or_done),
    command("restore --init --root", |world| init(world, "--init --root @root"), done),
    command("restore --init --root on it", |world| init(world, "--init --root @HUNG"), fails_or_done),
    command("fixup --free -n", |world| tool(world, Tool::fixup(), "--free -n"), fails_or_done),
    command("fixup --free -n PATH", |world| tool(world, Tool::fixup(), "--free -n @MOUNT"), fails_or_done),
];

/// Files that are on what hangs: a fault of the user, who is told so.
pub const FILES: &[Command] = &[
    command("dump -o on it", |world| tool(world, Tool::dump(), "-o @HUNG/file @f"), fails),
    command("restore -i on it", |world| restore(world, "", "@HUNG/x"), fails),
];

/// Commands that connect a mount beside, each time after that was given up.
pub const BESIDE: &[Command] = &[
    command("restore | fixup", |world| beside(world, "{fixup}"), fails_or_done),
    command("restore | fixup --pid", |world| beside(world, "{fixup} --pid 2 -i -"), fails_or_done),
    command(
        "restore | fixup --exec",
        |world| beside(world, "{fixup} -i - --exec -- /bin/true"),
        fails_or_done,
    ),
];

/// Commands that free what hangs, one after the other.
pub const FREEING: &[Command] = &[
    command("fixup --free", |world| tool(world, Tool::fixup(), "--free --timeout 3"), fails_or_done),
    command(
        "fixup --free PATH",
        |world| tool(world, Tool::fixup(), "--free --timeout 3 @MOUNT"),
        fails_or_done,
    ),
    command(
        "fixup --free --kill",
        |world| tool(world, Tool::fixup(), "--free --timeout 3 --kill @MOUNT"),
        fails_or_done,
    ),
];

fn tool(world: &World, tool: TestCommand, words: &str) -> TestCommand {
    let text = [("@HUNG", world.hung), ("@MOUNT", world.mount)]
        .iter()
        .fold(words.to_owned(), |text, (name, path)| text.replace(name, &format!("@{path}")));
    let words = text.split_whitespace().map(|word| word.replace('@', &world.path("")));
    tool.args(words.collect::<Vec<_>>()).inside(&world.sandbox)
}

fn script(world: &World, script: &str) -> TestCommand {
    let names = ["inspect", "dump", "restore", "fixup"];
    let script = names.iter().fold(script.to_owned(), |text, name| {
        text.replace(&format!("{{{name}}}"), &program(&format!("autofs-{name}")).display().to_string())
    });
    let script = format!("cd {} && {script}", world.path(""));
    TestCommand::new("sh").args(["-c", &script]).inside(&world.sandbox)
}

/// From another namespace.
fn outside(world: &World, tool: TestCommand) -> TestCommand {
    tool.target(&world.sandbox)
}

fn restore(world: &World, options: &str, image: &str) -> TestCommand {
    tool(world, Tool::restore(), &format!("--timeout 2 {options} -i {image}"))
}

fn by_stdin(world: &World, option: &str) -> TestCommand {
    Tool::restore().args(["--timeout", "2", option]).stdin(world.hung_image.clone())
}

fn init(world: &World, options: &str) -> TestCommand {
    tool(world, Tool::restore(), &format!("--timeout 2 -i @empty {options} -- /bin/true"))
}

/// The master is the first process of the world, behind its init.
fn beside(world: &World, fixup: &str) -> TestCommand {
    script(world, &format!("{{restore}} --timeout 2 -i free-image | {fixup}"))
}

fn shows(finished: Finished, world: &World) {
    finished.assert_success().assert_stdout_contains(&world.path(world.mount));
}

fn shows_all(finished: Finished, world: &World) {
    let finished = finished.assert_success();
    ["d", "f", "i", "o"]
        .iter()
        .fold(finished, |finished, name| finished.assert_stdout_contains(&world.path(name)));
}

fn checks(finished: Finished, _: &World) {
    let ended = matches!(finished.end, Some(End::Exit(0 | 3)));
    finished.check(ended, "no end of --check");
}

fn image(finished: &Finished) -> Image {
    doc::parse(finished.stdout.as_bytes(), "the image").expect("an image")
}

fn dumps_all(finished: Finished, world: &World) {
    let finished = finished.assert_success();
    let before: Image = doc::parse(world.image.as_bytes(), "the image").expect("an image");
    let found = image(&finished);
    let devices =
        |image: &Image| image.superblocks.iter().map(|superblock| superblock.device).collect::<Vec<_>>();
    finished.check(devices(&found) == devices(&before), "other superblocks");
}

fn dumps(finished: Finished, world: &World) {
    let finished = finished.assert_success();
    let found = image(&finished);
    let is_it = found.mounts.iter().any(|mount| mount.mount_point.to_string() == world.path(world.mount));
    finished.check(is_it, "not the mount");
}

fn done(finished: Finished, _: &World) {
    finished.assert_success();
}

fn fails(finished: Finished, _: &World) {
    let told = REASONS.iter().any(|reason| finished.stderr.contains(reason));
    finished.assert_code(1).check(told, "no reason");
}

fn fails_or_done(finished: Finished, world: &World) {
    match finished.end {
        Some(End::Exit(0 | 3)) => {}
        _ => fails(finished, world),
    }
}

/// Puts the files there that the commands name.
pub fn furnish(world: &World) -> Result<()> {
    let below = world.free_image.replace(&world.path("f"), &format!("{}/f", world.path(world.hung)));
    let empty = "format: \"autofs-cr/image/1\"\nmasters: []\nsuperblocks: []\nmounts: []\n...\n";
    let files = [
        ("image", &*world.image),
        ("hung-image", &world.hung_image),
        ("free-image", &world.free_image),
        ("below", &below),
        ("empty", empty),
    ];
    for (name, text) in files {
        std::fs::write(world.sandbox.outside(world.path(name)), text)?;
    }
    let root = world.path("root");
    let script = format!(
        "mkdir -p {root} && cd {root} && mkdir usr bin lib lib64 && for d in usr bin lib lib64; do mount --rbind /$d $d; done"
    );
    world.sandbox.run(["sh", "-c", &script]).assert_success();
    Ok(())
}
