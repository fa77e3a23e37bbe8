//! Bytes of a disk that somebody else has written.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| blockstore::testing::decode(input));
