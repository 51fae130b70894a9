//! A WebSocket in client role over any stream: texts in, texts out, pings answered.
//!
//! Nothing is written or read but in [`Frames::poll_io`], so whoever selects over it loses no byte.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::error::{Disconnect, lost};
use crate::id;
use crate::limits::MAX_FRAGMENTS;
use crate::ws::close::{Close, CloseCode};
use crate::ws::codec::{self, Decoder, Limits, Role};
use crate::ws::message::{Message, Opcode};

/// Bytes read at once.
const READ_BYTES: usize = 8 * 1024;
/// Bytes a message of the gateway may have: more than it takes from clients, for answers can be longer than questions.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// An output buffer that grew beyond this for a large message is given back.
const KEPT_BYTES: usize = 64 * 1024;

/// What came.
pub(super) enum Inbound<'a> {
    /// A message.
    Text(&'a str),
    /// The end.
    Ended(Disconnect),
}

/// The stream, and what is on its way in and out.
pub(super) struct Frames<S> {
    stream: S,
    decoder: Decoder,
    /// Received bytes; those in `unread` were not looked at yet.
    received: Box<[u8]>,
    unread: Range<usize>,
    /// Frames to be written, from `written` on.
    out: Vec<u8>,
    written: usize,
    masks: Masks,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// A WebSocket over `stream`, on which `read` came already.
    pub(super) fn new(stream: S, read: &[u8]) -> Self {
        let limits = Limits { max_message_bytes: MAX_MESSAGE_BYTES, max_fragments: MAX_FRAGMENTS as u32 };
        let mut received = vec![0; READ_BYTES.max(read.len())].into_boxed_slice();
        received[..read.len()].copy_from_slice(read);
        let decoder = Decoder::new(Role::Client, limits);
        Self { stream, decoder, received, unread: 0..read.len(), out: Vec::new(), written: 0, masks: Masks::default() }
    }

    /// Puts a message into the output.
    pub(super) fn send_text(&mut self, text: &str) {
        codec::frame(Opcode::Text, text.as_bytes(), Some(self.masks.next()), &mut self.out);
    }

    /// Puts a close frame into the output.
    pub(super) fn send_close(&mut self, code: CloseCode, reason: &str) {
        codec::close(Some(Close::new(code, reason)), Some(self.masks.next()), &mut self.out);
    }

    /// Bytes that wait to be written.
    pub(super) const fn unsent_bytes(&self) -> usize {
        self.out.len() - self.written
    }

    /// Hands the next message that has come to `handle`; `None` when there is none. Pings are answered on the way,
    /// and so is a close frame.
    pub(super) fn pop<T>(&mut self, handle: impl FnOnce(Inbound<'_>) -> T) -> Option<T> {
        let mut input = &mut self.received[self.unread.clone()];
        let result = loop {
            match self.decoder.next(&mut input) {
                Ok(None) => break None,
                Ok(Some(Message::Text(text))) => break Some(handle(Inbound::Text(text.into_str()))),
                Ok(Some(Message::Ping(payload))) => {
                    codec::frame(Opcode::Pong, payload, Some(self.masks.next()), &mut self.out);
                }
                // The protocol has no binary messages, and nobody asked for a pong.
                Ok(Some(Message::Binary(_) | Message::Pong(_))) => {}
                Ok(Some(Message::Close(close))) => {
                    let echo = close.map(|close| Close::new(close.code, ""));
                    codec::close(echo, Some(self.masks.next()), &mut self.out);
                    let end = Disconnect::ByGateway {
                        code: close.map(|close| close.code.get()),
                        reason: close.map_or("", |close| close.reason).into(),
                    };
                    break Some(handle(Inbound::Ended(end)));
                }
                Err(error) => {
                    codec::close(Some(error.into()), Some(self.masks.next()), &mut self.out);
                    break Some(handle(Inbound::Ended(Disconnect::Protocol(error))));
                }
            }
        };
        self.unread.start = self.unread.end - input.len();
        result
    }

    /// Waits for the next message and hands it to `handle`.
    pub(super) async fn next<T>(&mut self, mut handle: impl FnMut(Inbound<'_>) -> T) -> T {
        loop {
            if let Some(result) = self.pop(&mut handle) {
                return result;
            }
            if let Err(end) = self.io().await {
                return handle(Inbound::Ended(end));
            }
        }
    }

    /// Writes what waits, and reads. Ends when something was read; cancel safe.
    pub(super) async fn io(&mut self) -> Result<(), Disconnect> {
        poll_fn(|cx| self.poll_io(cx)).await.map_err(|error| lost(&error))
    }

    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
            // What the gateway said before it closed says more than that it closed.
            if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                return Poll::Ready(Err(error));
            }
            self.forget_output();
        }
        debug_assert!(self.unread.is_empty(), "what was read is not lost");
        let mut buffer = ReadBuf::new(&mut self.received);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.unread = 0..count;
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.forget_output();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn forget_output(&mut self) {
        self.out.clear();
        self.out.shrink_to(KEPT_BYTES);
        self.written = 0;
    }

    /// Writes what waits, then reads until the other side is done too.
    pub(super) async fn finish(mut self) {
        if poll_fn(|cx| self.poll_flush(cx)).await.is_err() {
            return;
        }
        loop {
            let ended = |inbound: Inbound<'_>| matches!(inbound, Inbound::Ended(_));
            match self.pop(ended) {
                Some(true) => return,
                Some(false) => {}
                None => {
                    if self.io().await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Fresh masks (RFC 6455, section 5.3), fetched from the operating system eight at a time.
#[derive(Default)]
struct Masks {
    bytes: [u8; 32],
    left: usize,
}

impl Masks {
    fn next(&mut self) -> [u8; 4] {
        if self.left == 0 {
            self.bytes = id::random_bytes();
            self.left = self.bytes.len() / 4;
        }
        self.left -= 1;
        let at = self.left * 4;
        [self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]]
    }
}
