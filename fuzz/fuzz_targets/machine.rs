//! `cargo +nightly fuzz run machine`; what is promised is said in `clawgate::fuzz::machine`, which `cargo test` runs too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgate::fuzz::machine::check(data));
