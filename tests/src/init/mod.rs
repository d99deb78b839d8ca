//! The helper `sandbox-init`: makes the namespaces of a sandbox and runs processes in them.
//!
//! Each call connects to an abstract Unix socket of the test (the link) before it enters anything,
//! tells there what happens, one line each, and ends what it started when the link is closed:
//! no process outlives the test that wanted it.

mod link;
mod runner;
mod touch;
mod world;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// The command line of `sandbox-init`.
#[derive(Debug, Parser)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the namespaces, start their init, end it when the link closes
    New {
        #[arg(long)]
        link: String,
        #[arg(long)]
        same_pid_namespace: bool,
        #[command(flatten)]
        world: World,
    },
    /// Be the init of the namespaces
    Init {
        #[arg(long)]
        same_pid_namespace: bool,
        #[command(flatten)]
        world: World,
    },
    /// Run a command, in the namespaces of a process where one is named
    Run {
        #[arg(long)]
        link: String,
        #[arg(long)]
        enter: Option<i32>,
        #[command(flatten)]
        program: Program,
    },
    /// Become a command that dies with its parent
    Exec {
        #[command(flatten)]
        program: Program,
    },
    /// Open a path, and print what is in it if it is a file
    Touch { path: PathBuf },
}

/// What a sandbox is made of.
#[derive(Debug, Args)]
struct World {
    /// The work directory, a tmpfs inside
    #[arg(long)]
    work: PathBuf,
    /// A root of its own
    #[arg(long)]
    fresh_root: bool,
    /// A /dev/shm of its own
    #[arg(long)]
    shm: bool,
    /// With a root of its own: a directory to have there too
    #[arg(long)]
    bind: Vec<PathBuf>,
}

/// A command, and as whom to run it.
#[derive(Debug, Args)]
struct Program {
    #[arg(long)]
    uid: Option<u32>,
    /// Stop before the command is executed, for a tracer to go on from there
    #[arg(long)]
    held: bool,
    #[arg(last = true, required = true)]
    words: Vec<OsString>,
}

/// Does what the command line says.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::New { link, same_pid_namespace, world } => world::new(&link, same_pid_namespace, &world),
        Command::Init { same_pid_namespace, world } => world::init(same_pid_namespace, &world),
        Command::Run { link, enter, program } => runner::run(&link, enter, &program),
        Command::Exec { program } => runner::exec(&program),
        Command::Touch { path } => Ok(touch::touch(&path)),
    }
}
