//! What the kernel writes into the pipe of a master: a document can hold it.
#![no_main]

use autofs_cr_common::fuzzing::packet;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(request) = packet(bytes) else { return };
    let Some(name) = &request.name else { return };
    assert!(name.as_bytes().len() <= 256);
    let written = name.to_string();
    // A name with a NUL byte, which the kernel never has, must not be read back as another one.
    let read = autofs_cr_common::model::TextPath::parse(&written);
    assert!(read.is_err() || read.as_ref() == Ok(name), "{written}");
});
