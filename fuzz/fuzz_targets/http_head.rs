//! `cargo +nightly fuzz run http_head`; what is promised is said in `clawgate::fuzz::http_head`, which `cargo test` runs too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgate::fuzz::http_head::check(data));
