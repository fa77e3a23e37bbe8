//! A client's side of the handshake.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nbd_server::testing::handshake(input));
