//! The bodies of the fuzz targets (`fuzz/`), run on their seeds and on made-up input: so they do not rot, and
//! every test run fuzzes a little.

#[path = "oracles/bot_update.rs"]
mod bot_update;
#[path = "oracles/envelope.rs"]
mod envelope;
#[path = "oracles/provider_stream.rs"]
mod provider_stream;
#[path = "oracles/ws_codec.rs"]
mod ws_codec;

use std::path::Path;

use proptest::prelude::*;

fn run_seeds(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for seed in std::fs::read_dir(folder).expect("the folder of the seeds") {
        check(&std::fs::read(seed.expect("a seed").path()).expect("a seed"));
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn codec_keeps_its_promises_on_the_seeds() {
    run_seeds("ws_codec", ws_codec::check);
}

#[test]
fn scanner_keeps_its_promises_on_the_seeds() {
    run_seeds("envelope", envelope::check);
}

#[test]
fn providers_keep_their_promises_on_the_seeds() {
    run_seeds("provider_stream", provider_stream::check);
}

#[test]
fn updates_keep_their_promises_on_the_seeds() {
    run_seeds("bot_update", bot_update::check);
}

/// A stream of a provider in pieces: whole lines of both wires, cut lines, and others.
fn almost_stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c\",\"function\":{\"name\":\"n\",\"arguments\":\"{\"}}]}}]}\r\n\r\n",
            "data: {\"choices\":[{\"finish_reason\":\"stop\"}],\"usage\":null}\n\n",
            "data: [DONE]\n\n",
            "data: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\",\"id\":\"\",\"name\":\"n\"}}\n\n",
            "data: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"[]\"}}\n\n",
            "data: {\"type\":\"message_stop\"}\n\n",
            "data: {\"error\":{\"message\":\"x\"}}\n\n",
            "data:",
            "\n",
        ])
        .prop_map(str::to_owned),
        "[a-z:{}\\r\\n \"]{0,12}",
    ];
    (any::<u8>(), prop::collection::vec(piece, 0..12))
        .prop_map(|(choice, pieces)| [&[choice], pieces.concat().as_bytes()].concat())
}

/// JSON in pieces: mostly balanced, with the words of an envelope.
fn almost_json() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[\\[\\]{},: \n\"\\\\]",
        "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?",
        Just("\"\\ud83d\\ude00\\u0041\\n\"".to_owned()),
        Just("\\ud83d".to_owned()),
        "\"[a-zA-Z0-9 ü😀]{0,40}\"",
        prop::sample::select(vec![
            "true",
            "false",
            "null",
            "\"type\":\"req\"",
            "\"id\":\"1\"",
            "\"method\":\"health\""
        ])
        .prop_map(str::to_owned),
        prop::sample::select(vec![
            "\"params\":",
            "\"type\":\"event\"",
            "\"type\":\"res\"",
            "\"ok\":true",
            "\"t\\u0079pe\":"
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

/// Valid JSON values.
fn json_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Into::into),
            prop::collection::hash_map(any::<String>(), inner, 0..8)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn providers_keep_their_promises_on_almost_streams(stream in almost_stream()) {
        provider_stream::check(&stream);
    }

    #[test]
    fn updates_keep_their_promises_on_any_text(text in "(?s).{0,200}", chat in -5i64..5, kind in "private|group|supergroup|channel") {
        let update = serde_json::json!({"update_id": 1, "message": {"message_id": 1, "text": format!("@HomeBot {text}"),
            "from": {"id": 3, "first_name": text}, "chat": {"id": chat, "type": kind, "title": text}}});
        bot_update::check(update.to_string().as_bytes());
    }

    #[test]
    fn codec_keeps_its_promises_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        ws_codec::check(&bytes);
    }

    #[test]
    fn codec_keeps_its_promises_on_frames(role in 0..2u8, bytes in prop::collection::vec(any::<u8>(), 17..600)) {
        let mut bytes = bytes;
        bytes[0] = role | 2;
        ws_codec::check(&bytes);
    }

    #[test]
    fn scanner_keeps_its_promises_on_text(text in any::<String>()) {
        envelope::check(text.as_bytes());
    }

    #[test]
    fn scanner_keeps_its_promises_on_almost_json(text in almost_json()) {
        envelope::check(text.as_bytes());
        envelope::check(format!("{{{text}}}").as_bytes());
    }

    #[test]
    fn scanner_takes_every_value_of_serde_json(value in json_value(), pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        envelope::check(text.as_bytes());
        prop_assert!(clawgate::rpc::json::validate(&text).is_ok());
        let request = format!(r#"{{"type":"req","id":"1","method":"m","params":{text}}}"#);
        envelope::check(request.as_bytes());
        let params = clawgate::rpc::envelope::Request::parse(&request).unwrap().params.unwrap();
        prop_assert_eq!(params.as_str(), text.trim());
    }
}
