//! Pairing on a real disk: how many a second are durable, how fast the index is built and asked.
//!
//! `pair` counts devices paired and acknowledged, 64 at a time, each on disk before it is answered. It
//! measures the disk as much as the code: read it beside `sync`, the plain cost of one durable commit.

#![expect(clippy::print_stdout, reason = "what criterion has no place for")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clawgate::auth::device::DeviceKey;
use clawgate::clock::UnixMs;
use clawgate::devices::pairing::{Wanted, standing};
use clawgate::devices::record::Claims;
use clawgate::devices::{Devices, PairingRequest, Requested, SCHEMA};
use clawgate::hub::Hub;
use clawgate::rpc::scope::{Role, ScopeSet};
use clawgate::store::{Change, Schema, Store, StoreError};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const WRITERS: u64 = 64;
const DEVICES: u64 = 100_000;

static NEXT: AtomicU64 = AtomicU64::new(0);

fn key(number: u64) -> DeviceKey {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    DeviceKey::from_bytes(bytes).expect("not of small order")
}

fn asks(number: u64, silent: bool) -> PairingRequest {
    let claims = Claims {
        display_name: Some(format!("node {number}").into()),
        platform: "linux".into(),
        device_family: Some("Linux".into()),
        client_id: "node-host".into(),
        client_mode: "node".into(),
    };
    PairingRequest { key: key(number), role: Role::Node, scopes: ScopeSet::EMPTY, claims, remote_ip: None, silent }
}

fn open(file: &Path) -> (Store, Devices) {
    let bench = Schema { domain: "bench", steps: &["CREATE TABLE bench (n INTEGER PRIMARY KEY) STRICT"] };
    let store = Store::open(file, &[SCHEMA, bench]).expect("a file");
    let devices = Devices::open(store.clone(), Hub::new(1 << 20, 1 << 24), UnixMs::now()).expect("an index");
    (store, devices)
}

/// Pairs `count` devices, `writers` at a time; gives the last token.
async fn pair(devices: &Devices, count: u64, writers: u64) -> String {
    let left = Arc::new(AtomicU64::new(count));
    let mut tasks = JoinSet::new();
    for _ in 0..writers {
        let (devices, left) = (devices.clone(), Arc::clone(&left));
        tasks.spawn(async move {
            let mut last = String::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let asks = asks(NEXT.fetch_add(1, Ordering::Relaxed), true);
                if let Requested::Paired { token: Some(issued) } =
                    devices.request(asks, UnixMs::now()).await.expect("stored")
                {
                    last = issued.token.expose().to_owned();
                }
            }
            last
        });
    }
    tasks.join_all().await.pop().unwrap_or_default()
}

fn timed(runtime: &Runtime, work: impl Future<Output = String>) -> Duration {
    let start = Instant::now();
    black_box(runtime.block_on(work));
    start.elapsed()
}

fn pairing(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let (store, devices) = open(&folder.path().join("clawgate.sqlite"));

    let mut group = criterion.benchmark_group("pairing");
    group.sample_size(20).measurement_time(Duration::from_secs(10)).throughput(Throughput::Elements(1));
    group.bench_function("sync", |bencher| {
        bencher.iter(|| {
            let touch = store.write(|tx| {
                tx.execute("INSERT INTO bench DEFAULT VALUES", [])?;
                Ok::<_, StoreError>(Change::of(()))
            });
            runtime.block_on(touch).expect("stored");
        });
    });
    for writers in [1, WRITERS] {
        group.bench_function(format!("pair/{writers}"), |bencher| {
            bencher.iter_custom(|count| timed(&runtime, pair(&devices, count, writers)));
        });
    }

    // Up to what an index is to bear, and what it costs to have it.
    let missing = DEVICES.saturating_sub(devices.len() as u64);
    let before = resident_bytes();
    let took = timed(&runtime, pair(&devices, missing, 1024));
    println!(
        "filled up to {} devices: {:.0} a second with 1024 writers, {} bytes resident each",
        devices.len(),
        missing as f64 / took.as_secs_f64(),
        resident_bytes().saturating_sub(before) / missing.max(1),
    );
    let token = runtime.block_on(pair(&devices, 1, 1));
    let known = key(NEXT.load(Ordering::Relaxed) - 1).device_id();
    let wanted = Wanted { role: Role::Node, scopes: ScopeSet::EMPTY, platform: "linux", device_family: Some("Linux") };
    group.bench_function("standing", |bencher| {
        bencher.iter(|| standing(devices.facts(black_box(known)).as_deref(), &wanted));
    });
    group.bench_function("check_token", |bencher| {
        bencher.iter(|| devices.check_token(black_box(known), Role::Node, &token));
    });
    let waiting = asks(u64::MAX, false);
    group.bench_function("asked_again", |bencher| {
        bencher.iter(|| runtime.block_on(devices.request(waiting.clone(), UnixMs::now())).expect("it waits"));
    });
    group.sample_size(10).throughput(Throughput::Elements(devices.len() as u64));
    group.bench_function("open", |bencher| {
        let index = || Devices::open(store.clone(), Hub::new(1 << 20, 1 << 24), UnixMs::now());
        bencher.iter_with_large_drop(|| index().expect("an index"));
    });
    group.finish();
    runtime.block_on(store.close());

    let start = Instant::now();
    let (_store, devices) = open(&folder.path().join("clawgate.sqlite"));
    println!("opened the file and the index of {} devices in {:?}", devices.len(), start.elapsed());
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

criterion_group!(benches, pairing);
criterion_main!(benches);
