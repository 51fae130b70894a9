//! `cargo +nightly fuzz run http_api`; what is promised is said in `clawgate::fuzz::http_api`, which `cargo test` runs too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgate::fuzz::http_api::check(data));
