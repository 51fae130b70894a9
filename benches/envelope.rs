//! The envelope scanner beside serde_json (`RawValue`) and simd-json, and the string work of `node.invoke`.

use std::borrow::Cow;
use std::hint::black_box;
use std::time::Duration;

use clawgate::rpc::envelope::Request;
use clawgate::rpc::json::{self, Raw};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "parsed for the time it takes")]
struct Strict<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

fn request(params: &str) -> String {
    format!(r#"{{"type":"req","id":"2c3f0a3e-6a05-4c9b-9f2d-0d6e2b7f6a11","method":"node.invoke","params":{params}}}"#)
}

/// Requests as peers send them: bare, an invoke of 150 bytes, one with many small members, one long string.
fn requests() -> Vec<(&'static str, String)> {
    let invoke = r#"{"nodeId":"n1","command":"camera.snap","params":{"q":1},"timeoutMs":30000}"#;
    let members = (0..2000).map(|i| format!(r#"{{"name":"item {i}","size":{i},"ok":true,"tags":["a","b"]}}"#));
    let members = format!("[{}]", members.collect::<Vec<_>>().join(","));
    let long = format!(r#"{{"data":"{}"}}"#, "aGVsbG8gd29ybGQh".repeat(4096));
    vec![
        ("bare", r#"{"type":"req","id":"1","method":"health"}"#.to_owned()),
        ("invoke_150B", request(invoke)),
        ("members_118KB", request(&members)),
        ("string_64KB", request(&long)),
    ]
}

fn parse(criterion: &mut Criterion) {
    for (name, text) in requests() {
        assert!(Request::parse(&text).is_ok(), "{name}");
        let mut group = criterion.benchmark_group(format!("parse/{name}"));
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function("clawgate", |b| b.iter(|| Request::parse(black_box(&text)).is_ok()));
        group.bench_function("serde_json_raw", |b| {
            b.iter(|| serde_json::from_str::<Strict<'_>>(black_box(&text)).is_ok())
        });
        // In place, so it needs a fresh copy each time.
        let mut copy = Vec::new();
        let mut buffers = simd_json::Buffers::default();
        group.bench_function("simd_json_tape", |b| {
            b.iter(|| {
                copy.clear();
                copy.extend_from_slice(black_box(text.as_bytes()));
                simd_json::to_tape_with_buffers(&mut copy, &mut buffers).is_ok()
            });
        });
        group.finish();
    }
}

fn strings(criterion: &mut Criterion) {
    for (name, text) in requests() {
        let mut out = Vec::with_capacity(text.len() * 2);
        let mut group = criterion.benchmark_group(format!("string/{name}"));
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::new("escape", "clawgate"), |b| {
            b.iter(|| {
                out.clear();
                json::push_string(black_box(&text), &mut out);
            });
        });
        group.bench_function(BenchmarkId::new("escape", "serde_json"), |b| {
            b.iter(|| {
                out.clear();
                serde_json::to_writer(&mut out, black_box(&text)).is_ok()
            });
        });
        out.clear();
        json::push_string(&text, &mut out);
        let quoted = String::from_utf8(out.clone()).expect("JSON is UTF-8");
        let string = Raw::new(&quoted).expect("a string").as_string().expect("a string");
        group.bench_function(BenchmarkId::new("splice", "clawgate"), |b| {
            b.iter(|| {
                out.clear();
                json::splice(black_box(string), &mut out).is_ok()
            });
        });
        group.bench_function(BenchmarkId::new("splice", "serde_json"), |b| {
            b.iter(|| {
                let inner: Cow<'_, str> = serde_json::from_str(black_box(&quoted)).expect("a string");
                serde_json::from_str::<&RawValue>(&inner).is_ok()
            });
        });
        group.bench_function("validate", |b| b.iter(|| json::validate(black_box(&text)).is_ok()));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = parse, strings
}
criterion_main!(benches);
