//! What lies in a bucket, written by somebody else.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| blockstore::testing::decode_bucket(input));
