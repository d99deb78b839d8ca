//! What is said on standard error beside the output.

use autofs_cr_common::cli::Voice;
use autofs_cr_common::doc::Report;

use crate::waiting::{self, Outlook};

/// Says what could not be seen, and what is waiting.
pub fn tell(report: &Report, voice: Voice) {
    for hidden in &report.hidden {
        voice.note(format_args!("not visible: {hidden}"));
    }
    voice.detail(format_args!(
        "{} mounts of {} superblocks in {} mount namespaces, {} processes with a pipe or a control fd, {} requests unread, {} threads waiting",
        report.mounts.len(),
        report.superblocks.len(),
        report.namespaces.len(),
        report.processes.len(),
        report.requests.len(),
        report.waiters.len(),
    ));
}

/// Says who waits: always of those that nobody may answer, in detail of those that are waited for a moment.
pub fn tell_of_waiters(report: &Report, own: Option<u64>, voice: Voice) {
    for waiting in waiting::all(report, own) {
        match waiting.outlook {
            Outlook::MasterGone | Outlook::Read(_) | Outlook::Unclear => voice.note(waiting),
            Outlook::Unread(_) => voice.detail(waiting),
        }
    }
}
