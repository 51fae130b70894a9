//! `cargo +nightly fuzz run forwarded`; what is promised is said in `clawgate::fuzz::forwarded`, which `cargo test` runs too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgate::fuzz::forwarded::check(data));
