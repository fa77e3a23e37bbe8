//! A client's requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nbd_server::testing::transmission(input));
