//! What is said on standard error beside the output.

use autofs_cr_common::cli::Voice;
use autofs_cr_common::doc::Report;

/// Says what could not be seen, and what is waiting.
pub fn tell(report: &Report, voice: Voice) {
    for hidden in &report.hidden {
        voice.note(format_args!("not visible: {hidden}"));
    }
    voice.detail(format_args!(
        "{} mounts of {} superblocks in {} mount namespaces, {} processes with a pipe or a control fd, {} requests unread",
        report.mounts.len(),
        report.superblocks.len(),
        report.namespaces.len(),
        report.processes.len(),
        report.requests.len(),
    ));
}
