//! A stage document is read and written again, and what it says of the segment is a place or none.
#![no_main]

use autofs_cr_common::doc::Stage;
use autofs_cr_common::fuzzing::round_trip;
use autofs_cr_common::segment::Locator;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let Some(stage) = round_trip::<Stage>(text) else { return };
    let Some(address) = stage.segment else { return };
    if let Ok(locator) = address.name.parse::<Locator>() {
        assert_eq!(locator.to_string(), address.name);
    }
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    autofs_cr_fuzz::mutate(data, size, max_size, seed)
});
