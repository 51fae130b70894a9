//! Bodies of fuzz targets: what must hold for every input, whoever makes it up.
//!
//! Each file has one `check(&[u8])` that panics when a promise is broken. `fuzz/` runs them under libFuzzer,
//! `tests/fuzz_bodies.rs` on the kept corpus and on random bytes in every `cargo test`, so that they do not rot. Structured
//! inputs are drawn from the bytes with [`arbitrary`]: bytes that run out draw zeros, so every input means something.
//!
//! [`auth`] is the one to read first: the whole decision on a connect, with an opinion of its own about who may come in.

pub mod auth;
pub mod connect;
pub mod device_payload;
pub mod forwarded;
pub mod http_api;
pub mod http_head;
pub mod machine;
pub mod pairing;
pub mod tool_call;

use arbitrary::Unstructured;

/// Draws one of `pool`.
fn pick<T: Copy>(u: &mut Unstructured<'_>, pool: &[T]) -> T {
    pool[u.int_in_range(0..=pool.len() - 1).unwrap_or(0)]
}

/// Draws yes or no.
fn flip(u: &mut Unstructured<'_>) -> bool {
    u.arbitrary().unwrap_or(false)
}

/// Draws `true` once in `times`.
fn rarely(u: &mut Unstructured<'_>, times: u8) -> bool {
    u.int_in_range(1..=times).unwrap_or(1) == times
}

/// Draws some of `pool`, in its order.
fn some<T: Copy>(u: &mut Unstructured<'_>, pool: &[T]) -> Vec<T> {
    let bits: u32 = u.arbitrary().unwrap_or(0);
    pool.iter().enumerate().filter(|(at, _)| bits >> (at % 32) & 1 == 1).map(|(_, item)| *item).collect()
}

/// Header lines as the rules read them, drawn from `names` and `values`, or made of bytes.
fn header_lines<'p>(u: &mut Unstructured<'_>, names: &[&'p str], values: &[&'p [u8]]) -> Vec<(&'p str, Vec<u8>)> {
    let count = u.int_in_range(0..=5).unwrap_or(0);
    let value = |u: &mut Unstructured<'_>| {
        if rarely(u, 4) {
            let length = u.int_in_range(0..=24).unwrap_or(0);
            return u.bytes(length).unwrap_or_default().to_vec();
        }
        pick(u, values).to_vec()
    };
    (0..count).map(|_| (pick(u, names), value(u))).collect()
}

fn as_view<'a>(lines: &'a [(&'a str, Vec<u8>)]) -> Vec<(&'a str, &'a [u8])> {
    lines.iter().map(|(name, value)| (*name, value.as_slice())).collect()
}
