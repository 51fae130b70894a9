//! Stand-ins for what the gateway reaches over HTTP: a Bot API, and models that speak either wire.
//!
//! Each is a small blocking server on loopback, a thread a connection. They do what the tests tell them: answer, refuse,
//! stall, be gone. Start at [`BotApi`] and [`Model`].
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::collections::HashMap;
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
    /// As it reads now, after all edits.
    pub text: String,
    pub params: Value,
    pub at: Instant,
    /// The bytes, of a picture.
    pub photo: Option<Vec<u8>>,
}

/// Where the Bot API brings updates to.
#[derive(Clone, Debug)]
pub struct SetWebhook {
    pub url: String,
    pub secret: String,
    pub has_certificate: bool,
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
    /// Calls of editMessageText that are still to be refused with 429.
    edit_floods: usize,
    /// Every edit: of which message, its text, and when.
    edits: Vec<(usize, String, Instant)>,
    files: HashMap<String, Vec<u8>>,
    webhook: Option<SetWebhook>,
    /// The highest offset the gateway has asked from: everything before it is acknowledged.
    offset: i64,
}

/// A Bot API for one bot.
#[derive(Clone)]
pub struct BotApi {
    state: Arc<(Mutex<BotState>, Condvar)>,
    outage: Arc<AtomicBool>,
    pub port: u16,
    pub token: String,
}

pub const BOT_TOKEN: &str = "99:stand-in";

impl BotApi {
    pub fn start() -> Self {
        Self::start_as(BOT_TOKEN)
    }

    /// For the bot of another token, which begins with the bot's number.
    pub fn start_as(token: &str) -> Self {
        let state: Arc<(Mutex<BotState>, Condvar)> = Arc::default();
        let outage = Arc::new(AtomicBool::new(false));
        let (shared, own) = (Arc::clone(&state), token.to_owned());
        let port = serve(Arc::clone(&outage), move |request, stream| answer_bot(&shared, &own, &request, stream));
        Self { state, outage, port, token: token.to_owned() }
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

    /// Refuses the next `count` edits with 429.
    pub fn flood_edits(&self, count: usize) {
        self.state.0.lock().unwrap().edit_floods = count;
    }

    /// Somebody writes to the bot. Gives the number of the update.
    pub fn write(&self, from: i64, text: &str) -> i64 {
        let update = self.update(from, json!({"text": text}));
        let id = update["update_id"].as_i64().unwrap();
        self.state.0.lock().unwrap().updates.push(update);
        self.state.1.notify_all();
        id
    }

    /// Somebody sends a picture.
    pub fn send_photo(&self, from: i64, picture: &[u8], caption: &str) {
        let mut state = self.state.0.lock().unwrap();
        let id = format!("file{}", state.files.len());
        state.files.insert(id.clone(), picture.to_vec());
        drop(state);
        let sizes = json!([{"file_id": id, "width": 640, "height": 480, "file_size": picture.len()}]);
        let update = self.update(from, json!({"photo": sizes, "caption": caption}));
        self.state.0.lock().unwrap().updates.push(update);
        self.state.1.notify_all();
    }

    /// Somebody sends pictures at once: each is a message of its own.
    pub fn send_album(&self, from: i64, pictures: &[&[u8]], caption: &str) {
        for (n, update) in self.album(from, pictures, caption).into_iter().enumerate() {
            if n > 0 {
                thread::sleep(Duration::from_millis(100));
            }
            self.state.0.lock().unwrap().updates.push(update);
            self.state.1.notify_all();
        }
    }

    /// The updates of an album, which nobody has been told of yet.
    pub fn album(&self, from: i64, pictures: &[&[u8]], caption: &str) -> Vec<Value> {
        let mut updates = Vec::new();
        for (n, picture) in pictures.iter().enumerate() {
            let mut state = self.state.0.lock().unwrap();
            let id = format!("file{}", state.files.len());
            state.files.insert(id.clone(), picture.to_vec());
            drop(state);
            let sizes = json!([{"file_id": id, "width": 640, "height": 480, "file_size": picture.len()}]);
            let mut message = json!({"photo": sizes, "media_group_id": "album1"});
            if n == 0 {
                message["caption"] = json!(caption);
            }
            updates.push(self.update(from, message));
        }
        updates
    }

    /// Somebody sends something else.
    pub fn send(&self, from: i64, message: Value) {
        let update = self.update(from, message);
        self.state.0.lock().unwrap().updates.push(update);
        self.state.1.notify_all();
    }

    /// An update with a message of that, which nobody has been told of yet.
    pub fn update(&self, from: i64, message: Value) -> Value {
        let mut state = self.state.0.lock().unwrap();
        state.next_id += 1;
        let id = state.next_id;
        let user = json!({"id": from, "is_bot": false, "first_name": "Ann"});
        let mut whole =
            json!({"message_id": 1000 + id, "from": user, "chat": {"id": from, "type": "private"}, "date": 1});
        for (key, value) in message.as_object().unwrap() {
            whole[key.as_str()] = value.clone();
        }
        json!({"update_id": id, "message": whole})
    }

    /// Which webhook is set.
    pub fn webhook(&self) -> Option<SetWebhook> {
        self.state.0.lock().unwrap().webhook.clone()
    }

    /// Waits until a webhook is set.
    #[track_caller]
    pub fn wait_for_webhook(&self) -> SetWebhook {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(webhook) = self.webhook() {
                return webhook;
            }
            assert!(Instant::now() < until, "no webhook was set");
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn edits(&self) -> Vec<(usize, String, Instant)> {
        self.state.0.lock().unwrap().edits.clone()
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

/// A field of a form with files.
fn form_field(body: &[u8], name: &str) -> Option<Vec<u8>> {
    let find =
        |from: usize, what: &[u8]| body[from..].windows(what.len()).position(|at| at == what).map(|at| from + at);
    if !body.starts_with(b"--") {
        return None;
    }
    let boundary = [b"\r\n", &body[..find(0, b"\r\n")?]].concat();
    let head = find(0, format!("name=\"{name}\"").as_bytes())?;
    let start = find(head, b"\r\n\r\n")? + 4;
    Some(body[start..find(start, &boundary)?].to_vec())
}

fn answer_bot(shared: &(Mutex<BotState>, Condvar), token: &str, request: &Request, stream: &mut TcpStream) {
    let (lock, changed) = shared;
    if let Some(file) = request.path.strip_prefix(&format!("/file/bot{token}/photos/")) {
        let id = file.trim_end_matches(".jpg");
        let bytes = lock.lock().unwrap().files.get(id).cloned().unwrap_or_default();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len());
        let _ = stream.write_all(&[head.as_bytes(), &bytes].concat());
        return;
    }
    let flood = json!({"ok": false, "error_code": 429, "description": "Too Many Requests: retry after 1",
        "parameters": {"retry_after": 1}});
    let Some(method) = request.path.strip_prefix(&format!("/bot{token}/")) else {
        return reply(stream, 401, &json!({"ok": false, "error_code": 401, "description": "Unauthorized"}));
    };
    let params = request.json();
    let ok = |result: Value| json!({"ok": true, "result": result});
    match method {
        "getMe" => {
            let id: i64 = token.split(':').next().and_then(|id| id.parse().ok()).unwrap();
            reply(stream, 200, &ok(json!({"id": id, "is_bot": true, "first_name": "b", "username": "HomeBot"})));
        }
        "getUpdates" => {
            let offset = params["offset"].as_i64().unwrap_or(0);
            let until = Instant::now() + Duration::from_secs(params["timeout"].as_u64().unwrap_or(0));
            let mut state = lock.lock().unwrap();
            if state.webhook.is_some() {
                drop(state);
                let conflict = "Conflict: can't use getUpdates method while webhook is active";
                return reply(stream, 409, &json!({"ok": false, "error_code": 409, "description": conflict}));
            }
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
        "sendMessage" | "sendPhoto" => {
            let at = Instant::now();
            let mut state = lock.lock().unwrap();
            if state.floods > 0 {
                state.floods -= 1;
                drop(state);
                return reply(stream, 429, &flood);
            }
            let text = |key: &str| params[key].as_str().map_or_else(|| params[key].to_string(), str::to_owned);
            let message = if method == "sendPhoto" {
                let field = |name| form_field(&request.body, name).map(|value| String::from_utf8(value).unwrap());
                SentMessage {
                    chat: field("chat_id").unwrap(),
                    text: field("caption").unwrap_or_default(),
                    params: params.clone(),
                    at,
                    photo: form_field(&request.body, "photo"),
                }
            } else {
                SentMessage { chat: text("chat_id"), text: text("text"), params: params.clone(), at, photo: None }
            };
            state.sent.push(message);
            let id = state.sent.len();
            changed.notify_all();
            drop(state);
            reply(stream, 200, &ok(json!({"message_id": id})));
        }
        "editMessageText" => {
            let mut state = lock.lock().unwrap();
            if state.edit_floods > 0 {
                state.edit_floods -= 1;
                drop(state);
                return reply(stream, 429, &flood);
            }
            let id = usize::try_from(params["message_id"].as_u64().unwrap_or(0)).unwrap();
            let text = params["text"].as_str().unwrap_or_default().to_owned();
            let refused = |description: &str| json!({"ok": false, "error_code": 400, "description": description});
            let refusal = match state.sent.get_mut(id.wrapping_sub(1)) {
                None => Some("Bad Request: message to edit not found"),
                Some(message) if message.text == text => Some("Bad Request: message is not modified"),
                Some(message) => {
                    message.text.clone_from(&text);
                    None
                }
            };
            state.edits.push((id, text, Instant::now()));
            changed.notify_all();
            drop(state);
            match refusal {
                Some(refusal) => reply(stream, 400, &refused(refusal)),
                None => reply(stream, 200, &ok(json!({"message_id": id}))),
            }
        }
        "getFile" => {
            let state = lock.lock().unwrap();
            let id = params["file_id"].as_str().unwrap_or_default().to_owned();
            let size = state.files.get(&id).map(Vec::len);
            drop(state);
            match size {
                Some(size) => {
                    let file = json!({"file_id": id, "file_size": size, "file_path": format!("photos/{id}.jpg")});
                    reply(stream, 200, &ok(file));
                }
                None => reply(stream, 400, &json!({"ok": false, "error_code": 400, "description": "no such file"})),
            }
        }
        "setWebhook" => {
            let field = |name: &str| {
                let of_form = form_field(&request.body, name).map(|value| String::from_utf8(value).unwrap());
                of_form.or_else(|| params[name].as_str().map(str::to_owned)).unwrap_or_default()
            };
            let has_certificate = form_field(&request.body, "certificate").is_some();
            let webhook = SetWebhook { url: field("url"), secret: field("secret_token"), has_certificate };
            lock.lock().unwrap().webhook = Some(webhook);
            reply(stream, 200, &ok(json!(true)));
        }
        "deleteWebhook" => {
            lock.lock().unwrap().webhook = None;
            reply(stream, 200, &ok(json!(true)));
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

/// A model that, asked anything, asks a node where `uname` is, and then says so; a number at the end of the question
/// comes back in the call and in the answer. A message that begins with `echo` it echoes word by word, one with `drip`
/// slowly, one with `shout` as a whole and louder; one that begins with `run` it wants run as a command; one that begins
/// with `slow` it never finishes, and one with `pause` after a second; `snap` takes a picture with a node and shows it;
/// `look` says how many pictures it has seen; `loop` calls a tool for ever.
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
    /// The same, with a pause before each word.
    Drip(Vec<String>),
    Stall,
    Pause,
}

/// Between two words of a slow answer.
const DRIP: Duration = Duration::from_millis(150);

/// The number that a question ends with: what tells it from others.
fn number(asked: &str) -> Option<&str> {
    asked.rsplit(' ').next().filter(|word| word.parse::<u32>().is_ok())
}

fn act(asked: &str, result: Option<&str>, pictures: usize) -> Act {
    let words = |text: &str| text.split_inclusive(' ').map(str::to_owned).collect();
    let number = number(asked);
    let mark = number.map(|number| format!(" (question {number})")).unwrap_or_default();
    if asked == "loop" {
        return Act::Call("nodes", json!({"action": "list"}));
    }
    if let Some(result) = result {
        let result_json = serde_json::from_str::<Value>(result).unwrap_or_default();
        if let Some(reference) = result_json["attach"].as_str() {
            return Act::Say(vec![format!("Here it is ({pictures} seen).\n{reference}")]);
        }
        let bins = serde_json::from_str::<Value>(result).ok();
        let path = bins.as_ref().and_then(|bins| bins["bins"]["uname"].as_str());
        return Act::Say(words(
            &path.map_or_else(|| format!("No: {result}{mark}"), |path| format!("uname is at {path} there.{mark}")),
        ));
    }
    match asked.split_once(' ').unwrap_or((asked, "")) {
        ("echo", rest) => Act::Say(words(rest)),
        ("drip", rest) => Act::Drip(words(rest)),
        ("slow", _) => Act::Stall,
        ("pause", _) => Act::Pause,
        ("shout", _) => Act::Say(words(&format!("{asked}!"))),
        ("sneak", rest) => Act::Call(
            "nodes",
            json!({"action": "invoke", "node": "desk", "command": rest, "params": {"command": ["rm", "-rf", "/"]}}),
        ),
        ("snap", _) => Act::Call("camera_snap", json!({})),
        ("look", rest) => Act::Say(vec![format!("I see {pictures} and read {rest:?}.")]),
        ("run", rest) => Act::Call("exec", json!({"command": rest.split(' ').collect::<Vec<_>>()})),
        _ => Act::Call(
            "system_which",
            match number {
                Some(number) => json!({"bins": ["uname"], "question": number}),
                None => json!({"bins": ["uname"]}),
            },
        ),
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
    let messages = body["messages"].as_array().cloned().unwrap_or_default();
    let text_of = |message: &Value| {
        let parts = message["content"].as_array().cloned().unwrap_or_default();
        let text = message["content"].as_str().map(str::to_owned);
        text.or_else(|| parts.iter().rev().find_map(|part| part["text"].as_str().map(str::to_owned)))
            .unwrap_or_default()
    };
    let returned =
        |message: &&Value| message["content"][0]["text"].as_str().is_some_and(|text| text.starts_with("[what"));
    // What the user said last, and the result that has come since.
    let is_result = |message: &Value| {
        message["role"] == "tool"
            || message["content"].as_array().is_some_and(|parts| parts.iter().any(|part| part["type"] == "tool_result"))
    };
    let asked_at =
        messages.iter().rposition(|message| message["role"] == "user" && !returned(&message) && !is_result(message));
    let text = asked_at.map(|at| text_of(&messages[at])).unwrap_or_default();
    let result = messages.iter().skip(asked_at.map_or(0, |at| at + 1)).rfind(|message| is_result(message));
    let result = result.map(|message| match wire {
        Wire::OpenAi => text_of(message),
        Wire::Anthropic => {
            let parts = message["content"].as_array().unwrap();
            let part = parts.iter().rfind(|part| part["type"] == "tool_result").unwrap();
            part["content"][0]["text"].as_str().unwrap_or_default().to_owned()
        }
    });
    let pictures = body["messages"].to_string();
    let pictures = pictures.matches("\"type\":\"image_url\"").count() + pictures.matches("\"type\":\"image\"").count();
    let tools = body["tools"].to_string();
    let act = match act(&text, result.as_deref(), pictures) {
        Act::Call(name, _) if !tools.contains(name) => {
            Act::Say(vec![format!("There is no node. {}", number(&text).unwrap_or_default())])
        }
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
        Act::Drip(words) => {
            for word in words {
                thread::sleep(DRIP);
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
        Act::Say(words) | Act::Drip(words) => {
            send(json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}));
            for word in words {
                if matches!(act, Act::Drip(_)) {
                    thread::sleep(DRIP);
                }
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
