//! A disk that a guest made, as an image.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fs_inspect::testing::image(input));
