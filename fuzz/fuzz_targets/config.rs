//! `cargo +nightly fuzz run config`; what is promised is said in `clawgate::config::fuzz`, which `cargo test` runs too.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clawgate::config::fuzz::config_text(data));
