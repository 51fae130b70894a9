// The benches of `instructions.rs`, which only exist with its feature.

use std::hint::black_box;

use clawgate::auth::Decision;
use clawgate::rpc::envelope::Request;
use clawgate::ws::codec::{self, Decoder, Limits, Role};
use clawgate::ws::message::{Message, Opcode};
use gungraun::prelude::*;

use deciding::Deciding;
use frames::Frames;
use invoking::Invoking;
use listeners::Listeners;

// What a bench was given goes back out of it, so that its end is not counted.

struct Codec {
    decoder: Decoder,
    frame: Vec<u8>,
}

/// A masked text of 64 bytes as it came, the text being a request's.
fn received() -> Box<Codec> {
    let limits = Limits { max_message_bytes: 1 << 24, max_fragments: 1024 };
    let mut codec = Codec { decoder: Decoder::new(Role::Server, limits), frame: Vec::new() };
    for _ in 0..4 {
        let mut input = &mut codec.frame[..];
        while codec.decoder.next(&mut input).expect("a valid frame").is_some() {}
        codec.frame.clear();
        let text = br#"{"type":"req","id":"1","method":"health","params":{"deep":false}"#;
        assert_eq!(text.len(), 64);
        codec::frame(Opcode::Text, text, Some([1, 2, 3, 4]), &mut codec.frame);
    }
    Box::new(codec)
}

#[library_benchmark(setup = received)]
#[bench::bytes_64()]
fn decode_frame(mut codec: Box<Codec>) -> Box<Codec> {
    let mut input = &mut codec.frame[..];
    match codec.decoder.next(&mut input) {
        Ok(Some(Message::Text(text))) => assert_eq!(black_box(&*text).len(), 64),
        _ => panic!("not a text"),
    }
    codec
}

fn scanned(text: &'static str) -> &'static str {
    assert!(Request::parse(text).is_ok());
    text
}

#[library_benchmark(setup = scanned)]
#[bench::bare(r#"{"type":"req","id":"1","method":"health"}"#)]
#[bench::invoke_165(r#"{"type":"req","id":"2c3f0a3e-6a05-4c9b-9f2d-0d6e2b7f6a11","method":"node.invoke","params":{"nodeId":"n1","command":"camera.snap","params":{"q":1},"timeoutMs":30000}}"#)]
fn scan_envelope(text: &str) {
    assert!(black_box(Request::parse(black_box(text))).is_ok());
}

fn connection(call: usize) -> Box<Frames> {
    Box::new(Frames::open(frames::CALLS[call].1))
}

#[library_benchmark(setup = connection)]
#[bench::health(0)]
#[bench::system_presence(1)]
fn dispatch(mut frames: Box<Frames>) -> Box<Frames> {
    black_box(frames.turn());
    frames
}

fn node(bytes: usize) -> Box<Invoking> {
    Box::new(Invoking::new(bytes))
}

#[library_benchmark(setup = node)]
#[bench::bytes_64(64)]
#[bench::bytes_4096(4096)]
fn invoke(mut invoking: Box<Invoking>) -> Box<Invoking> {
    assert_eq!(invoking.turn(), 1);
    invoking
}

fn operators(count: usize) -> Box<Listeners> {
    Box::new(Listeners::new(count))
}

#[library_benchmark(setup = operators)]
#[bench::to_100(100)]
fn fanout(mut listeners: Box<Listeners>) -> Box<Listeners> {
    assert_eq!(listeners.push(), 100);
    black_box(listeners.deliver());
    listeners
}

fn client(name: &str) -> Box<Deciding> {
    Box::new(Deciding::named(name))
}

#[library_benchmark(setup = client)]
#[bench::token("token")]
#[bench::token_ed25519("token_ed25519")]
fn decide(deciding: Box<Deciding>) -> (Box<Deciding>, Decision) {
    let decision = black_box(deciding.decide());
    (deciding, decision)
}

library_benchmark_group!(name = hot_path, benchmarks = [decode_frame, scan_envelope, dispatch, invoke, fanout, decide]);
main!(library_benchmark_groups = hot_path);
