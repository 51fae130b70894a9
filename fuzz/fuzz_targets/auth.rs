//! `cargo +nightly fuzz run auth`; what is promised is said in `clawgate::fuzz::auth`, which `cargo test` runs too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgate::fuzz::auth::check(data));
