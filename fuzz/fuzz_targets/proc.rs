//! All that the kernel writes into the text files of /proc/PID.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    autofs_cr_common::fuzzing::proc_texts(text);
    let _ = autofs_cr_common::fuzzing::stack(text);
});
