//! Stand-ins for what the gateway reaches over HTTP: a Bot API, and models that speak either wire.
//!
//! Each is a small blocking server on loopback, a thread a connection. They do what the tests tell them: answer, refuse,
//! stall, be gone. Start at [`BotApi`] and [`Model`].
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// One request.
pub struct Request {
    pub path: String,
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The key of a model's API, on either wire.
    pub fn key(&self) -> String {
        let line = |name: &str| {
            self.head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().trim_start_matches("Bearer ").to_owned())
            })
        };
        line("authorization").or_else(|| line("x-api-key")).unwrap_or_default()
    }
}

/// Answers requests on a port of its own until the process ends. While `down` is set nobody listens there, and every
/// connection is cut.
fn serve(down: Arc<AtomicBool>, answer: impl Fn(Request, &mut TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        let mut listener = Some(listener);
        let mut open: Vec<TcpStream> = Vec::new();
        loop {
            if down.load(Ordering::SeqCst) {
                listener = None;
                for stream in open.drain(..) {
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                }
                thread::sleep(Duration::from_millis(2));
                continue;
            }
            if listener.is_none() {
                listener = TcpListener::bind(("127.0.0.1", port)).ok();
            }
            let Some(listening) = &listener else { continue };
            listening.set_nonblocking(true).expect("an option of sockets");
            let Ok((stream, _)) = listening.accept() else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            stream.set_nonblocking(false).expect("an option of sockets");
            open.extend(stream.try_clone());
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.set_nodelay(true);
                while let Some(request) = read(&stream) {
                    answer(request, &mut stream);
                }
            });
        }
    });
    port
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    Some(Request { path, head, body })
}

fn reply(stream: &mut TcpStream, status: u16, body: &Value) {
    let body = body.to_string();
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

/// A message that the gateway sent.
#[derive(Clone, Debug)]
pub struct SentMessage {
    pub chat: String,
    pub text: String,
    pub params: Value,
    pub at: Instant,
}

#[derive(Default)]
struct BotState {
    updates: Vec<Value>,
    next_id: i64,
    sent: Vec<SentMessage>,
    typed: usize,
    delivered_at: Option<Instant>,
    /// Calls of sendMessage that are still to be refused with 429.
    floods: usize,
    /// The highest offset the gateway has asked from: everything before it is acknowledged.
    offset: i64,
}

/// A Bot API for one bot.
#[derive(Clone)]
pub struct BotApi {
    state: Arc<(Mutex<BotState>, Condvar)>,
    outage: Arc<AtomicBool>,
    pub port: u16,
}

pub const BOT_TOKEN: &str = "99:stand-in";

impl BotApi {
    pub fn start() -> Self {
        let state: Arc<(Mutex<BotState>, Condvar)> = Arc::default();
        let outage = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&state);
        let port = serve(Arc::clone(&outage), move |request, stream| answer_bot(&shared, &request, stream));
        Self { state, outage, port }
    }

    pub fn root(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Is not there for a while: every connection is cut, and no new one is taken.
    pub fn set_outage(&self, down: bool) {
        self.outage.store(down, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(20));
    }

    /// Refuses the next `count` messages with 429.
    pub fn flood(&self, count: usize) {
        self.state.0.lock().unwrap().floods = count;
    }

    /// Somebody writes to the bot. Gives the number of the update.
    pub fn write(&self, from: i64, text: &str) -> i64 {
        let mut state = self.state.0.lock().unwrap();
        state.next_id += 1;
        let id = state.next_id;
        let user = json!({"id": from, "is_bot": false, "first_name": "Ann"});
        state.updates.push(json!({"update_id": id, "message": {"message_id": 1000 + id, "from": user,
            "chat": {"id": from, "type": "private"}, "date": 1, "text": text}}));
        self.state.1.notify_all();
        id
    }

    pub fn sent(&self) -> Vec<SentMessage> {
        self.state.0.lock().unwrap().sent.clone()
    }

    /// When the last batch of updates was handed out.
    pub fn delivered_at(&self) -> Option<Instant> {
        self.state.0.lock().unwrap().delivered_at
    }

    /// The first update that the gateway has not acknowledged.
    pub fn offset(&self) -> i64 {
        self.state.0.lock().unwrap().offset
    }

    pub fn typed(&self) -> usize {
        self.state.0.lock().unwrap().typed
    }

    /// Waits until so many messages were sent.
    #[track_caller]
    pub fn wait_for(&self, count: usize, within: Duration) -> Vec<SentMessage> {
        let (lock, changed) = &*self.state;
        let until = Instant::now() + within;
        let mut state = lock.lock().unwrap();
        while state.sent.len() < count {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "only {} of {count} messages were sent: {:?}", state.sent.len(), state.sent);
            state = changed.wait_timeout(state, left).unwrap().0;
        }
        state.sent.clone()
    }
}

fn answer_bot(shared: &(Mutex<BotState>, Condvar), request: &Request, stream: &mut TcpStream) {
    let (lock, changed) = shared;
    let Some(method) = request.path.strip_prefix(&format!("/bot{BOT_TOKEN}/")) else {
        return reply(stream, 401, &json!({"ok": false, "error_code": 401, "description": "Unauthorized"}));
    };
    let params = request.json();
    let ok = |result: Value| json!({"ok": true, "result": result});
    match method {
        "getMe" => reply(stream, 200, &ok(json!({"id": 99, "is_bot": true, "first_name": "b", "username": "HomeBot"}))),
        "getUpdates" => {
            let offset = params["offset"].as_i64().unwrap_or(0);
            let until = Instant::now() + Duration::from_secs(params["timeout"].as_u64().unwrap_or(0));
            let mut state = lock.lock().unwrap();
            state.offset = state.offset.max(offset);
            state.updates.retain(|update| update["update_id"].as_i64().unwrap_or(0) >= offset);
            while state.updates.is_empty() && Instant::now() < until {
                // A peer that has gone is noticed by the write; nobody waits for it longer than this.
                state = changed.wait_timeout(state, Duration::from_millis(500)).unwrap().0;
                state.updates.retain(|update| update["update_id"].as_i64().unwrap_or(0) >= offset);
            }
            let updates = state.updates.clone();
            if !updates.is_empty() {
                state.delivered_at = Some(Instant::now());
            }
            drop(state);
            reply(stream, 200, &ok(Value::Array(updates)));
        }
        "sendMessage" => {
            let at = Instant::now();
            let mut state = lock.lock().unwrap();
            if state.floods > 0 {
                state.floods -= 1;
                drop(state);
                let flood = json!({"ok": false, "error_code": 429, "description": "Too Many Requests: retry after 1",
                    "parameters": {"retry_after": 1}});
                return reply(stream, 429, &flood);
            }
            let text = |key: &str| params[key].as_str().map_or_else(|| params[key].to_string(), str::to_owned);
            let message = SentMessage { chat: text("chat_id"), text: text("text"), params: params.clone(), at };
            state.sent.push(message);
            let id = state.sent.len();
            changed.notify_all();
            drop(state);
            reply(stream, 200, &ok(json!({"message_id": id})));
        }
        "sendChatAction" => {
            lock.lock().unwrap().typed += 1;
            reply(stream, 200, &ok(json!(true)));
        }
        _ => reply(stream, 200, &ok(json!(true))),
    }
}

/// Which wire a model speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    OpenAi,
    Anthropic,
}

/// A model that, asked anything, asks a node where `uname` is, and then says so. A message that begins with `echo` it
/// echoes word by word, one that begins with `shout` as a whole and louder; one that begins with `run` it wants run as a command; one that begins with `slow` it never
/// finishes, and one that begins with `pause` after a second.
#[derive(Clone)]
pub struct Model {
    pub wire: Wire,
    pub port: u16,
    asked: Arc<AtomicUsize>,
    refusals: Arc<Mutex<Vec<u16>>>,
    bodies: Arc<Mutex<Vec<(String, Value)>>>,
    refused_keys: Arc<Mutex<Vec<(String, u16)>>>,
}

impl Model {
    pub fn start(wire: Wire) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let refusals: Arc<Mutex<Vec<u16>>> = Arc::default();
        let (count, refuse) = (Arc::clone(&asked), Arc::clone(&refusals));
        let bodies: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let refused_keys: Arc<Mutex<Vec<(String, u16)>>> = Arc::default();
        let (kept, refused) = (Arc::clone(&bodies), Arc::clone(&refused_keys));
        let port = serve(Arc::default(), move |request, stream| {
            count.fetch_add(1, Ordering::SeqCst);
            let key = request.key();
            kept.lock().unwrap().push((key.clone(), request.json()));
            if let Some((_, status)) = refused.lock().unwrap().iter().find(|(refused, _)| *refused == key) {
                return reply(stream, *status, &json!({"error": {"message": "this key is refused"}}));
            }
            if let Some(status) = refuse.lock().unwrap().pop() {
                return reply(stream, status, &json!({"error": {"message": "as planned"}}));
            }
            answer_model(wire, &request, stream);
        });
        Self { wire, port, asked, refusals, bodies, refused_keys }
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Refuses as often as there are codes, the last one first.
    pub fn refuse(&self, codes: &[u16]) {
        *self.refusals.lock().unwrap() = codes.to_vec();
    }

    /// What it was asked last.
    pub fn last(&self) -> Option<Value> {
        self.bodies.lock().unwrap().last().map(|(_, body)| body.clone())
    }

    /// The keys it was asked with, in order.
    pub fn keys(&self) -> Vec<String> {
        self.bodies.lock().unwrap().iter().map(|(key, _)| key.clone()).collect()
    }

    /// Refuses everybody who comes with one of these keys.
    pub fn refuse_keys(&self, keys: &[(&str, u16)]) {
        *self.refused_keys.lock().unwrap() = keys.iter().map(|(key, status)| ((*key).to_owned(), *status)).collect();
    }

    /// The configuration of a provider `id` with this model.
    pub fn provider(&self) -> Value {
        let (api, base) = match self.wire {
            Wire::OpenAi => ("openai-completions", "/v1"),
            Wire::Anthropic => ("anthropic-messages", ""),
        };
        json!({"baseUrl": format!("http://127.0.0.1:{}{base}", self.port), "apiKey": "model-key", "api": api,
            "models": [{"id": "stand-in", "name": "Stand-in", "contextWindow": 32000, "maxTokens": 1000}]})
    }
}

/// What the model decides to do.
enum Act {
    Call(&'static str, Value),
    Say(Vec<String>),
    Stall,
    Pause,
}

fn act(asked: &str, result: Option<&str>) -> Act {
    let words = |text: &str| text.split_inclusive(' ').map(str::to_owned).collect();
    if let Some(result) = result {
        let bins = serde_json::from_str::<Value>(result).ok();
        let path = bins.as_ref().and_then(|bins| bins["bins"]["uname"].as_str());
        return Act::Say(words(
            &path.map_or_else(|| format!("No: {result}"), |path| format!("uname is at {path} there.")),
        ));
    }
    match asked.split_once(' ').unwrap_or((asked, "")) {
        ("echo", rest) => Act::Say(words(rest)),
        ("slow", _) => Act::Stall,
        ("pause", _) => Act::Pause,
        ("shout", _) => Act::Say(words(&format!("{asked}!"))),
        ("run", rest) => Act::Call("exec", json!({"command": rest.split(' ').collect::<Vec<_>>()})),
        _ => Act::Call("system_which", json!({"bins": ["uname"]})),
    }
}

fn answer_model(wire: Wire, request: &Request, stream: &mut TcpStream) {
    let path = match wire {
        Wire::OpenAi => "/v1/chat/completions",
        Wire::Anthropic => "/v1/messages",
    };
    if request.path != path || !request.key().starts_with("model-key") {
        return reply(stream, 401, &json!({"error": {"message": "wrong path or key"}}));
    }
    let body = request.json();
    let last = body["messages"].as_array().and_then(|messages| messages.last()).cloned().unwrap_or_default();
    let parts = last["content"].as_array().cloned().unwrap_or_default();
    let text = last["content"]
        .as_str()
        .map(str::to_owned)
        .or_else(|| parts.iter().rev().find_map(|part| part["text"].as_str().map(str::to_owned)));
    let text = text.unwrap_or_default();
    let result = match wire {
        Wire::OpenAi => (last["role"] == "tool").then(|| text.clone()),
        Wire::Anthropic => parts
            .last()
            .filter(|part| part["type"] == "tool_result")
            .and_then(|part| part["content"][0]["text"].as_str().map(str::to_owned)),
    };
    let tools = body["tools"].to_string();
    let act = match act(&text, result.as_deref()) {
        Act::Call(name, _) if !tools.contains(name) => Act::Say(vec!["There is no node.".to_owned()]),
        act => act,
    };
    let _ =
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut event = |value: &str| {
        let data = format!("data: {value}\n\n");
        let _ = stream.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes());
    };
    match wire {
        Wire::OpenAi => stream_openai(&act, &mut event),
        Wire::Anthropic => stream_anthropic(&act, &mut event),
    }
    if matches!(act, Act::Stall) {
        thread::sleep(Duration::from_secs(60));
    }
    let _ = stream.write_all(b"0\r\n\r\n");
}

fn stream_openai(act: &Act, event: &mut dyn FnMut(&str)) {
    let mut delta = |delta: Value, finish: Value| {
        event(&json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).to_string());
    };
    match act {
        Act::Call(name, arguments) => {
            let arguments = arguments.to_string();
            let (first, second) = arguments.split_at(arguments.len() / 2);
            let call = |more: Value| json!({"tool_calls": [more]});
            delta(
                call(json!({"index": 0, "id": "call_1", "type": "function",
                "function": {"name": name, "arguments": ""}})),
                Value::Null,
            );
            delta(call(json!({"index": 0, "function": {"arguments": first}})), Value::Null);
            delta(call(json!({"index": 0, "function": {"arguments": second}})), Value::Null);
            delta(json!({}), json!("tool_calls"));
        }
        Act::Say(words) => {
            for word in words {
                delta(json!({"content": word}), Value::Null);
            }
            delta(json!({}), json!("stop"));
        }
        Act::Stall => return delta(json!({"content": "Well"}), Value::Null),
        Act::Pause => {
            delta(json!({"content": "Wait"}), Value::Null);
            thread::sleep(Duration::from_secs(1));
            delta(json!({}), json!("stop"));
        }
    }
    event(&json!({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}).to_string());
    event("[DONE]");
}

fn stream_anthropic(act: &Act, event: &mut dyn FnMut(&str)) {
    let mut send = |value: Value| event(&value.to_string());
    send(json!({"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [],
        "usage": {"input_tokens": 10, "output_tokens": 1}}}));
    let stop = match act {
        Act::Call(name, arguments) => {
            send(json!({"type": "content_block_start", "index": 0,
                "content_block": {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}}));
            send(json!({"type": "content_block_delta", "index": 0,
                "delta": {"type": "input_json_delta", "partial_json": arguments.to_string()}}));
            "tool_use"
        }
        Act::Say(words) => {
            send(json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}));
            for word in words {
                send(json!({"type": "content_block_delta", "index": 0,
                    "delta": {"type": "text_delta", "text": word}}));
            }
            "end_turn"
        }
        Act::Stall | Act::Pause => {
            return send(json!({"type": "content_block_delta", "index": 0,
                "delta": {"type": "text_delta", "text": "Well"}}));
        }
    };
    send(json!({"type": "content_block_stop", "index": 0}));
    send(json!({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 5}}));
    send(json!({"type": "message_stop"}));
}
