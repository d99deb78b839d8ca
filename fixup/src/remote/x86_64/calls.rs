//! The system calls of the chain, and what seccomp filters may say to them.

use super::super::seccomp::{Asked, Filters, Verdict};

/// Without these the chain does not come to its end as it has to, with everything as it was: they must be allowed
/// also when the engine is gone.
const VITAL: [(&str, i64); 3] = [
    ("rt_sigreturn", libc::SYS_rt_sigreturn),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("close", libc::SYS_close),
];

/// The chain ends where one of these fails. So it is enough if they are allowed while the filters are suspended, for
/// as long as the engine is there.
const OTHERS: [(&str, i64); 4] = [
    ("socketpair", libc::SYS_socketpair),
    ("recvmsg", libc::SYS_recvmsg),
    ("sendmsg", libc::SYS_sendmsg),
    ("sendto", libc::SYS_sendto),
];

/// Whether the filters have to be suspended for the chain; the error is the reason why a thread with these filters
/// cannot run it.
pub fn needs_suspension(filters: &Filters) -> Result<bool, String> {
    let mut suspended = false;
    for (calls, is_vital) in [(&VITAL[..], true), (&OTHERS[..], false)] {
        for &(name, number) in calls {
            match filters.verdict(&Asked { name, number, arguments: [None; 6] }) {
                Verdict::Allowed => {}
                Verdict::Refused if !is_vital => suspended = true,
                Verdict::Refused => return Err(format!("has seccomp filters that refuse {name}")),
                Verdict::Deadly => {
                    return Err(format!("has seccomp filters that may end the process for {name}"));
                }
            }
        }
    }
    Ok(suspended)
}
