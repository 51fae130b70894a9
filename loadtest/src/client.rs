//! The engine: many client connections on one thread, driven by readiness, cheaper a message than any server
//! that could be under test.
//!
//! It knows how to get through the door ([`Wire::Gateway`]: upgrade, challenge, `connect`) and how to hold a
//! conversation without framing ([`Wire::Floor`]); what is said then is the business of a [`Load`]. One read,
//! all messages in it, one write: as little as a client can do. Start with [`Engine::turn`].

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clawgate::limits::MAX_FRAGMENTS;
use clawgate::ws::codec::{self, Decoder, FrameStart, Limits, Role};
use clawgate::ws::message::{Message, Opcode};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::interrupt;
use crate::wire::{self, Credentials, Template, Who, string_value};

/// Nanoseconds since the engine was made.
pub type Nanos = u64;

/// Names a connection. Small numbers, given out again after a connection has ended.
pub type Key = usize;

/// Bytes read at a time.
const INPUT_BYTES: usize = 256 * 1024;
/// Connections that one source address may have: the ephemeral ports of Linux, less some for others.
pub const CONNECTIONS_PER_SOURCE: usize = 20_000;
/// Bytes that an answer to the upgrade may have.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// What is at the other end.
#[derive(Clone, Debug)]
pub enum Wire {
    /// A gateway, entered as the one who is given.
    Gateway(Rc<Gateway>, Rc<Who>),
    /// A floor server.
    Floor {
        /// Its address.
        address: SocketAddr,
        /// Bytes with which it greets; without any, a connection is open as soon as TCP says so.
        greeting_bytes: usize,
        /// Bytes of each of its answers.
        answer_bytes: usize,
    },
}

/// Where a gateway is and what lets one in.
#[derive(Debug)]
pub struct Gateway {
    /// Its address.
    pub address: SocketAddr,
    /// What goes into the `Host` header.
    pub host: String,
    /// What is proved to it.
    pub credentials: Credentials,
}

/// How a connection ended. Displays as what follows "the connection".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As asked by [`Link::leave`].
    Left,
    /// The gateway refused the upgrade or `connect`; its words.
    Refused(String),
    /// The gateway closed it, with a code and a reason. 1005 stands for a close frame without a code.
    Closed(u16, String),
    /// It broke off without a word; what the system says of it.
    Lost(String),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Left => f.write_str("has left"),
            Self::Refused(words) => write!(f, "was refused: {words}"),
            Self::Closed(code, reason) => write!(f, "was closed with {code} {reason:?}"),
            Self::Lost(error) => write!(f, "broke off: {error}"),
        }
    }
}

/// What happens on the connections of an [`Engine`].
pub trait Load {
    /// The connection may be used. `hello` is the gateway's whole answer to `connect`; a floor says nothing.
    fn opened(&mut self, link: &mut Link<'_>, hello: &str);
    /// A text message of the gateway.
    fn text(&mut self, link: &mut Link<'_>, text: &str);
    /// Whole answers of the floor.
    fn answers(&mut self, link: &mut Link<'_>, count: usize);
    /// The connection is no more.
    fn closed(&mut self, key: Key, end: End);
}

/// One connection, lent to a [`Load`] while something happens on it. What is sent leaves in one write when the
/// load returns.
#[derive(Debug)]
pub struct Link<'a> {
    /// Which connection.
    pub key: Key,
    /// When what is being told happened.
    pub now: Nanos,
    /// When the connection was begun.
    pub begun: Nanos,
    output: &'a mut Vec<u8>,
    mask: [u8; 4],
    wants: &'a mut Wants,
}

/// What a load asked of a connection.
#[derive(Debug, Default)]
struct Wants {
    leave: bool,
    pause: bool,
    answer_bytes: Option<usize>,
}

impl Link<'_> {
    /// Sends a call.
    #[inline]
    pub fn call(&mut self, template: &mut Template, id: u64) {
        template.write(id, self.mask, self.output);
    }

    /// Sends a text.
    pub fn send(&mut self, text: &[u8]) {
        codec::frame(Opcode::Text, text, Some(self.mask), self.output);
    }

    /// Sends a text that comes in parts.
    #[inline]
    pub fn send_parts(&mut self, parts: &[&[u8]]) {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let frame = FrameStart::new(Opcode::Text, bytes, Some(self.mask), self.output);
        parts.iter().for_each(|part| self.output.extend_from_slice(part));
        frame.finish(self.output);
    }

    /// Sends bytes as they are, to a floor.
    #[inline]
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Changes how many bytes the floor's next answers have.
    pub fn expect(&mut self, answer_bytes: usize) {
        self.wants.answer_bytes = Some(answer_bytes);
    }

    /// Says goodbye; the connection ends when the other side has answered.
    pub fn leave(&mut self) {
        self.wants.leave = true;
    }

    /// Reads no more until [`Engine::resume`].
    pub fn pause(&mut self) {
        self.wants.pause = true;
    }
}

/// How far a connection is.
enum Stage {
    /// The TCP handshake, then the answer to the upgrade, of which this much has come.
    Upgrading(Rc<Gateway>, Rc<Who>, Vec<u8>),
    /// The upgrade is done, `connect` is not.
    Connecting(Rc<Gateway>, Rc<Who>),
    /// Let in.
    Open,
    /// A floor that has so many bytes of greeting to send yet.
    Greeting { missing: usize, answer_bytes: usize },
    /// A floor; `carried` bytes of the answer under way have come.
    Floor { answer_bytes: usize, carried: usize },
    /// Goodbye was said.
    Leaving,
}

struct Connection {
    stream: TcpStream,
    stage: Stage,
    decoder: Decoder,
    mask: [u8; 4],
    begun: Nanos,
    paused: bool,
    /// The socket took nothing more; what waits for it.
    unsent: Vec<u8>,
}

/// Bytes that went over all connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Sent, framing included.
    pub sent_bytes: u64,
    /// Received, framing included.
    pub received_bytes: u64,
}

/// All connections of a run.
pub struct Engine {
    poll: Poll,
    events: Events,
    connections: Vec<Option<Connection>>,
    free: Vec<Key>,
    input: Box<[u8]>,
    output: Vec<u8>,
    start: Instant,
    random: u64,
    sources: Vec<IpAddr>,
    opened_so_far: usize,
    /// Bytes so far.
    pub traffic: Traffic,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({} connections)", self.connections.len() - self.free.len())
    }
}

impl Engine {
    /// An engine without connections. With more than one of `sources`, connections start from them in turn; they
    /// are addresses of the loopback network.
    pub fn new(sources: usize) -> io::Result<Self> {
        let source = |number: usize| {
            let number = u32::try_from(number % 0xff_0000).unwrap_or_default();
            IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + number))
        };
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            connections: Vec::new(),
            free: Vec::new(),
            input: vec![0; INPUT_BYTES].into(),
            output: Vec::with_capacity(INPUT_BYTES),
            start: Instant::now(),
            random: u64::from_ne_bytes(clawgate::id::random_bytes()),
            sources: if sources > 1 { (0..sources).map(source).collect() } else { Vec::new() },
            opened_so_far: 0,
            traffic: Traffic::default(),
        })
    }

    /// The time.
    #[inline]
    pub fn now(&self) -> Nanos {
        since(self.start)
    }

    /// Begins a connection.
    ///
    /// # Errors
    /// The system has no descriptor, port or memory for it.
    pub fn open(&mut self, wire: &Wire) -> io::Result<Key> {
        let (address, stage) = match wire {
            Wire::Gateway(gateway, who) => {
                (gateway.address, Stage::Upgrading(Rc::clone(gateway), Rc::clone(who), Vec::new()))
            }
            Wire::Floor { address, greeting_bytes, answer_bytes } => {
                (*address, Stage::Greeting { missing: *greeting_bytes, answer_bytes: *answer_bytes })
            }
        };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = self.sources.get(self.opened_so_far % self.sources.len().max(1))
            && address.is_ipv4()
        {
            socket.bind(&SocketAddr::new(*source, 0).into())?;
        }
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                return Err(error);
            }
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let key = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.poll.registry().register(&mut stream, Token(key), Interest::READABLE | Interest::WRITABLE)?;
        self.opened_so_far += 1;
        // xorshift64: masks only have to differ and not to be zero.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let mask = ((self.random >> 32) as u32 | 0x0101_0101).to_ne_bytes();
        let limits = Limits { max_message_bytes: wire::MAX_MESSAGE_BYTES, max_fragments: MAX_FRAGMENTS as u32 };
        let decoder = Decoder::new(Role::Client, limits);
        let begun = self.now();
        self.connections[key] =
            Some(Connection { stream, stage, decoder, mask, begun, paused: false, unsent: Vec::new() });
        Ok(key)
    }

    /// Waits up to `wait` for something to happen, and tells `load` everything that did.
    ///
    /// # Errors
    /// The system cannot wait, or somebody wants this program to end.
    pub fn turn<L: Load>(&mut self, load: &mut L, wait: Duration) -> io::Result<()> {
        interrupt::check()?;
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            let key = event.token().0;
            if event.is_writable() {
                self.writable(key, load);
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.readable(key, event.is_read_closed() || event.is_error(), load);
            }
        }
        self.events = events;
        Ok(())
    }

    /// Lends a connection out of turn. `None` when it has ended.
    pub fn with<L: Load, R>(
        &mut self,
        key: Key,
        load: &mut L,
        now: Nanos,
        act: impl FnOnce(&mut L, &mut Link<'_>) -> R,
    ) -> Option<R> {
        let connection = self.connections.get_mut(key)?.as_mut()?;
        let mut wants = Wants::default();
        let (begun, mask) = (connection.begun, connection.mask);
        let result = act(load, &mut Link { key, now, begun, output: &mut self.output, mask, wants: &mut wants });
        connection.grant(&wants, &mut self.output);
        if let Err(error) = connection.send(&mut self.output, &mut self.traffic) {
            self.end(key, End::Lost(error.to_string()), load);
        }
        Some(result)
    }

    /// Reads again from a connection that was paused.
    pub fn resume<L: Load>(&mut self, key: Key, load: &mut L) {
        if let Some(connection) = self.connections.get_mut(key).and_then(Option::as_mut) {
            connection.paused = false;
            self.readable(key, true, load);
        }
    }

    /// Lets the system hold no more than about `bytes` that were received and not read.
    pub fn narrow(&self, key: Key, bytes: usize) -> io::Result<()> {
        match self.connections.get(key) {
            Some(Some(connection)) => SockRef::from(&connection.stream).set_recv_buffer_size(bytes),
            _ => Ok(()),
        }
    }

    /// Ends a connection here and now, without goodbye.
    pub fn cut(&mut self, key: Key) {
        if let Some(slot) = self.connections.get_mut(key)
            && slot.take().is_some()
        {
            self.free.push(key);
        }
    }

    fn end<L: Load>(&mut self, key: Key, end: End, load: &mut L) {
        self.cut(key);
        load.closed(key, end);
    }

    fn writable<L: Load>(&mut self, key: Key, load: &mut L) {
        let Some(connection) = self.connections[key].as_mut() else { return };
        // The first time, it means that TCP is connected.
        match &mut connection.stage {
            Stage::Upgrading(gateway, _, head) if head.capacity() == 0 => {
                if let Ok(Some(error)) = connection.stream.take_error() {
                    return self.end(key, End::Lost(error.to_string()), load);
                }
                head.reserve(512);
                self.output.extend_from_slice(wire::upgrade(&gateway.host).as_bytes());
            }
            Stage::Greeting { missing: 0, .. } => {
                if let Ok(Some(error)) = connection.stream.take_error() {
                    return self.end(key, End::Lost(error.to_string()), load);
                }
                connection.greeted(key, since(self.start), &mut self.output, load);
            }
            _ if connection.unsent.is_empty() => return,
            _ => {}
        }
        if let Err(error) = connection.send(&mut self.output, &mut self.traffic) {
            self.end(key, End::Lost(error.to_string()), load);
        }
    }

    /// Reads what is there. A short read has emptied the socket, unless its end is near: then only the end itself
    /// says so.
    fn readable<L: Load>(&mut self, key: Key, to_the_end: bool, load: &mut L) {
        loop {
            let Some(connection) = self.connections[key].as_mut() else { return };
            if connection.paused {
                return;
            }
            let read = match connection.stream.read(&mut self.input) {
                Ok(0) if matches!(connection.stage, Stage::Leaving) => return self.end(key, End::Left, load),
                Ok(0) => return self.end(key, End::Lost("end of stream".to_owned()), load),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if matches!(connection.stage, Stage::Leaving) => return self.end(key, End::Left, load),
                Err(error) => return self.end(key, End::Lost(error.to_string()), load),
            };
            self.traffic.received_bytes += read as u64;
            let now = since(self.start);
            let taken = connection.take(key, now, &mut self.input[..read], &mut self.output, load);
            let sent = connection.send(&mut self.output, &mut self.traffic);
            match (taken, sent) {
                (Err(end), _) => return self.end(key, end, load),
                (_, Err(error)) => return self.end(key, End::Lost(error.to_string()), load),
                _ if read < INPUT_BYTES && !to_the_end => return,
                _ => {}
            }
        }
    }
}

impl Connection {
    /// The floor is there.
    fn greeted<L: Load>(&mut self, key: Key, now: Nanos, output: &mut Vec<u8>, load: &mut L) {
        if let Stage::Greeting { answer_bytes, .. } = self.stage {
            self.stage = Stage::Floor { answer_bytes, carried: 0 };
            let mut wants = Wants::default();
            load.opened(&mut Link { key, now, begun: self.begun, output, mask: self.mask, wants: &mut wants }, "");
            self.grant(&wants, output);
        }
    }

    /// Takes received bytes apart.
    fn take<L: Load>(
        &mut self,
        key: Key,
        now: Nanos,
        mut input: &mut [u8],
        output: &mut Vec<u8>,
        load: &mut L,
    ) -> Result<(), End> {
        if let Stage::Greeting { missing, .. } = &mut self.stage {
            let taken = (*missing).min(input.len());
            *missing -= taken;
            input = &mut input[taken..];
            if *missing > 0 {
                return Ok(());
            }
            self.greeted(key, now, output, load);
        }
        let (begun, mask) = (self.begun, self.mask);
        if let Stage::Floor { answer_bytes, carried } = &mut self.stage {
            let bytes = *carried + input.len();
            *carried = bytes % *answer_bytes;
            let count = bytes / *answer_bytes;
            if count > 0 {
                let mut wants = Wants::default();
                load.answers(&mut Link { key, now, begun, output, mask, wants: &mut wants }, count);
                self.grant(&wants, output);
            }
            return Ok(());
        }
        if let Stage::Upgrading(gateway, who, head) = &mut self.stage {
            let had = head.len();
            head.extend_from_slice(input);
            let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
                return if head.len() > MAX_HEAD_BYTES { Err(refused_upgrade(head)) } else { Ok(()) };
            };
            if !head.starts_with(b"HTTP/1.1 101 ") {
                return Err(refused_upgrade(head));
            }
            input = &mut input[end + 4 - had..];
            self.stage = Stage::Connecting(Rc::clone(gateway), Rc::clone(who));
        }
        let mut wants = Wants::default();
        loop {
            let message = match self.decoder.next(&mut input) {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => return Err(End::Lost(format!("the gateway broke the protocol: {error}"))),
            };
            match message {
                Message::Text(text) => {
                    let mut link = Link { key, now, begun, output, mask, wants: &mut wants };
                    match &self.stage {
                        Stage::Open => load.text(&mut link, &text),
                        Stage::Connecting(gateway, who) => {
                            if let Some(nonce) = challenge(&text) {
                                match who.connect(&gateway.credentials, nonce) {
                                    Ok(connect) => link.send(connect.as_bytes()),
                                    Err(error) => return Err(End::Lost(error.to_string())),
                                }
                            } else if let Some(ok) = is_hello(&text) {
                                if !ok {
                                    return Err(End::Refused(error_of(&text)));
                                }
                                self.stage = Stage::Open;
                                load.opened(&mut link, &text);
                            }
                        }
                        _ => {}
                    }
                }
                Message::Binary(_) | Message::Pong(_) => {}
                Message::Ping(payload) => codec::frame(Opcode::Pong, payload, Some(mask), output),
                Message::Close(_) if matches!(self.stage, Stage::Leaving) => {}
                Message::Close(close) => {
                    let (code, reason) = close.map_or((1005, ""), |close| (close.code.get(), close.reason));
                    return Err(End::Closed(code, reason.to_owned()));
                }
            }
        }
        self.grant(&wants, output);
        Ok(())
    }

    /// Does what a load asked for.
    fn grant(&mut self, wants: &Wants, output: &mut Vec<u8>) {
        if wants.pause {
            self.paused = true;
        }
        if let (Some(bytes), Stage::Floor { answer_bytes, .. }) = (wants.answer_bytes, &mut self.stage) {
            *answer_bytes = bytes;
        }
        if wants.leave {
            match self.stage {
                // Nobody answers a goodbye here: the end of the stream is one.
                Stage::Floor { .. } => {
                    let _ = self.stream.shutdown(std::net::Shutdown::Write);
                }
                _ => codec::close(None, Some(self.mask), output),
            }
            self.stage = Stage::Leaving;
        }
    }

    /// Writes `output` and leaves it empty; what the socket does not take waits.
    #[inline]
    fn send(&mut self, output: &mut Vec<u8>, traffic: &mut Traffic) -> io::Result<()> {
        traffic.sent_bytes += output.len() as u64;
        if self.unsent.is_empty() {
            let sent = write_all(&mut self.stream, output);
            if let Ok(sent) = sent
                && sent < output.len()
            {
                self.unsent.extend_from_slice(&output[sent..]);
            }
            output.clear();
            return sent.map(drop);
        }
        self.unsent.append(output);
        let sent = write_all(&mut self.stream, &self.unsent)?;
        if sent == self.unsent.len() {
            self.unsent = Vec::new();
        } else {
            self.unsent.drain(..sent);
        }
        Ok(())
    }
}

/// Writes until the socket takes nothing more; how much it took.
#[inline]
fn write_all(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(written) => sent += written,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

#[inline]
fn since(start: Instant) -> Nanos {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The nonce, if `text` is the challenge.
fn challenge(text: &str) -> Option<&str> {
    text.contains(r#""connect.challenge""#).then(|| string_value(text, "nonce")).flatten()
}

/// Whether `connect` succeeded, if `text` is its answer.
fn is_hello(text: &str) -> Option<bool> {
    text.contains(r#""id":"0""#).then(|| text.contains(r#""ok":true"#))
}

/// What an answer says went wrong.
fn error_of(text: &str) -> String {
    let message = serde_json::from_str::<serde_json::Value>(text).ok().and_then(|frame| {
        let error = frame.get("error")?;
        Some(format!("{} {}", error.get("code")?.as_str()?, error.get("message")?.as_str()?))
    });
    message.unwrap_or_else(|| text.to_owned())
}

fn refused_upgrade(head: &[u8]) -> End {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    End::Refused(format!("the upgrade was answered with {:?}", String::from_utf8_lossy(line)))
}
