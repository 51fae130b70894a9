//! `cargo +nightly fuzz run pairing`; what is promised is said in `clawgate::fuzz::pairing`, which `cargo test` runs too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgate::fuzz::pairing::check(data));
