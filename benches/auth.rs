//! What one decision on a connect costs, in each mode: from the facts to the grant or the refusal, rate limits included.
//!
//! Without a signature it is a few hashes; with a device, one Ed25519 verification.

use std::hint::black_box;

use clawgate::auth::Decision;
use criterion::{Criterion, criterion_group, criterion_main};

#[path = "parts/deciding.rs"]
mod deciding;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn auth(c: &mut Criterion) {
    for (name, deciding, good) in deciding::cases() {
        let first = deciding.decide();
        assert_eq!(matches!(first, Decision::Granted(_)), good, "{name}: {first:?}");
        c.bench_function(&format!("auth/{name}"), |b| b.iter(|| black_box(&deciding).decide()));
    }
}

criterion_group!(benches, auth);
criterion_main!(benches);
