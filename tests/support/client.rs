//! A WebSocket client over a blocking socket that can also send what no client should. Start at [`Client`].

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use clawgate::ws::codec::{self, Decoder, Limits, Role};
use clawgate::ws::message::{Message, Opcode};
use serde_json::{Value, json};

use super::gateway::HttpAnswer;
use super::{PATIENCE, TOKEN};

/// Headers of a good WebSocket handshake, but `Host`.
pub const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// All scopes of an operator.
pub const ALL_SCOPES: [&str; 5] =
    ["operator.admin", "operator.read", "operator.write", "operator.approvals", "operator.pairing"];

/// `connect` of an operator with all scopes and the shared token.
pub fn operator() -> Value {
    json!({
        "minProtocol": 4, "maxProtocol": 4,
        "client": {"id": "gateway-client", "version": "1.0.0", "platform": "linux", "mode": "backend"},
        "role": "operator", "scopes": ALL_SCOPES, "auth": {"token": TOKEN},
    })
}

/// The same with these scopes alone.
pub fn operator_with(scopes: &[&str]) -> Value {
    let mut params = operator();
    params["scopes"] = json!(scopes);
    params
}

/// `connect` of a command-line client on this host, that asks for these scopes.
pub fn cli(scopes: &[&str]) -> Value {
    json!({
        "minProtocol": 4, "maxProtocol": 4,
        "client": {"id": "cli", "version": "1.0.0", "platform": "linux", "deviceFamily": "Linux", "mode": "cli"},
        "role": "operator", "scopes": scopes, "auth": {"token": TOKEN},
    })
}

/// `connect` of a node host that declares these commands.
pub fn node(commands: &[&str]) -> Value {
    json!({
        "minProtocol": 4, "maxProtocol": 4,
        "client": {
            "id": "node-host", "displayName": "desk", "version": "1.0.0", "platform": "linux", "deviceFamily": "Linux",
            "mode": "node",
        },
        "role": "node", "scopes": [], "caps": [], "commands": commands, "auth": {"token": TOKEN},
    })
}

/// What comes from the gateway.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    Json(Value),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// A close frame: code (1005 when it has none) and reason.
    Close(u16, String),
    /// The end of the connection: orderly, or by a reset.
    End {
        reset: bool,
    },
}

/// One WebSocket.
pub struct Client {
    pub stream: TcpStream,
    decoder: Decoder,
    ready: VecDeque<Incoming>,
    /// Read while something else was waited for.
    skipped: VecDeque<Value>,
    nonce: Option<String>,
    requests: u64,
}

impl Client {
    /// Upgrades a connection to the gateway.
    pub fn open(port: u16) -> Self {
        Self::open_with(port, "").unwrap_or_else(|answer| panic!("the upgrade was refused: {answer:?}"))
    }

    /// The same with more header lines, each with its end.
    pub fn open_with(port: u16, headers: &str) -> Result<Self, HttpAnswer> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the gateway listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option of TCP");
        let request = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{UPGRADE}{headers}\r\n");
        stream.write_all(request.as_bytes()).expect("the gateway reads");
        Self::upgraded(stream)
    }

    /// Reads the answer to an upgrade that has been sent.
    pub fn upgraded(mut stream: TcpStream) -> Result<Self, HttpAnswer> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            let read = stream.read(&mut byte).expect("an answer to the upgrade");
            assert!(read > 0, "closed during the upgrade: {}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        if !text.starts_with("http/1.1 101 ") {
            let mut rest = HttpAnswer { status: 0, head: text.trim_end().to_owned(), body: String::new() };
            rest.status = rest.head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code");
            let _ = stream.read_to_string(&mut rest.body);
            return Err(rest);
        }
        assert!(text.contains("\r\nsec-websocket-accept: "), "{text}");
        assert!(text.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "the sample of RFC 6455: {text}");
        let limits = Limits { max_message_bytes: 64 << 20, max_fragments: 1 };
        Ok(Self {
            stream,
            decoder: Decoder::new(Role::Client, limits),
            ready: VecDeque::new(),
            skipped: VecDeque::new(),
            nonce: None,
            requests: 0,
        })
    }

    /// Sends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the gateway reads");
    }

    /// Sends bytes that the gateway need not take: it may have closed by then.
    pub fn try_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends a frame, masked as it must be.
    pub fn frame(&mut self, opcode: Opcode, payload: &[u8]) {
        self.bytes(&frame(opcode, payload));
    }

    /// Sends a text message.
    pub fn text(&mut self, text: &str) {
        self.frame(Opcode::Text, text.as_bytes());
    }

    /// Sends a request under a new id, which it returns.
    pub fn send(&mut self, method: &str, params: &Value) -> String {
        self.requests += 1;
        let id = format!("c{}", self.requests);
        self.text(&json!({"type": "req", "id": id, "method": method, "params": params}).to_string());
        id
    }

    /// Sends a request and waits for its answer: the payload, or the error.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, Value> {
        let id = self.send(method, params);
        self.answer(&id)
    }

    /// Waits for the answer to the request `id`.
    pub fn answer(&mut self, id: &str) -> Result<Value, Value> {
        let mut answer = self.find(|frame| frame["type"] == "res" && frame["id"] == id);
        if answer["ok"] == true { Ok(answer["payload"].take()) } else { Err(answer["error"].take()) }
    }

    /// Waits for an event, and gives its payload.
    pub fn event(&mut self, name: &str) -> Value {
        self.find(|frame| frame["type"] == "event" && frame["event"] == name)["payload"].take()
    }

    /// Waits for a frame; others are kept.
    pub fn find(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.skipped.iter().position(&is_wanted) {
            return self.skipped.remove(at).expect("it is there");
        }
        loop {
            match self.next() {
                Incoming::Json(frame) if is_wanted(&frame) => return frame,
                Incoming::Json(frame) => self.skipped.push_back(frame),
                Incoming::Ping(_) | Incoming::Pong(_) => {}
                other => panic!("{other:?} came instead; before it: {:?}", self.skipped),
            }
        }
    }

    /// The nonce of the challenge, which is the first frame.
    pub fn nonce(&mut self) -> String {
        if self.nonce.is_none() {
            let Incoming::Json(frame) = self.next() else { panic!("the first frame is not the challenge") };
            assert_eq!(frame["event"], "connect.challenge", "{frame}");
            self.nonce = Some(frame["payload"]["nonce"].as_str().expect("a nonce").to_owned());
        }
        self.nonce.clone().expect("it was just set")
    }

    /// Waits for the challenge, sends `connect`, and waits for the answer.
    pub fn connect(&mut self, params: &Value) -> Result<Value, Value> {
        self.nonce();
        self.call("connect", params)
    }

    /// The next thing that comes.
    pub fn next(&mut self) -> Incoming {
        self.next_within(PATIENCE).expect("nothing came")
    }

    /// The next thing that comes within `time`.
    pub fn next_within(&mut self, time: Duration) -> Option<Incoming> {
        let until = Instant::now() + time;
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(incoming) = self.ready.pop_front() {
                return Some(incoming);
            }
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            self.stream.set_read_timeout(Some(left)).expect("a timeout");
            match self.stream.read(&mut buffer) {
                Ok(0) => return Some(Incoming::End { reset: false }),
                Ok(read) => self.decode(&mut buffer[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                Err(_) => return Some(Incoming::End { reset: true }),
            }
        }
    }

    fn decode(&mut self, mut input: &mut [u8]) {
        while let Some(message) = self.decoder.next(&mut input).expect("the gateway keeps to RFC 6455") {
            self.ready.push_back(match message {
                Message::Text(text) => Incoming::Json(serde_json::from_str(&text).expect("the gateway sends JSON")),
                Message::Binary(bytes) => Incoming::Binary(bytes.to_vec()),
                Message::Ping(bytes) => Incoming::Ping(bytes.to_vec()),
                Message::Pong(bytes) => Incoming::Pong(bytes.to_vec()),
                Message::Close(None) => Incoming::Close(1005, String::new()),
                Message::Close(Some(close)) => Incoming::Close(close.code.get(), close.reason.to_owned()),
            });
        }
    }

    /// Waits for the close frame, passing over everything else, and for the orderly end behind it.
    pub fn closed(&mut self) -> (u16, String) {
        let close = loop {
            match self.next() {
                Incoming::Close(code, reason) => break (code, reason),
                Incoming::End { reset } => panic!("the end (reset: {reset}) came without a close frame"),
                _ => {}
            }
        };
        assert_eq!(self.next(), Incoming::End { reset: false }, "after {close:?}");
        // As every client does that has no more to say; the gateway may be gone by then.
        let _ = self.stream.shutdown(Shutdown::Both);
        close
    }
}

/// A frame of a client.
pub fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    codec::frame(opcode, payload, Some([0x12, 0x34, 0x56, 0x78]), &mut out);
    out
}

/// A frame of a client that is not the last of its message.
pub fn fragment(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = frame(opcode, payload);
    out[0] &= 0x7f;
    out
}
