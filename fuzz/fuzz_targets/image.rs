//! An image is read and written again, checked, and planned where nothing is there.
#![no_main]

use autofs_cr_common::doc::{Image, Report};
use autofs_cr_common::fuzzing::round_trip;

const NOTHING: &[u8] = b"format: autofs-cr/report/1\nhidden: []\nnamespaces: []\nprocesses: []\nsuperblocks: []\nmounts: []\ncontent: []\nrequests: []\n...\n";

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let Some(image) = round_trip::<Image>(text) else { return };
    if autofs_restore::fuzzing::is_sound(&image).is_err() {
        return;
    }
    let there: Report = autofs_cr_common::doc::parse(NOTHING, "nothing").expect("a report");
    let _ = autofs_restore::fuzzing::planned(image, &there, false);
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    autofs_cr_fuzz::mutate(data, size, max_size, seed)
});
