//! The frame codec beside fastwebsockets and tokio-websockets: a server takes a stream of masked text messages.
//!
//! Every decoder copies the stream out of memory in reads of at most 64 KiB, as it would from a socket that
//! always has more, so that frames are cut where reads end. `in_place` is the decoder alone on one buffer.

use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use clawgate::ws::codec::{Decoder, FrameStart, Limits, Role, frame};
use clawgate::ws::message::{Message, Opcode};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_core::Stream as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const READ_BYTES: usize = 64 * 1024;
const LIMITS: Limits = Limits { max_message_bytes: 1 << 24, max_fragments: 1024 };
/// Size of a message, and how many of them a stream has.
const STREAMS: [(usize, usize); 3] = [(64, 4096), (1024, 1024), (64 * 1024, 32)];

/// JSON-like text, so that the UTF-8 check is the usual one.
fn text(bytes: usize) -> Vec<u8> {
    br#"{"type":"req","id":"1","method":"health","params":{"deep":false}}"#.iter().copied().cycle().take(bytes).collect()
}

fn stream(bytes: usize, count: usize, mask: [u8; 4]) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..count {
        frame(Opcode::Text, &text(bytes), Some(mask), &mut out);
    }
    out
}

/// A peer that has sent everything already.
struct Memory<'a>(&'a [u8]);

impl AsyncRead for Memory<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(self.0.len().min(buf.remaining()).min(READ_BYTES));
        buf.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Memory<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Runs a future that never waits.
fn run<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("memory is always ready"),
    }
}

fn ours(stream: &[u8], buffer: &mut [u8]) -> usize {
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let mut seen = 0;
    for read in stream.chunks(buffer.len()) {
        buffer[..read.len()].copy_from_slice(read);
        let mut input = &mut buffer[..read.len()];
        while let Some(message) = decoder.next(&mut input).expect("valid frames") {
            if let Message::Text(text) = message {
                seen += black_box(&*text).len();
            }
        }
    }
    seen
}

fn in_place(stream: &mut [u8]) -> usize {
    let mut decoder = Decoder::new(Role::Server, LIMITS);
    let (mut input, mut seen) = (stream, 0);
    while let Some(message) = decoder.next(&mut input).expect("valid frames") {
        if let Message::Text(text) = message {
            seen += black_box(&*text).len();
        }
    }
    seen
}

fn fastwebsockets(stream: &[u8], count: usize) -> usize {
    use fastwebsockets::{FragmentCollector, Role, WebSocket};
    let mut socket = FragmentCollector::new(WebSocket::after_handshake(Memory(stream), Role::Server));
    (0..count).map(|_| black_box(run(socket.read_frame()).expect("valid frames").payload).len()).sum()
}

fn tokio_websockets(stream: &[u8], count: usize) -> usize {
    let mut socket = tokio_websockets::ServerBuilder::new().serve(Memory(stream));
    let mut next = || run(std::future::poll_fn(|context| Pin::new(&mut socket).poll_next(context)));
    (0..count).map(|_| black_box(next().expect("a message").expect("valid frames").into_payload()).len()).sum()
}

fn decode(criterion: &mut Criterion) {
    for (bytes, count) in STREAMS {
        let mut group = criterion.benchmark_group(format!("decode/{bytes}"));
        let stream = stream(bytes, count, [1, 2, 3, 4]);
        let mut buffer = vec![0; READ_BYTES];
        assert!(
            [ours(&stream, &mut buffer), fastwebsockets(&stream, count), tokio_websockets(&stream, count)]
                == [bytes * count; 3]
        );
        group.throughput(Throughput::ElementsAndBytes { elements: count as u64, bytes: stream.len() as u64 });
        group.bench_function("clawgate", |b| b.iter(|| ours(&stream, &mut buffer)));
        // A mask of zeros costs the same and leaves the stream as it was for the next turn.
        let mut zero_masked = self::stream(bytes, count, [0; 4]);
        group.bench_function("clawgate_in_place", |b| b.iter(|| in_place(&mut zero_masked)));
        group.bench_function("fastwebsockets", |b| b.iter(|| fastwebsockets(&stream, count)));
        group.bench_function("tokio_websockets", |b| b.iter(|| tokio_websockets(&stream, count)));
        group.finish();
    }
}

/// The loop that the compiler makes of eight bytes at a time, beside the one in use.
fn words(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

fn unmask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unmask");
    for bytes in [16, 64, 150, 1024, 64 * 1024] {
        // A payload begins 6, 8 or 14 bytes behind wherever its frame does.
        let mut payload = vec![1; bytes + 6];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("fastwebsockets", bytes), |b| {
            b.iter(|| fastwebsockets::unmask(black_box(&mut payload[6..]), black_box([1, 2, 3, 4])));
        });
        group.bench_function(BenchmarkId::new("words", bytes), |b| {
            b.iter(|| words(black_box(&mut payload[6..]), black_box([1, 2, 3, 4])));
        });
    }
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for bytes in [64, 1024, 64 * 1024] {
        let payload = text(bytes);
        let mut out = Vec::with_capacity(bytes + 14);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::new("known_length", bytes), |b| {
            b.iter(|| {
                out.clear();
                frame(Opcode::Text, black_box(&payload), None, &mut out);
            });
        });
        for (name, expected_bytes) in
            [("guessed_right", bytes), ("guessed_wrong", if bytes == 1024 { 64 } else { 1024 })]
        {
            group.bench_function(BenchmarkId::new(name, bytes), |b| {
                b.iter(|| {
                    out.clear();
                    let start = FrameStart::new(Opcode::Text, expected_bytes, None, &mut out);
                    out.extend_from_slice(black_box(&payload));
                    start.finish(&mut out);
                });
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = decode, unmask, encode
}
criterion_main!(benches);
