//! A report is read and written again, and made an image of.
#![no_main]

use autofs_cr_common::doc::Report;
use autofs_cr_common::fuzzing::round_trip;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let Some(report) = round_trip::<Report>(text) else { return };
    let Ok(image) = autofs_dump::fuzzing::image(&report) else { return };
    let mut written = Vec::new();
    autofs_cr_common::doc::write(&image, &mut written).expect("writing to memory");
    assert_eq!(round_trip(&written).as_ref(), Some(&image));
    if autofs_restore::fuzzing::is_sound(&image).is_ok() {
        for replace in [false, true] {
            let _ = autofs_restore::fuzzing::planned(image.clone(), &report, replace);
        }
    }
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    autofs_cr_fuzz::mutate(data, size, max_size, seed)
});
