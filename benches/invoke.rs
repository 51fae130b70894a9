//! What the gateway itself costs on the main road: `node.invoke` in, the request out to the node, its result in, the
//! answer out to the caller. No sockets: frames go from the scanner to the outboxes and are taken out there.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

#[path = "parts/invoking.rs"]
mod invoking;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("invoke");
    for bytes in [64, 4096] {
        let mut invoking = invoking::Invoking::new(bytes);
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("there_and_back_{bytes}"), |b| {
            b.iter(|| {
                assert_eq!(invoking.turn(), 1);
                invoking.number();
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("list");
    group.sample_size(20);
    let world = invoking::World::new();
    let list = invoking::request("node.list", "{}");
    let (mut out, mut nodes) = (Vec::new(), 0);
    group.bench_function("ten_thousand_nodes", |b| {
        world.nodes(nodes..10_000);
        nodes = 10_000;
        b.iter(|| {
            world.route(&world.admin, &list, &mut out);
            black_box(out.len())
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
