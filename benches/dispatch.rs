//! What a steady request costs without its system calls: a masked frame in, the codec, the envelope, the connection's
//! machine, the router, the handler, and the bytes of the answer's frame out.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

#[path = "parts/frames.rs"]
mod frames;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn dispatch(c: &mut Criterion) {
    let mut group = c.benchmark_group("dispatch");
    group.throughput(Throughput::Elements(1));
    for (name, call) in frames::CALLS {
        let mut frames = frames::Frames::open(call);
        group.bench_function(name, |b| b.iter(|| black_box(frames.turn()).len()));
    }
    group.finish();
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
