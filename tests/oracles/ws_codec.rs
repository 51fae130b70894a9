//! The frame codec against itself in other pieces, and against two other implementations.
//!
//! Promises, for any bytes and any cut into reads:
//! * the reads decide nothing: same messages, same refusal;
//! * what is held is bounded by what came;
//! * tokio-websockets and fastwebsockets see the same messages where they are as strict as we are;
//! * what was seen can be encoded and is seen again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use clawgate::ws::close::{Close, CloseCode};
use clawgate::ws::codec::{self, Decoder, FrameStart, Limits, ProtocolError, Role};
use clawgate::ws::message::{Message, Opcode};
use futures_core::Stream as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const LIMITS: Limits = Limits { max_message_bytes: 4096, max_fragments: 6 };
/// The others reserve what a frame declares: enough for every message that we take, but no more.
const THEIR_MAX_BYTES: usize = 4 * LIMITS.max_message_bytes;
const MAX_STREAM_BYTES: usize = 4 * LIMITS.max_message_bytes;
const OPCODES: [u8; 8] = [0x0, 0x1, 0x2, 0x8, 0x9, 0xa, 0x3, 0x1];

/// A message that outlives its buffer.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl From<Message<'_>> for Seen {
    fn from(message: Message<'_>) -> Self {
        match message {
            Message::Text(text) => Self::Text(text.to_owned()),
            Message::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Message::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Message::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Message::Close(close) => Self::Close(close.map(|close| (close.code.get(), close.reason.to_owned()))),
        }
    }
}

/// Reads choices and bytes off the fuzzer's input.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(count.min(self.0.len()));
        self.0 = later;
        now
    }
}

/// The first byte chooses role and form, the next 16 how the stream is cut, the rest is the stream: as it is,
/// or as frames to make.
pub(crate) fn check(data: &[u8]) {
    let mut choices = Choices(data);
    let Some(form) = choices.byte() else { return };
    let role = if form & 1 == 0 { Role::Server } else { Role::Client };
    let schedule = choices.bytes(16);
    let stream = if form & 2 == 0 { choices.0.to_vec() } else { make_stream(role, choices) };

    let whole = decode(role, &stream, [stream.len()].into_iter());
    let cut = decode(role, &stream, schedule.iter().map(|size| usize::from(*size).pow(2) / 16 + 1).cycle());
    assert_eq!(whole, cut, "cut into reads");
    assert_eq!(whole, decode(role, &stream, std::iter::repeat(1)), "byte by byte");

    let (seen, refusal) = whole;
    if role == Role::Server {
        let unbounded = matches!(refusal, Some(ProtocolError::TooBig(_) | ProtocolError::TooManyFragments));
        let theirs = tokio_websockets(&stream);
        assert!(
            theirs == seen || unbounded && theirs.starts_with(&seen),
            "tokio-websockets: {theirs:?}, ours: {seen:?}"
        );
        let theirs = fastwebsockets(&stream);
        assert!(
            theirs == seen || refusal.is_some() && theirs.starts_with(&seen),
            "fastwebsockets: {theirs:?}, ours: {seen:?}"
        );
    }
    round_trip(role, &seen);
}

/// Frames from choices: mostly valid, sometimes not.
fn make_stream(role: Role, mut choices: Choices<'_>) -> Vec<u8> {
    let mask = (role == Role::Server).then_some([0xa5, 0x5a, 0x00, 0xff]);
    let mut stream = Vec::new();
    while let (Some(first), Some(size)) = (choices.byte(), choices.byte()) {
        let count = if size < 200 { usize::from(size) / 4 } else { usize::from(size - 180) * 50 };
        let payload = match first & 0x08 {
            0 => choices.bytes(count).to_vec(),
            _ => "grüß dich, κόσμε 😀 ".bytes().cycle().skip(usize::from(first) >> 4).take(count).collect(),
        };
        let start = stream.len();
        codec::frame(Opcode::Binary, &payload, mask, &mut stream);
        // FIN on half of them; reserved bits on few.
        let reserved = if first == 0xff { 0x40 } else { 0 };
        stream[start] = first << 3 & 0x80 | reserved | OPCODES[usize::from(first & 7)];
        if stream.len() > MAX_STREAM_BYTES {
            break;
        }
    }
    stream
}

fn decode(role: Role, mut stream: &[u8], mut sizes: impl Iterator<Item = usize>) -> (Vec<Seen>, Option<ProtocolError>) {
    let mut decoder = Decoder::new(role, LIMITS);
    let (mut seen, mut came) = (Vec::new(), 0);
    while !stream.is_empty() {
        let (read, later) = stream.split_at(sizes.next().unwrap_or(1).min(stream.len()));
        stream = later;
        came += read.len();
        let mut read = read.to_vec();
        let mut input = &mut read[..];
        loop {
            match decoder.next(&mut input) {
                Ok(Some(message)) => seen.push(Seen::from(message)),
                Ok(None) => break,
                Err(error) => {
                    assert!(matches!(decoder.next(&mut input), Ok(None)), "nothing comes after an error");
                    return (seen, Some(error));
                }
            }
        }
        assert!(input.is_empty(), "all input is used up");
        assert!(decoder.held_bytes() <= 256 + 4 * came, "held {} of {came}", decoder.held_bytes());
    }
    (seen, None)
}

fn round_trip(role: Role, seen: &[Seen]) {
    // What one side decoded, the other side sends.
    let mask = (role == Role::Server).then_some([1, 2, 3, 4]);
    let mut stream = Vec::new();
    for message in seen {
        let (opcode, payload) = match message {
            Seen::Text(text) => (Opcode::Text, text.as_bytes()),
            Seen::Binary(bytes) => (Opcode::Binary, &bytes[..]),
            Seen::Ping(bytes) => (Opcode::Ping, &bytes[..]),
            Seen::Pong(bytes) => (Opcode::Pong, &bytes[..]),
            Seen::Close(close) => {
                let close = close
                    .as_ref()
                    .map(|(code, reason)| Close::new(CloseCode::new(*code).expect("a valid code"), reason));
                codec::close(close, mask, &mut stream);
                continue;
            }
        };
        let (start, mut in_place) = (stream.len(), stream.clone());
        codec::frame(opcode, payload, mask, &mut stream);
        let frame = FrameStart::new(opcode, start, mask, &mut in_place);
        in_place.extend_from_slice(payload);
        frame.finish(&mut in_place);
        assert_eq!(stream, in_place);
    }
    assert_eq!(decode(role, &stream, [stream.len()].into_iter()), (seen.to_vec(), None), "round trip");
}

fn tokio_websockets(stream: &[u8]) -> Vec<Seen> {
    let limits = tokio_websockets::Limits::default().max_payload_len(Some(THEIR_MAX_BYTES));
    let mut socket = tokio_websockets::ServerBuilder::new().limits(limits).serve(Memory(stream));
    let mut seen = Vec::new();
    while let Poll::Ready(Some(Ok(message))) = Pin::new(&mut socket).poll_next(&mut Context::from_waker(Waker::noop()))
    {
        seen.push(if let Some((code, reason)) = message.as_close() {
            let empty = message.as_payload().is_empty();
            Seen::Close((!empty).then(|| (u16::from(code), reason.to_owned())))
        } else if message.is_text() {
            // 0.13.3 does not see that a text ends inside a character when its last fragment is empty, and
            // `as_text` would trust that: check again.
            match String::from_utf8(message.as_payload().to_vec()) {
                Ok(text) => Seen::Text(text),
                Err(_) => break,
            }
        } else {
            let bytes = message.as_payload().to_vec();
            match (message.is_ping(), message.is_pong()) {
                (true, _) => Seen::Ping(bytes),
                (_, true) => Seen::Pong(bytes),
                _ => Seen::Binary(bytes),
            }
        });
    }
    seen
}

fn fastwebsockets(stream: &[u8]) -> Vec<Seen> {
    use fastwebsockets::{FragmentCollector, OpCode, Role, WebSocket};
    let mut socket = WebSocket::after_handshake(Memory(stream), Role::Server);
    socket.set_auto_pong(false);
    socket.set_auto_close(false);
    socket.set_max_message_size(THEIR_MAX_BYTES);
    let mut socket = FragmentCollector::new(socket);
    let mut seen = Vec::new();
    loop {
        let next = std::pin::pin!(socket.read_frame()).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(frame)) = next else { return seen };
        let bytes = frame.payload.to_vec();
        seen.push(match frame.opcode {
            OpCode::Text => Seen::Text(String::from_utf8(bytes).expect("fastwebsockets checks texts")),
            OpCode::Binary => Seen::Binary(bytes),
            OpCode::Ping => Seen::Ping(bytes),
            OpCode::Pong => Seen::Pong(bytes),
            OpCode::Continuation => unreachable!("fragments are collected"),
            OpCode::Close => {
                let close =
                    bytes.split_first_chunk().map(|(code, reason)| (u16::from_be_bytes(*code), reason.to_vec()));
                seen.push(Seen::Close(
                    close.map(|(code, reason)| (code, String::from_utf8_lossy(&reason).into_owned())),
                ));
                return seen;
            }
        });
    }
}

/// A peer that has sent everything already, and takes everything.
struct Memory<'a>(&'a [u8]);

impl AsyncRead for Memory<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(self.0.len().min(buf.remaining()));
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
