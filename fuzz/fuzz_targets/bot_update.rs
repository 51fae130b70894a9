//! `cargo +nightly fuzz run bot_update`; what is promised is said in the oracle, which `cargo test` runs too.
#![no_main]

#[path = "../../tests/oracles/bot_update.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|data: &[u8]| oracle::check(data));
