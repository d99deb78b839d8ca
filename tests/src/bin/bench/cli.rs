//! The options of the benchmark.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Measure inspect, dump, restore and fixup for many direct mounts of one master, each beside its floor:
/// the same system calls made by a plain loop. Needs root; all happens in namespaces of its own.
#[derive(Debug, Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Cli {
    /// The numbers of mounts to measure with
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "2000,20000",
          value_parser = count_parser())]
    pub sizes: Vec<usize>,
    /// How often each stage is run; the table has the median
    #[arg(long, value_name = "N", default_value = "5", value_parser = count_parser())]
    pub runs: usize,
    /// Measure only this part
    #[arg(long, value_enum)]
    pub only: Option<Subject>,
    /// Compare the stages with the figures in FILE; where there is no such file, keep those of this run there
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub baseline: Option<PathBuf>,
    /// Print JSON in place of the table
    #[arg(long)]
    pub json: bool,
    #[command(subcommand)]
    pub part: Option<Part>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Subject {
    /// Every stage, for each number of mounts
    Stages,
    /// 200 masters with 100 mounts each, beside one master with 20,000
    Masters,
    /// What fails for those who use mounts while they are replaced
    Load,
    /// A look at a host with 20,000 mounts, 2,000 processes and 100,000 descriptors
    Host,
}

impl Cli {
    /// Whether this part is asked for.
    pub fn wants(&self, subject: Subject) -> bool {
        self.only.is_none_or(|only| only == subject)
    }
}

fn count_parser() -> impl clap::builder::TypedValueParser<Value = usize> {
    use clap::builder::TypedValueParser;
    clap::value_parser!(u32).range(1..).map(|count| count as usize)
}

/// What the benchmark calls itself for.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// Run a command and tell what it took
    #[command(hide = true)]
    Measure(MeasureOrder),
    /// Be one of the plain loops
    #[command(hide = true)]
    Loop(LoopOrder),
    /// Be threads that read a file on each mount all the time
    #[command(hide = true)]
    Touch(TouchOrder),
    /// Be many processes with many descriptors
    #[command(hide = true)]
    Crowd(CrowdOrder),
}

/// Readers of a file on each of the mounts at PREFIX/000000 and so on.
#[derive(Debug, Args)]
pub struct TouchOrder {
    #[arg(long)]
    pub prefix: PathBuf,
    #[arg(long)]
    pub count: usize,
    #[arg(long)]
    pub threads: usize,
    /// A FIFO: they read until its other end is closed
    #[arg(long)]
    pub fifo: PathBuf,
}

/// Processes that sleep.
#[derive(Debug, Args)]
pub struct CrowdOrder {
    #[arg(long)]
    pub processes: usize,
    /// How many each has
    #[arg(long)]
    pub descriptors: usize,
}

/// A command to be measured.
#[derive(Debug, Args)]
pub struct MeasureOrder {
    /// Where its standard output goes; without it, nowhere
    #[arg(long)]
    pub stdout: Option<PathBuf>,
    /// Where its standard error goes
    #[arg(long)]
    pub stderr: PathBuf,
    #[arg(last = true, required = true)]
    pub words: Vec<std::ffi::OsString>,
}

/// Mounts at PREFIX/000000 and so on, served by a master with a read end.
#[derive(Clone, Debug, Args)]
pub struct LoopOrder {
    #[arg(value_enum)]
    pub what: Loop,
    #[arg(long)]
    pub prefix: PathBuf,
    #[arg(long)]
    pub count: usize,
    #[arg(long)]
    pub master: i32,
    #[arg(long)]
    pub read_fd: i32,
}

/// Which loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Loop {
    /// Unmount all
    Unmount,
    /// Mount all, connected
    Connect,
    /// Replace each by a new one, connected
    Replace,
    /// Mount all, catatonic, and then connect them to this process; unmount them
    Staged,
}
