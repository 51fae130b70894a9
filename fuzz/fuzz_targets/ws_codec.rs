//! `cargo +nightly fuzz run ws_codec`; what is promised is said in the oracle, which `cargo test` runs too.
#![no_main]

#[path = "../../tests/oracles/ws_codec.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|data: &[u8]| oracle::check(data));
