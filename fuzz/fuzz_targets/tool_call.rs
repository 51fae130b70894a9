//! `cargo +nightly fuzz run tool_call`; what is promised is said in `clawgate::fuzz::tool_call`, which `cargo test` runs too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgate::fuzz::tool_call::check(data));
