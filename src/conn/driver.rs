//! Moves the bytes of one connection: one task, no timer once it is open, no buffer while it is idle.
//!
//! Each turn reads what is there into a buffer of the thread, takes every message in it, adds what waits in the
//! outbox, and writes all answers at once. What the socket does not take is kept, and nothing more is read until
//! it has gone: a client that does not read its answers stalls itself, and nobody else.
//!
//! Cancel safety: dropping the future closes the socket and tells the [`Service`] nothing; the runtime does that
//! only when the process ends.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::machine::{Machine, Step};
use super::{CalledOff, Connecting, End, EndedBy, Refused, Service, Socket};
use crate::clock::{UnixMs, monotonic_s};
use crate::hub::Connection;
use crate::hub::outbox::{EncodedEvent, Item, TooMuch, spare};
use crate::limits;
use crate::net::stream::{Received, Stream};
use crate::rpc::catalog::Event;
use crate::rpc::dispatch::{Params, Routed, log_refusal, write_error, write_ok};
use crate::rpc::scope;
use crate::ws::close::{Close, CloseCode};
use crate::ws::codec::{self, Decoder, FrameStart, Limits, ProtocolError, Role};
use crate::ws::message::{Message, Opcode};

/// Bytes read at a time.
const INPUT_BYTES: usize = 64 * 1024;
/// Bytes of answers after which a turn stops to write.
const OUTPUT_BYTES: usize = 64 * 1024;
/// Capacity of the thread's output buffer that is kept from turn to turn.
const OUTPUT_KEPT_BYTES: usize = 256 * 1024;
/// Turns before the other connections of the worker have theirs.
const TURNS: usize = 8;
/// Looks at the kernel for which what there is to say to a node is held back, see [`Driver::linger`]. A second one brings
/// more than it costs; a third brought nothing.
const LOOKS: u8 = 2;
/// Expected bytes of an answer: it decides the form of the frame's head before the length is known.
const ANSWER_BYTES: usize = 200;

/// Buffers of the thread, lent to one connection for the time of one turn.
struct Scratch {
    input: Box<[u8]>,
    output: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: vec![0; INPUT_BYTES].into(),
        output: Vec::with_capacity(OUTPUT_BYTES),
    });
}

/// Runs a connection from its upgrade to its end. `read` are bytes that came behind the request.
pub fn run(stream: Stream, read: Bytes, socket: Socket, service: Arc<dyn Service>) -> impl Future<Output = ()> + Send {
    // Not an async function: its future would keep `read` to the end, and with it the whole buffer of HTTP.
    Driver::new(stream, &read, socket, service)
}

/// What a read brought.
enum Came {
    /// Nothing: it waits for the peer, or for a decision.
    Nothing,
    /// Something, and perhaps there is more.
    Bytes { more: bool },
}

/// What becomes of the connection after a message.
enum Flow {
    /// The next message, please.
    Next,
    /// No further message until the `connect` is decided.
    Pause(Box<str>, Connecting),
    /// No further message until the outbox says so.
    Hold,
    /// The end.
    Leave(End),
}

/// The connection without its socket.
struct Core {
    machine: Machine,
    service: Arc<dyn Service>,
    connection: Option<Arc<Connection>>,
}

/// What only exists until `hello-ok`.
struct Handshake {
    socket: Socket,
    deadline: Pin<Box<Sleep>>,
    called_off: CalledOff,
    connecting: Option<(Box<str>, Connecting)>,
}

/// What only exists after the end was decided.
struct Leaving {
    deadline: Pin<Box<Sleep>>,
    /// What the close frame says, until it is encoded behind the last words.
    close: Option<End>,
    /// The write side is shut; only the peer's end is awaited.
    shut: bool,
}

struct Driver {
    stream: Stream,
    decoder: Decoder,
    core: Core,
    handshake: Option<Box<Handshake>>,
    leaving: Option<Box<Leaving>>,
    /// Received, not taken apart yet: the answers to what came before have to go first.
    held: Vec<u8>,
    /// Encoded, not taken by the socket yet.
    unsent: Vec<u8>,
    unsent_at: usize,
    /// A ping is among `unsent`.
    ping_unsent: bool,
    /// Looks at the kernel for which `unsent` has been held back, see [`Driver::linger`].
    looks: u8,
}

impl Driver {
    fn new(stream: Stream, read: &[u8], socket: Socket, service: Arc<dyn Service>) -> Self {
        let mut unsent = Vec::with_capacity(160);
        let challenge = format!(r#"{{"nonce":"{}","ts":{}}}"#, socket.nonce, UnixMs::now().0);
        let mut text = Vec::with_capacity(160);
        EncodedEvent::new(Event::CONNECT_CHALLENGE, challenge.as_bytes(), None).write(None, &mut text);
        codec::frame(Opcode::Text, &text, None, &mut unsent);
        let (deadline, called_off) = (socket.since + service.handshake_timeout(), service.called_off(&socket));
        let limits =
            Limits { max_message_bytes: limits::PREAUTH_PAYLOAD_BYTES, max_fragments: limits::MAX_FRAGMENTS as u32 };
        Self {
            stream,
            decoder: Decoder::new(Role::Server, limits),
            core: Core { machine: Machine::default(), service, connection: None },
            handshake: Some(Box::new(Handshake {
                socket,
                deadline: Box::pin(sleep_until(deadline)),
                called_off,
                connecting: None,
            })),
            leaving: None,
            held: read.to_vec(),
            unsent,
            unsent_at: 0,
            ping_unsent: false,
            looks: 0,
        }
    }

    /// Turns until nothing moves. `Ready` when the connection has ended and the socket can go.
    fn turn(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<()> {
        for _ in 0..TURNS {
            if self.leaving.is_some() {
                return self.leave(cx, scratch);
            }
            let looks = std::mem::take(&mut self.looks);
            scratch.output.clear();
            if looks > 0 {
                scratch.output.extend_from_slice(&self.unsent);
                spare::give_back(std::mem::take(&mut self.unsent));
            } else {
                match self.flush(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return self.broken(&error),
                    Poll::Pending => {
                        if self.shake_hands(cx, scratch).is_break() || self.blocked_close(cx) {
                            continue;
                        }
                        return Poll::Pending;
                    }
                }
            }
            if self.handshake.is_some() && self.shake_hands(cx, scratch).is_break() {
                continue;
            }
            let was_waiting = self.core.machine.is_waiting();
            let came = match self.read(cx, scratch) {
                Ok(came) => came,
                Err(error) => return self.broken(&error),
            };
            if looks < LOOKS && self.linger(cx, &came, &scratch.output) {
                self.looks = looks + 1;
                return Poll::Pending;
            }
            let drained = self.leaving.is_none() && self.drain(cx, &mut scratch.output);
            if let Err(error) = self.send(cx, scratch) {
                return self.broken(&error);
            }
            if self.leaving.is_some() || !self.unsent.is_empty() {
                continue;
            }
            if let Some(connection) = &self.core.connection {
                if drained {
                    connection.outbox.settle();
                }
                if connection.outbox.is_signalled() {
                    continue;
                }
            }
            let is_waiting = self.core.machine.is_waiting();
            let done = match came {
                Came::Nothing => is_waiting || !was_waiting,
                // Waiting has just begun: what is waited for is to be polled.
                Came::Bytes { more } => !is_waiting && !more && self.held.is_empty() && self.stream.poll_quiet(cx),
            };
            if done {
                return Poll::Pending;
            }
        }
        // There is more to do; let the others have their turn first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The deadline, the gateway's stop, and the decision on `connect`. `Break` when the connection moved on.
    fn shake_hands(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};
        let Some(handshake) = &mut self.handshake else { return Continue(()) };
        if handshake.deadline.as_mut().poll(cx).is_ready() {
            let limit = self.core.service.handshake_timeout();
            self.begin_leaving(by_gateway(
                CloseCode::POLICY_VIOLATION,
                format!("handshake timeout: no valid connect within {limit:?}"),
            ));
            return Break(());
        }
        if let Poll::Ready(close) = handshake.called_off.as_mut().poll(cx) {
            self.begin_leaving(by_gateway(close.code, close.reason.to_owned()));
            return Break(());
        }
        let Some((_, connecting)) = &mut handshake.connecting else { return Continue(()) };
        let Poll::Ready(decided) = connecting.as_mut().poll(cx) else { return Continue(()) };
        let (id, _) = handshake.connecting.take().unwrap_or_else(|| unreachable!("it was just polled"));
        scratch.output.clear();
        match decided {
            Ok(accepted) => {
                self.decoder.set_max_message_bytes(limits::MAX_PAYLOAD_BYTES);
                self.core.machine.accepted();
                let frame = FrameStart::new(Opcode::Text, accepted.hello.len(), None, &mut scratch.output);
                // A payload that is bytes already cannot fail to be written.
                let _ = write_ok(&mut scratch.output, &id, |out| {
                    out.extend_from_slice(&accepted.hello);
                    Ok(())
                });
                frame.finish(&mut scratch.output);
                self.unsent.extend_from_slice(&scratch.output);
                self.core.service.opened(&accepted.connection);
                self.core.connection = Some(accepted.connection);
                // The deadline, the head of the request, the nonce: nothing of the handshake is needed any more.
                self.handshake = None;
            }
            Err(Refused { error, code, reason }) => {
                let frame = FrameStart::new(Opcode::Text, ANSWER_BYTES, None, &mut scratch.output);
                write_error(&mut scratch.output, &id, &error);
                frame.finish(&mut scratch.output);
                self.unsent.extend_from_slice(&scratch.output);
                let reason = if reason.is_empty() { error.message.into_owned() } else { reason };
                self.begin_leaving(by_gateway(code, reason));
            }
        }
        Break(())
    }

    /// Whether to hold back what there is to say to a node until the kernel has been asked once more what is ready, and
    /// that has run. A node is called by many: what they ask of it in these rounds, and the acknowledgements of what it
    /// has answered, leave in one write. With nothing else to do it costs [`LOOKS`] looks at the kernel.
    fn linger(&mut self, cx: &mut Context<'_>, came: &Came, output: &[u8]) -> bool {
        let Some(connection) = &self.core.connection else { return false };
        let has_more = matches!(came, Came::Bytes { more: true }) || output.len() > ANSWER_BYTES * 16;
        let is_silent = output.is_empty() && !connection.outbox.is_signalled();
        if connection.grant.role() != scope::Role::Node || self.leaving.is_some() || has_more || is_silent {
            return false;
        }
        if !output.is_empty() {
            self.unsent = spare::take(output.len());
            self.unsent.extend_from_slice(output);
        }
        // To be polled once is all that it needs: it wakes this task after the next look.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
        true
    }

    /// Reads once and takes the messages.
    fn read(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> io::Result<Came> {
        if self.core.machine.is_waiting() {
            return Ok(Came::Nothing);
        }
        if !self.held.is_empty() {
            let mut held = std::mem::take(&mut self.held);
            self.take_messages(&mut held, &mut scratch.output);
            return Ok(Came::Bytes { more: true });
        }
        match self.stream.poll_receive(cx, &mut scratch.input) {
            Poll::Pending => Ok(Came::Nothing),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(Received { bytes: 0, .. })) => Err(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Ok(Received { bytes, more })) => {
                if let Some(connection) = &self.core.connection {
                    connection.pulse.received(monotonic_s());
                }
                self.take_messages(&mut scratch.input[..bytes], &mut scratch.output);
                self.count_held();
                Ok(Came::Bytes { more })
            }
        }
    }

    fn take_messages(&mut self, mut input: &mut [u8], out: &mut Vec<u8>) {
        let now = UnixMs::coarse();
        loop {
            if out.len() >= OUTPUT_BYTES && !input.is_empty() {
                self.held.extend_from_slice(input);
                return;
            }
            let flow = match self.decoder.next(&mut input) {
                Ok(None) => return,
                Ok(Some(message)) => self.core.message(message, now, self.handshake.as_deref(), out),
                Err(error) => {
                    let close = Close::from(error);
                    let reason = if self.handshake.is_some() && close.code == CloseCode::MESSAGE_TOO_BIG {
                        "preauth payload too large"
                    } else {
                        close.reason
                    };
                    let too_much = match error {
                        ProtocolError::TooBig(bytes) => {
                            Some(TooMuch { bytes, limit: self.decoder.max_message_bytes() as u64 })
                        }
                        _ => None,
                    };
                    Flow::Leave(End { too_much, ..by_gateway(close.code, reason.to_owned()) })
                }
            };
            match flow {
                Flow::Next => {}
                Flow::Pause(id, connecting) => {
                    if let Some(handshake) = &mut self.handshake {
                        handshake.connecting = Some((id, connecting));
                    }
                    self.held.extend_from_slice(input);
                    return;
                }
                Flow::Hold => {
                    self.held.extend_from_slice(input);
                    return;
                }
                Flow::Leave(end) => {
                    self.begin_leaving(end);
                    return;
                }
            }
        }
    }

    /// What a stranger leaves unfinished is counted, and bounded for all strangers together.
    fn count_held(&mut self) {
        let Some(handshake) = &self.handshake else { return };
        if !handshake.socket.slot.hold(self.held.len() + self.decoder.held_bytes()) {
            self.begin_leaving(by_gateway(
                CloseCode::TRY_AGAIN_LATER,
                "too many unfinished messages before authentication".to_owned(),
            ));
        }
    }

    /// Adds what waits in the outbox to `out`. Says whether anything did.
    fn drain(&mut self, cx: &Context<'_>, out: &mut Vec<u8>) -> bool {
        let Some(connection) = &self.core.connection else { return false };
        let mut drained = false;
        let closing = connection.outbox.drain(cx.waker(), |item| {
            drained = true;
            match item {
                Item::Text(text) => {
                    codec::frame(Opcode::Text, &text, None, out);
                    spare::give_back(text);
                }
                Item::Event(event, seq) => {
                    let frame = FrameStart::new(Opcode::Text, ANSWER_BYTES, None, out);
                    event.write(Some(seq), out);
                    frame.finish(out);
                }
                Item::Ping => {
                    self.ping_unsent = true;
                    codec::frame(Opcode::Ping, &[], None, out);
                }
                Item::Resume => self.core.machine.resume(),
            }
            out.len() < OUTPUT_BYTES
        });
        if let Some(closing) = closing {
            self.begin_leaving(End { too_much: closing.too_much, ..by_gateway(closing.code, closing.reason) });
        }
        drained
    }

    /// Writes `scratch.output`, keeping what the socket does not take.
    fn send(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> io::Result<()> {
        let output = &mut scratch.output;
        if !output.is_empty() {
            let mut sent = 0;
            if self.unsent.is_empty() {
                while sent < output.len() {
                    match Pin::new(&mut self.stream).poll_write(cx, &output[sent..]) {
                        Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                        Poll::Ready(Ok(written)) => sent += written,
                        Poll::Ready(Err(error)) => return Err(error),
                        Poll::Pending => break,
                    }
                }
            }
            self.unsent.extend_from_slice(&output[sent..]);
            if output.capacity() > OUTPUT_KEPT_BYTES {
                *output = Vec::with_capacity(OUTPUT_BYTES);
            }
        }
        // Over TLS, what was taken may still wait as ciphertext: the next turn flushes before it reads.
        if self.unsent.is_empty() && Pin::new(&mut self.stream).poll_flush(cx)?.is_ready() {
            self.ping_is_out();
        }
        Ok(())
    }

    /// Writes what is kept; its memory is given back when all of it is out.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unsent_at < self.unsent.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unsent[self.unsent_at..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent_at += written;
        }
        if !self.unsent.is_empty() {
            self.unsent = Vec::new();
            self.unsent_at = 0;
            if let Some(connection) = &self.core.connection {
                connection.outbox.settle();
            }
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.ping_is_out();
        Poll::Ready(Ok(()))
    }

    fn ping_is_out(&mut self) {
        if std::mem::take(&mut self.ping_unsent)
            && let Some(connection) = &self.core.connection
        {
            connection.pulse.pinged(monotonic_s());
        }
    }

    /// While the socket takes nothing: whether the connection is to be closed. A peer that does not read must not be
    /// able to put that off.
    fn blocked_close(&mut self, cx: &Context<'_>) -> bool {
        let closing = self.core.connection.as_ref().and_then(|it| it.outbox.watch_close(cx.waker()));
        if let Some(closing) = closing {
            self.begin_leaving(End { too_much: closing.too_much, ..by_gateway(closing.code, closing.reason) });
            return true;
        }
        false
    }

    /// The end is decided: tell the service now, the peer next.
    fn begin_leaving(&mut self, end: End) {
        if self.leaving.is_some() {
            return;
        }
        self.tell(&end);
        self.held = Vec::new();
        self.leaving = Some(Box::new(Leaving {
            deadline: Box::pin(sleep_until(Instant::now() + limits::CLOSE_GRACE)),
            close: Some(end),
            shut: false,
        }));
    }

    /// Writes the last words, shuts the write side, and waits for the peer to do the same, within the grace. Closing
    /// a socket with unread bytes would reset the connection and may take the close frame with it.
    fn leave(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<()> {
        let flushed = self.last_words(cx, scratch);
        let Some(leaving) = &mut self.leaving else { return Poll::Ready(()) };
        if leaving.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match flushed {
            Poll::Ready(Ok(())) if !leaving.shut => {
                leaving.shut = true;
                if ready!(Pin::new(&mut self.stream).poll_shutdown(cx)).is_err() {
                    return Poll::Ready(());
                }
            }
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        // Bounded like everything else: a peer that floods a closing socket is read a few times a turn.
        for _ in 0..TURNS {
            let mut buffer = ReadBuf::new(&mut scratch.input);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                // The peer only shut its side: it may still want to read.
                Poll::Ready(Ok(())) if !leaving.shut => return Poll::Pending,
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what is half written, then what an orderly close lets out of the outbox, then the close frame.
    fn last_words(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<io::Result<()>> {
        loop {
            ready!(self.flush(cx))?;
            if self.leaving.as_ref().is_none_or(|leaving| leaving.close.is_none()) {
                return Poll::Ready(Ok(()));
            }
            scratch.output.clear();
            let orderly = self.core.connection.as_ref().is_some_and(|connection| connection.outbox.is_closing());
            let drained = orderly && self.drain(cx, &mut scratch.output);
            if !drained && let Some(end) = self.leaving.as_mut().and_then(|leaving| leaving.close.take()) {
                let code = end.code.and_then(CloseCode::new);
                codec::close(code.map(|code| Close::new(code, &end.reason)), None, &mut scratch.output);
            }
            self.unsent.extend_from_slice(&scratch.output);
        }
    }

    fn broken(&mut self, error: &io::Error) -> Poll<()> {
        if self.leaving.is_none() {
            let reason = match error.kind() {
                io::ErrorKind::UnexpectedEof => "the peer closed the transport without a close frame".to_owned(),
                _ => error.to_string(),
            };
            self.tell(&End { by: EndedBy::Transport, code: None, reason, too_much: None });
        }
        Poll::Ready(())
    }

    fn tell(&mut self, end: &End) {
        let handshake = self.handshake.take();
        let socket = handshake.as_ref().map(|handshake| &handshake.socket);
        self.core.service.ended(socket, self.core.connection.as_ref(), end);
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        SCRATCH.with_borrow_mut(|scratch| self.turn(cx, scratch))
    }
}

impl Core {
    fn message(&mut self, message: Message<'_>, now: UnixMs, handshake: Option<&Handshake>, out: &mut Vec<u8>) -> Flow {
        match message {
            Message::Text(text) => self.text(text.into_str(), now, handshake, out),
            Message::Binary(_) => Flow::Leave(by_gateway(
                CloseCode::UNSUPPORTED_DATA,
                "binary frames are not part of this protocol; send JSON text".to_owned(),
            )),
            Message::Ping(payload) => {
                codec::frame(Opcode::Pong, payload, None, out);
                Flow::Next
            }
            Message::Pong(_) => Flow::Next,
            Message::Close(close) => Flow::Leave(End {
                by: EndedBy::Client,
                code: close.map(|close| close.code.get()),
                reason: close.map(|close| close.reason.to_owned()).unwrap_or_default(),
                too_much: None,
            }),
        }
    }

    fn text(&mut self, text: &str, now: UnixMs, handshake: Option<&Handshake>, out: &mut Vec<u8>) -> Flow {
        match self.machine.message(text) {
            Step::Route(request) => {
                let Some(connection) = &self.connection else {
                    return Flow::Leave(by_gateway(CloseCode::INTERNAL_ERROR, "no connection to route for".to_owned()));
                };
                // Its right may have gone since it was read: a removed device gets nothing more done.
                if connection.outbox.is_closing() {
                    return Flow::Next;
                }
                let frame = FrameStart::new(Opcode::Text, ANSWER_BYTES, None, out);
                let start = out.len();
                let params = Params::of(&request);
                let routed = self.service.route(connection, request.id.as_str(), &request.method, params, now, out);
                if out.len() == start {
                    frame.abandon(out);
                } else {
                    frame.finish(out);
                }
                match self.machine.routed(routed) {
                    None if routed == Routed::Held => Flow::Hold,
                    None => Flow::Next,
                    Some(reason) => Flow::Leave(by_gateway(CloseCode::POLICY_VIOLATION, reason.to_owned())),
                }
            }
            Step::Connect { id, params } => match handshake {
                Some(handshake) => {
                    Flow::Pause(id.into(), Arc::clone(&self.service).connect(handshake.socket.clone(), *params))
                }
                None => Flow::Leave(by_gateway(CloseCode::INTERNAL_ERROR, "connect after the handshake".to_owned())),
            },
            Step::Answer { id, error } => {
                if let Some(connection) = &self.connection {
                    log_refusal(connection, "", &error);
                }
                answer_error(&id, &error, out);
                Flow::Next
            }
            Step::Close { answer, code, reason } => {
                if let Some((id, error)) = answer {
                    answer_error(&id, &error, out);
                }
                Flow::Leave(by_gateway(code, reason))
            }
        }
    }
}

fn answer_error(id: &str, error: &crate::rpc::error::RpcError, out: &mut Vec<u8>) {
    let frame = FrameStart::new(Opcode::Text, ANSWER_BYTES, None, out);
    write_error(out, id, error);
    frame.finish(out);
}

const fn by_gateway(code: CloseCode, reason: String) -> End {
    End { by: EndedBy::Gateway, code: Some(code.get()), reason, too_much: None }
}
