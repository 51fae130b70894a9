//! `cargo +nightly fuzz run device_payload`; what is promised is said in `clawgate::fuzz::device_payload`, which `cargo test` runs too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgate::fuzz::device_payload::check(data));
