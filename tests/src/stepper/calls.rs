//! Which system calls are counted.

/// A choice of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// All of them.
    All,
    /// Those that may change something which another process can see: what is mounted, files, descriptors of others,
    /// other processes. What is killed between two of them leaves the same behind as at the second.
    Changes,
    /// Those that walk a path to a mount, or change one. There are as many of them on each machine.
    Mounts,
}

/// Calls of [`Calls::Mounts`].
const MOUNTS: &[i64] = &[
    libc::SYS_openat2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_mount,
    libc::SYS_umount2,
];

/// Calls by which a process only looks, or changes its own memory and descriptors. A close is none of them: it may be
/// the last one of a pipe or of a mount that is attached nowhere.
const LOOKS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgrp,
    libc::SYS_getpgid,
    libc::SYS_geteuid,
    libc::SYS_prlimit64,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_arch_prctl,
    libc::SYS_clock_nanosleep,
    libc::SYS_pidfd_open,
    libc::SYS_umask,
];

impl Calls {
    /// Whether the call with this number is counted.
    pub(super) fn has(self, call: u64) -> bool {
        let is_one_of = |calls: &[i64]| i64::try_from(call).is_ok_and(|call| calls.contains(&call));
        match self {
            Self::All => true,
            Self::Changes => !is_one_of(LOOKS),
            Self::Mounts => is_one_of(MOUNTS),
        }
    }
}
