//! What an event to many costs without their sockets: encoded once, queued in every outbox, taken out and framed there.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

#[path = "parts/listeners.rs"]
mod listeners;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const OPERATORS: usize = 1000;

fn fanout(c: &mut Criterion) {
    let mut listeners = listeners::Listeners::new(OPERATORS);
    let mut group = c.benchmark_group("fanout");
    group.throughput(Throughput::Elements(OPERATORS as u64));
    group.bench_function("push_drain_and_frame_1000", |b| {
        b.iter(|| {
            assert_eq!(listeners.push(), OPERATORS);
            black_box(listeners.deliver())
        });
    });
    group.finish();
}

criterion_group!(benches, fanout);
criterion_main!(benches);
