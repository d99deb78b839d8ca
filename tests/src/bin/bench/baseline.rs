//! Figures that are kept, to be compared with.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::results::Row;

/// By how much the ratio to the floor may differ from run to run.
const NOISE: f64 = 1.1;

/// What is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    kernel: String,
    stages: Vec<Row>,
}

/// Compares with the figures in a file, or keeps these there if there is none.
pub fn compare(path: &Path, rows: Vec<Row>, text: &mut String) -> Result<()> {
    let name = path.display();
    if !path.exists() {
        let kept = Kept { kernel: kernel(), stages: rows };
        fs::write(path, serde_json::to_string_pretty(&kept)?).with_context(|| format!("write {name}"))?;
        return Ok(writeln!(text, "kept in {name}: the next run with it compares")?);
    }
    let kept = fs::read_to_string(path).with_context(|| format!("read {name}"))?;
    let kept: Kept = serde_json::from_str(&kept).with_context(|| format!("{name} has no figures"))?;
    writeln!(text, "in floors, beside those of {name} (kernel {}):\n", kept.kernel)?;
    writeln!(text, "{:<18} {:>6} {:>7} {:>7} {:>7}", "stage", "mounts", "before", "now", "change")?;
    for row in rows {
        let before = kept.stages.iter().find(|kept| (&kept.stage, kept.mounts) == (&row.stage, row.mounts));
        let Some((before, now)) = before.and_then(|before| before.ratio).zip(row.ratio) else { continue };
        let change = now / before;
        let word = match change {
            _ if change > NOISE => "slower",
            _ if change < 1.0 / NOISE => "faster",
            _ => "",
        };
        let line = format!(
            "{:<18} {:>6} {before:>7.2} {now:>7.2} {:>+6.0}%  {word}",
            row.stage,
            row.mounts,
            (change - 1.0) * 100.0
        );
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The release of the running kernel.
pub fn kernel() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".to_owned(), |uname| uname.release().to_string_lossy().into_owned())
}
