//! What is measured, its floor, and what is aimed at: one table.

/// A plain loop of the system calls that cannot be avoided, for all mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floor {
    Mountinfo,
    Connect,
    Replace,
    Create,
    Fix,
}

impl Floor {
    /// What it does.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mountinfo => "reading mountinfo",
            Self::Connect => "mount + TIMEOUT",
            Self::Replace => "umount + mount + TIMEOUT",
            Self::Create => "mount + TIMEOUT + CATATONIC + device check",
            Self::Fix => "OPENMOUNT + SETPIPEFD + close",
        }
    }
}

/// A stage of the pipeline, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    InspectTable,
    InspectYaml,
    Dump,
    Connect,
    Replace,
    Create,
    Fixup,
    Stopped,
    Pipeline,
    PipelineByFixup,
}

/// What is aimed at for a stage.
#[derive(Debug)]
pub struct Aim {
    pub stage: Stage,
    pub name: &'static str,
    /// Its floor is the sum of these.
    pub floors: &'static [Floor],
    /// How many times its floor it may take.
    pub ratio: Option<f64>,
    /// Its peak memory, in MiB.
    pub memory: Option<f64>,
}

/// How much more a stage may take for ten times the mounts.
pub const GROWTH_OF_TEN: f64 = 11.0;

/// How much slower many masters may be than one with as many mounts: no slower, but for what varies.
pub const MANY_MASTERS: f64 = 1.1;

use Floor::{Connect, Create, Fix, Mountinfo, Replace};

/// All of them, in the order in which they are printed.
pub const AIMS: [Aim; 10] = [
    aim(Stage::InspectTable, "inspect", &[Mountinfo], Some(3.0), None),
    aim(Stage::InspectYaml, "inspect -f yaml", &[Mountinfo], Some(5.0), None),
    aim(Stage::Dump, "dump", &[Mountinfo], Some(5.0), Some(100.0)),
    aim(Stage::Create, "restore, create", &[Create], Some(1.3), None),
    aim(Stage::Connect, "restore, connect", &[Connect], Some(1.3), None),
    aim(Stage::Replace, "restore --replace", &[Replace], None, None),
    aim(Stage::Fixup, "fixup --pid", &[Fix], None, None),
    aim(Stage::Stopped, "fixup: stopped", &[Fix], Some(2.0), None),
    aim(Stage::Pipeline, "pipeline", &[Mountinfo, Replace], Some(2.0), None),
    aim(Stage::PipelineByFixup, "pipeline by fixup", &[Mountinfo, Replace, Fix], Some(2.0), None),
];

const fn aim(
    stage: Stage,
    name: &'static str,
    floors: &'static [Floor],
    ratio: Option<f64>,
    memory: Option<f64>,
) -> Aim {
    Aim { stage, name, floors, ratio, memory }
}
