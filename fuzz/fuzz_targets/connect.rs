//! `cargo +nightly fuzz run connect`; what is promised is said in `clawgate::fuzz::connect`, which `cargo test` runs too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgate::fuzz::connect::check(data));
