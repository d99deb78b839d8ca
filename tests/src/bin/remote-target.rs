//! A process for the engine to work on: it blocks in a call (or spins) with known values in its
//! registers, and says afterwards whether any of them changed.
//!
//! `remote-target MODE [MILLISECONDS]` prints `ready` and then, for each time that it went on, one line
//! `result=N handled=N changed=NAMES`. SIGUSR1 is handled (on the alternate stack, no restart), SIGUSR2
//! and SIGWINCH are blocked.
//!
//! | mode | what it does |
//! |---|---|
//! | serve | reads one byte from standard input at a time, for ever |
//! | churn | the same, while two threads open and close descriptors, and end the process if one of theirs is lost |
//! | relay | the same, while threads only start the next one and end |
//! | filtered | as serve, with a seccomp filter by which socketpair and recvmsg fail |
//! | filtered-vital, filtered-dup3 | the same for close, for dup3 |
//! | filtered-deadly | the same, with one that ends the process for process_vm_readv |
//! | filtered-strict | the same, with one that ends it for all that this program does not call itself |
//! | filtered-fitting | the same, with one that allows what the engine needs besides |
//! | timer | as serve, with a signal every millisecond (SIGALRM, handled, with restart) |
//! | undumpable | as serve, after PR_SET_DUMPABLE with 0 |
//! | vfork | waits for a child of vfork, which reads one byte |
//! | poll, poll-timeout, ppoll, epoll, epoll-pwait | waits for standard input once |
//! | futex, futex-timeout, nanosleep, sigsuspend | waits for a signal or the time once |
//! | spin | runs in user space until SIGUSR1 |
//! | threads | all of the above at once, in threads; the main thread waits for standard input |
#![allow(unsafe_code)]

use std::env;
use std::fs::File;
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Set by the handler; also what `spin` waits for.
static HANDLED: AtomicU64 = AtomicU64::new(0);

const VECTORS: usize = 16;
const VECTOR_SIZE: usize = 32;
const SPIN: u64 = u64::MAX;

/// What `probe` loads and stores. The offsets are in its code.
#[repr(C, align(64))]
struct Probe {
    number: u64,                                  // 0
    arguments: [u64; 6],                          // 8
    result: u64,                                  // 56
    kept: [u64; 6],                               // 64: rbx rbp r12 r13 r14 r15
    stored: [u64; 12],                            // 112: the same, then rdi rsi rdx r10 r8 r9
    mxcsr: [u32; 2],                              // 208: before, after
    x87: [f64; 2],                                // 216: before, after
    default_mxcsr: u64,                           // 232
    padding: [u64; 2],                            // 240
    vectors: [[u8; VECTOR_SIZE]; VECTORS],        // 256
    stored_vectors: [[u8; VECTOR_SIZE]; VECTORS], // 768
}

std::arch::global_asm!(
    ".globl probe",
    "probe:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "stmxcsr [rdi + 232]",
    "ldmxcsr [rdi + 208]",
    "fld qword ptr [rdi + 216]",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu ymm\\i, [rdi + 256 + 32 * \\i]",
    ".endr",
    "mov rbx, [rdi + 64]",
    "mov rbp, [rdi + 72]",
    "mov r12, [rdi + 80]",
    "mov r13, [rdi + 88]",
    "mov r14, [rdi + 96]",
    "mov r15, [rdi + 104]",
    "mov rax, [rdi]",
    "mov rsi, [rdi + 16]",
    "mov rdx, [rdi + 24]",
    "mov r10, [rdi + 32]",
    "mov r8, [rdi + 40]",
    "mov r9, [rdi + 48]",
    "mov rdi, [rdi + 8]",
    "cmp rax, -1",
    "je 2f",
    "syscall",
    "jmp 3f",
    "2: cmp qword ptr [rdi], 0",
    "je 2b",
    "3: push rax",
    "mov rax, [rsp + 8]",
    "mov [rax + 112], rbx",
    "mov [rax + 120], rbp",
    "mov [rax + 128], r12",
    "mov [rax + 136], r13",
    "mov [rax + 144], r14",
    "mov [rax + 152], r15",
    "mov [rax + 160], rdi",
    "mov [rax + 168], rsi",
    "mov [rax + 176], rdx",
    "mov [rax + 184], r10",
    "mov [rax + 192], r8",
    "mov [rax + 200], r9",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu [rax + 768 + 32 * \\i], ymm\\i",
    ".endr",
    "stmxcsr [rax + 212]",
    "ldmxcsr [rax + 232]",
    "fstp qword ptr [rax + 224]",
    "pop rcx",
    "mov [rax + 56], rcx",
    "vzeroupper",
    "pop rdi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    /// Loads the registers, makes the call, stores the registers.
    fn probe(probe: *mut Probe);
}

extern "C" fn handle(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// The parts of the thread's state that are no registers.
#[derive(PartialEq, Eq)]
struct Surroundings {
    mask: u64,
    alternate_stack: (usize, usize, i32),
}

impl Surroundings {
    fn now() -> Self {
        let mut mask = 0u64;
        // SAFETY: the kernel writes eight bytes to `mask`.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, 0, 0usize, &raw mut mask, 8usize) };
        let mut stack = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
        // SAFETY: the kernel writes one stack_t to `stack`.
        unsafe { libc::sigaltstack(std::ptr::null(), &raw mut stack) };
        Self { mask, alternate_stack: (stack.ss_sp as usize, stack.ss_size, stack.ss_flags) }
    }
}

/// Makes a call with known registers; the line that says how it went.
fn watched(number: u64, arguments: &[u64]) -> String {
    let before = Surroundings::now();
    let mut probe_data = Probe {
        number,
        arguments: [0x1111_2222_3333_4444; 6],
        result: 0,
        kept: std::array::from_fn(|i| 0xdead_beef_0000_0000 + i as u64),
        stored: [0; 12],
        // All exceptions masked, round towards zero.
        mxcsr: [0x7f80, 0],
        x87: [1234.5678, 0.0],
        default_mxcsr: 0,
        padding: [0; 2],
        vectors: std::array::from_fn(|i| std::array::from_fn(|j| (i * VECTOR_SIZE + j * 7 + 1) as u8)),
        stored_vectors: [[0; VECTOR_SIZE]; VECTORS],
    };
    probe_data.arguments[..arguments.len()].copy_from_slice(arguments);
    // SAFETY: `probe` reads and writes `probe_data` at the offsets of its fields, keeps the registers that
    // the calling convention wants kept, and the arguments are valid for the call.
    unsafe { probe(&raw mut probe_data) };
    let mut changed = Vec::new();
    let mut compare = |name: &'static str, same: bool| {
        if !same {
            changed.push(name);
        }
    };
    compare("general", probe_data.stored[..6] == probe_data.kept);
    compare("arguments", probe_data.stored[6..] == probe_data.arguments);
    compare("mxcsr", probe_data.mxcsr[0] == probe_data.mxcsr[1] & !0x3f);
    compare("x87", probe_data.x87[0].to_bits() == probe_data.x87[1].to_bits());
    compare("vectors", probe_data.vectors == probe_data.stored_vectors);
    let after = Surroundings::now();
    compare("mask", before.mask == after.mask);
    compare("alternate-stack", before.alternate_stack == after.alternate_stack);
    let handled = HANDLED.load(Ordering::SeqCst);
    format!("result={} handled={handled} changed={}", probe_data.result as i64, changed.join(","))
}

fn watch_mode(mode: &str, milliseconds: i64, input: i32) -> String {
    let time = libc::timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 };
    let time = &raw const time as u64;
    let mut polled = libc::pollfd { fd: input, events: libc::POLLIN, revents: 0 };
    let polled = &raw mut polled as u64;
    let mut byte = 0u64;
    let nothing_blocked = 0u64;
    let mask = &raw const nothing_blocked as u64;
    let word = 0u32;
    let word = &raw const word as u64;
    let call = |number: i64, arguments: &[u64]| watched(number as u64, arguments);
    match mode {
        "read" => call(libc::SYS_read, &[input as u64, &raw mut byte as u64, 1]),
        "poll" => call(libc::SYS_poll, &[polled, 1, u64::MAX]),
        "poll-timeout" => call(libc::SYS_poll, &[polled, 1, milliseconds as u64]),
        "ppoll" => call(libc::SYS_ppoll, &[polled, 1, 0, mask, 8]),
        "epoll" => {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            call(libc::SYS_epoll_wait, &[epoll(input), &raw mut event as u64, 1, u64::MAX])
        }
        "epoll-pwait" => {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            call(libc::SYS_epoll_pwait, &[epoll(input), &raw mut event as u64, 1, u64::MAX, mask, 8])
        }
        "futex" => call(libc::SYS_futex, &[word, libc::FUTEX_WAIT as u64, 0, 0, 0, 0]),
        "futex-timeout" => call(libc::SYS_futex, &[word, libc::FUTEX_WAIT as u64, 0, time, 0, 0]),
        "nanosleep" => call(libc::SYS_nanosleep, &[time, 0]),
        "sigsuspend" => call(libc::SYS_rt_sigsuspend, &[mask, 8]),
        "spin" => watched(SPIN, &[HANDLED.as_ptr() as u64]),
        other => panic!("unknown mode {other}"),
    }
}

fn epoll(input: i32) -> u64 {
    // SAFETY: epoll_create1 and epoll_ctl with a valid event.
    unsafe {
        let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        assert_eq!(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, input, &raw mut event), 0);
        epoll as u64
    }
}

fn prepare_signals() {
    // SAFETY: the handler only adds to an atomic; the structures are zeroed where they are not set.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut blocked, libc::SIGUSR2);
        libc::sigaddset(&raw mut blocked, libc::SIGWINCH);
        assert_eq!(libc::sigprocmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut()), 0);
    }
}

fn start_timer() {
    let time = libc::timeval { tv_sec: 0, tv_usec: 1000 };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the handler only adds to an atomic; the structures are zeroed where they are not set.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()), 0);
    }
}

/// Installs a seccomp filter with one result for these calls, and another for all others.
fn filter_calls(calls: &[i64], result: u32, otherwise: u32) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for &number in calls {
        let is_it = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32);
        filter.push(libc::sock_filter { jf: 1, ..is_it });
        filter.push(statement(libc::BPF_RET | libc::BPF_K, result));
    }
    filter.push(statement(libc::BPF_RET | libc::BPF_K, otherwise));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `program` describes `filter`, and both live until the call returns.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(result, 0);
}

/// What this program calls while it serves.
const OWN_CALLS: [i64; 6] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit_group,
];

/// What the engine calls in it besides.
const CALLS_OF_THE_ENGINE: [i64; 8] = [
    libc::SYS_socketpair,
    libc::SYS_process_vm_readv,
    libc::SYS_close,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_ioctl,
    libc::SYS_dup3,
];

/// The filters by the names of modes.
fn filter_by(mode: &str) {
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const FAIL: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    match mode {
        "filtered" => filter_calls(&[libc::SYS_socketpair, libc::SYS_recvmsg], FAIL, ALLOW),
        "filtered-vital" => filter_calls(&[libc::SYS_close], FAIL, ALLOW),
        "filtered-deadly" => filter_calls(&[libc::SYS_process_vm_readv], KILL, ALLOW),
        "filtered-dup3" => filter_calls(&[libc::SYS_dup3], FAIL, ALLOW),
        "filtered-strict" => filter_calls(&OWN_CALLS, ALLOW, KILL),
        "filtered-fitting" => filter_calls(&[&OWN_CALLS[..], &CALLS_OF_THE_ENGINE].concat(), ALLOW, KILL),
        other => panic!("unknown filter {other}"),
    }
}

/// Sleeps in vfork until its child read a byte from standard input.
fn wait_in_vfork() {
    #[allow(deprecated)]
    // SAFETY: the child only reads into its own variable and exits.
    unsafe {
        let child = libc::vfork();
        if child == 0 {
            let mut byte = 0u8;
            libc::read(0, (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
        assert!(child > 0);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    say("child ended");
}

/// Opens, uses and closes a descriptor, for ever: nobody else may close it or put another in its place.
fn churn() {
    loop {
        let file = File::open("/dev/urandom").expect("a descriptor is free");
        let device = file.metadata().expect("the descriptor is still open").rdev();
        assert_eq!(device, libc::makedev(1, 9), "the descriptor is still the same file");
        // SAFETY: the descriptor is this thread's own, and not used again.
        assert_eq!(unsafe { libc::close(file.into_raw_fd()) }, 0);
    }
}

/// A thread that is replaced by another one, for ever.
fn pass_on() {
    thread::spawn(pass_on);
}

/// Like `thread::spawn` for a thread whose panic ends the process.
fn spawn_vital(work: fn()) {
    thread::spawn(move || {
        if std::panic::catch_unwind(work).is_err() {
            std::process::abort();
        }
    });
}

/// Reads one byte at a time, for ever.
fn serve() {
    loop {
        let line = watch_mode("read", 0, 0);
        if line.starts_with("result=0 ") {
            break;
        }
        say(&line);
    }
}

fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).expect("standard output is open");
}

/// Threads in calls of all kinds; each gets a pipe of its own, whose byte the main thread writes.
fn run_threads() {
    let modes =
        ["read", "poll", "ppoll", "epoll", "epoll-pwait", "nanosleep", "futex-timeout", "poll-timeout"];
    let mut threads = Vec::new();
    let mut pipes = Vec::new();
    for mode in modes {
        let mut ends = [0i32; 2];
        // SAFETY: pipe2 writes two numbers.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        pipes.push(ends[1]);
        threads.push((mode, thread::spawn(move || watch_mode(mode, 1500, ends[0]))));
    }
    let spinner = thread::spawn(|| watch_mode("spin", 0, 0));
    let main = watch_mode("read", 0, 0);
    for pipe in pipes {
        // SAFETY: one byte from a valid place.
        assert_eq!(unsafe { libc::write(pipe, [b'x'].as_ptr().cast(), 1) }, 1);
    }
    HANDLED.fetch_add(1, Ordering::SeqCst);
    say(&format!("main {main}"));
    for (mode, thread) in threads {
        say(&format!("{mode} {}", thread.join().expect("the thread ended")));
    }
    say(&format!("spin {}", spinner.join().expect("the thread ended")));
}

fn main() {
    let mode = env::args().nth(1).expect("a mode");
    let milliseconds = env::args().nth(2).map_or(0, |text| text.parse().expect("a number"));
    prepare_signals();
    say("ready");
    match mode.as_str() {
        "serve" => serve(),
        "churn" => {
            spawn_vital(churn);
            spawn_vital(churn);
            serve();
        }
        "relay" => {
            (0..3).for_each(|_| pass_on());
            serve();
        }
        "timer" => {
            start_timer();
            serve();
        }
        "undumpable" => {
            // SAFETY: prctl with numbers only.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, 0);
            serve();
        }
        mode if mode.starts_with("filtered") => {
            filter_by(mode);
            serve();
        }
        "vfork" => wait_in_vfork(),
        "threads" => run_threads(),
        mode => say(&watch_mode(mode, milliseconds, 0)),
    }
}
