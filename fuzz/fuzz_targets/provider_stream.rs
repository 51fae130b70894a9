//! `cargo +nightly fuzz run provider_stream`; what is promised is said in the oracle, which `cargo test` runs too.
#![no_main]

#[path = "../../tests/oracles/provider_stream.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|data: &[u8]| oracle::check(data));
