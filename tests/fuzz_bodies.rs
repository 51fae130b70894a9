//! The fuzz targets whose bodies live in the library (`clawgate::fuzz`), run on their kept corpus and on random bytes, so
//! that they do not rot and every test run fuzzes a little. `cargo +nightly fuzz run NAME` fuzzes in earnest.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

type Check = fn(&[u8]);

const TARGETS: [(&str, Check); 10] = [
    ("auth", clawgate::fuzz::auth::check),
    ("config", clawgate::config::fuzz::config_text),
    ("connect", clawgate::fuzz::connect::check),
    ("device_payload", clawgate::fuzz::device_payload::check),
    ("forwarded", clawgate::fuzz::forwarded::check),
    ("http_api", clawgate::fuzz::http_api::check),
    ("http_head", clawgate::fuzz::http_head::check),
    ("machine", clawgate::fuzz::machine::check),
    ("pairing", clawgate::fuzz::pairing::check),
    ("tool_call", clawgate::fuzz::tool_call::check),
];

fn corpus(target: &str) -> impl Iterator<Item = Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap())
}

#[test]
fn every_target_keeps_its_promises_on_its_corpus() {
    for (name, check) in TARGETS {
        let mut count = 0;
        for input in corpus(name) {
            check(&input);
            // Cut short, it draws zeros for the rest.
            check(&input[..input.len() / 2]);
            count += 1;
        }
        assert!(count > 0, "{name} has no corpus");
    }
}

#[test]
fn every_target_is_run_here_and_by_the_fuzzer() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let files: BTreeSet<_> = fs::read_dir(targets)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    // Those have their oracles in tests/oracles/.
    let oracles = ["bot_update", "envelope", "provider_stream", "ws_codec"];
    let known: BTreeSet<_> = TARGETS.iter().map(|(name, _)| *name).chain(oracles).map(str::to_owned).collect();
    assert_eq!(files, known);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_target_keeps_its_promises_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        for (_, check) in TARGETS {
            check(&bytes);
        }
    }

    #[test]
    fn the_decision_keeps_its_promises_on_any_case(bytes in prop::collection::vec(any::<u8>(), 200..500)) {
        clawgate::fuzz::auth::check(&bytes);
    }
}
