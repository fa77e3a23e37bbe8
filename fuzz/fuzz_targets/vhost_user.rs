//! A VMM's messages and a guest's memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nbd_server::testing::vhost_user(input));
