//! What a guest's agent and its host say to each other.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sandbox_protocol::testing::frames(input));
