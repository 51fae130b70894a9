//! The main road: an operator's call, to the node, and the node's answer back.
//!
//! ```text
//! node.invoke {nodeId, command, params, timeoutMs, idempotencyKey}      operator -> gateway
//! node.invoke.request {id, nodeId, command, paramsJSON, timeoutMs, ..}  gateway -> node
//! node.invoke.progress {invokeId, nodeId, seq, chunk}                   node -> gateway, any number of times
//! node.invoke.result {id, nodeId, ok, payloadJSON | error}              node -> gateway, once
//! {ok, nodeId, command, payload, payloadJSON}                           gateway -> operator
//! ```
//!
//! Parameters and results stay raw: `params` is escaped once into `paramsJSON`, `payloadJSON` is unescaped and
//! checked once into `payload`. Nothing on the way builds a tree, waits for a lock that a slow peer could hold,
//! or sets a timer.
//!
//! A caller that says `progress: true` hears of the node's progress as it comes, in `node.invoke.progress` events under
//! its own `idempotencyKey`; the node is told when such a caller goes, or its time is up.
//!
//! Every failure says in `details.dispatch` how far the call came: `not_sent` (asking again is safe), `sent_unacked`
//! (the node may have begun), `acked` (it has). Start at [`invoke`].

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::deadline::{self, Tick};
use super::guard::{self, Guard};
use super::live::{CALL_ID_BYTES, Command, NotTaken, Session};
use super::pending::Token;
use super::queue::Action;
use super::repeats::{Answered, Begun, RepeatKey};
use super::{Inner, Nodes};
use crate::auth::DeviceId;
use crate::clock::UnixMs;
use crate::hub::Connection;
use crate::hub::outbox::{Pushed, spare};
use crate::id::ConnId;
use crate::limits::INVOKE_TIMEOUT_MS;
use crate::rpc::catalog::Event;
use crate::rpc::dispatch::{Call, Outcome, Params, Responder};
use crate::rpc::error::RpcError;
use crate::rpc::json::{self, Raw, RawString};
use crate::rpc::scope::Scope;

/// The longest deadline, in milliseconds: what a JavaScript timer can wait. Longer ones are cut to it.
pub(super) const MAX_TIMEOUT_MS: u64 = (1 << 31) - 1;
/// Calls that may wait for all nodes together.
pub(super) const MAX_CALLS: usize = 64 * 1024;
/// Repeats that may wait for the answer of one call, itself apart.
const MAX_JOINED: usize = 8;
/// Bytes of an idempotency key, as it is written.
const MAX_KEY_BYTES: usize = 512;
/// Bytes of a piece of progress.
const MAX_CHUNK_BYTES: usize = 16 * 1024;

/// How far a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dispatch {
    /// Nothing was sent to the node.
    NotSent,
    /// It was sent, and the node has not been heard of since.
    SentUnacked,
    /// The node has answered, or told of progress.
    Acked,
}

impl Dispatch {
    const fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::SentUnacked => "sent_unacked",
            Self::Acked => "acked",
        }
    }
}

/// A failure of a call in the incumbent's shape, with how far the call came. Only what was not sent is safe to try
/// again.
fn failure(code: &str, message: &str, dispatch: Dispatch) -> RpcError {
    let said = format!("{code}: {message}");
    RpcError::unavailable(said).retryable(dispatch == Dispatch::NotSent).with_details(json!({
        "code": code,
        "nodeError": {"code": code, "message": message},
        "nodeCommandDispatched": dispatch != Dispatch::NotSent,
        "dispatch": dispatch.as_str(),
    }))
}

/// What a caller asks for.
struct Asked<'a> {
    node_id: Cow<'a, str>,
    command: Cow<'a, str>,
    params: Option<Raw<'a>>,
    key: RawString<'a>,
    timeout_ms: u32,
    progress: bool,
}

impl<'a> Asked<'a> {
    fn parse(params: Params<'a>) -> Result<Self, RpcError> {
        // In the order in which clients write them. The last six are for the gateway's own bookkeeping of sessions.
        const KEYS: [&str; 11] = [
            "nodeId",
            "command",
            "params",
            "idempotencyKey",
            "timeoutMs",
            "progress",
            "sessionKey",
            "turnSourceChannel",
            "turnSourceTo",
            "turnSourceAccountId",
            "turnSourceThreadId",
        ];
        let refuse = |what: String| RpcError::invalid(format!("invalid node.invoke params: {what}"));
        let fields = params.fields(&KEYS).map_err(|error| refuse(error.to_string()))?;
        if let Some(key) = fields.duplicate {
            return Err(refuse(format!("at {key}: must not come twice")));
        }
        if let Some(key) = fields.unknown {
            return Err(refuse(format!("unknown field `{key}`")));
        }
        let [node_id, command, params, key, timeout_ms, progress, session_key, channel, to, account, thread] =
            fields.values;
        let text = |name: &str, value: Option<Raw<'a>>| {
            let value = value.ok_or_else(|| refuse(format!("missing field `{name}`")))?;
            let text = value.as_string().ok_or_else(|| refuse(format!("at {name}: must be a string")))?;
            if text.inner().is_empty() { Err(refuse(format!("at {name}: must not be empty"))) } else { Ok(text) }
        };
        for (name, value) in [
            ("sessionKey", session_key),
            ("turnSourceChannel", channel),
            ("turnSourceTo", to),
            ("turnSourceAccountId", account),
        ] {
            if value.is_some_and(|value| value.as_string().is_none()) {
                return Err(refuse(format!("at {name}: must be a string")));
            }
        }
        if thread.is_some_and(|thread| thread.as_string().is_none() && thread.as_str().parse::<f64>().is_err()) {
            return Err(refuse("at turnSourceThreadId: must be a string or a number".to_owned()));
        }
        let key = text("idempotencyKey", key)?;
        if key.inner().len() > MAX_KEY_BYTES {
            return Err(refuse(format!("at idempotencyKey: must not have more than {MAX_KEY_BYTES} bytes")));
        }
        Ok(Self {
            node_id: trimmed(text("nodeId", node_id)?),
            command: trimmed(text("command", command)?),
            params,
            key,
            timeout_ms: timeout_ms
                .map_or(Ok(INVOKE_TIMEOUT_MS), timeout)
                .map_err(|()| refuse("at timeoutMs: must be a whole number of milliseconds, 0 or more".to_owned()))?,
            progress: progress
                .map_or(Some(false), Raw::as_bool)
                .ok_or_else(|| refuse("at progress: must be a boolean".to_owned()))?,
        })
    }
}

fn trimmed(text: RawString<'_>) -> Cow<'_, str> {
    let inner = text.inner().as_bytes();
    let is_plain = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_graphic);
    match text.decode() {
        // As nearly all are.
        Cow::Borrowed(text) if is_plain(inner.first()) && is_plain(inner.last()) => Cow::Borrowed(text),
        Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
        Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
    }
}

/// Reads `timeoutMs`: a whole number, however it is written; 0 means no deadline; above [`MAX_TIMEOUT_MS`] it is cut.
fn timeout(value: Raw<'_>) -> Result<u32, ()> {
    if let Some(ms) = value.as_u64() {
        return Ok(ms.min(MAX_TIMEOUT_MS) as u32);
    }
    // `1e3`, `1.0`, more digits than 64 bits hold.
    let ms: f64 = value.as_str().parse().map_err(|_| ())?;
    let is_number = value.as_str().starts_with(|c: char| c == '-' || c.is_ascii_digit());
    if !is_number || ms < 0.0 || (ms.is_finite() && ms.fract() != 0.0) {
        return Err(());
    }
    Ok(ms.min(MAX_TIMEOUT_MS as f64) as u32)
}

/// A call that waits for its node.
#[derive(Debug)]
pub(super) struct Waiting {
    responder: Responder,
    command: Arc<str>,
    key: RepeatKey,
    timeout_ms: u32,
    /// Whether the node has told of progress.
    heard: bool,
    /// What few calls need.
    extra: Option<Box<Extra>>,
}

/// What few calls need.
#[derive(Debug, Default)]
struct Extra {
    /// Repeats of the call.
    joined: Vec<Responder>,
    /// Where progress goes.
    stream: Option<Stream>,
    /// The run that the node may tell of, unless it has refused it.
    run_id: Option<Box<str>>,
    /// What to put away for when the app is opened, should the node want that.
    action: Option<Action>,
}

/// Where progress goes: to the caller, under its own key for the call.
#[derive(Debug)]
struct Stream {
    key_json: Box<str>,
    next_seq: u64,
}

/// How a repeat finds the call that runs: which connection of the node it went to, and where it stands among the calls
/// of that. A session is not held for it: all calls of a node, on every worker, would count it up and down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    connection: ConnId,
    token: Token,
}

/// A call whose progress somebody follows.
#[derive(Clone, Debug)]
pub(super) struct Running {
    session: Arc<Session>,
    token: Token,
}

impl Waiting {
    /// Lets a repeat wait along.
    pub(super) fn join(&mut self, responder: Responder) -> Result<(), Responder> {
        let joined = &mut self.extra.get_or_insert_default().joined;
        if joined.len() == MAX_JOINED {
            return Err(responder);
        }
        joined.push(responder);
        Ok(())
    }

    fn dispatch(&self) -> Dispatch {
        if self.heard { Dispatch::Acked } else { Dispatch::SentUnacked }
    }

    fn joined(&mut self) -> Vec<Responder> {
        self.extra.as_mut().map_or_else(Vec::new, |extra| std::mem::take(&mut extra.joined))
    }

    fn fail(mut self, error: &RpcError) {
        let joined = self.joined();
        self.responder.fail(error);
        for responder in joined {
            responder.fail(error);
        }
    }
}

/// The frame that asks the node. Built before the call has a token; the id is filled in then.
struct Request {
    text: Vec<u8>,
    id_at: usize,
}

impl Request {
    fn new(session: &Session, command: &str, params: Option<&str>, asked: &Asked<'_>) -> Self {
        const HEAD: &[u8] = br#"{"type":"event","event":"node.invoke.request","payload":{"id":""#;
        let params_bytes = params.map_or(0, |params| params.len() + params.len() / 4);
        let mut text = spare::take(280 + command.len() + params_bytes + asked.key.as_str().len());
        text.extend_from_slice(HEAD);
        let id_at = text.len();
        text.extend_from_slice(&[b'0'; CALL_ID_BYTES]);
        text.extend_from_slice(br#"","nodeId":"#);
        text.extend_from_slice(session.node_id_json.as_bytes());
        text.extend_from_slice(br#","command":""#);
        text.extend_from_slice(command.as_bytes());
        text.push(b'"');
        if let Some(params) = params {
            text.extend_from_slice(br#","paramsJSON":"#);
            json::push_string(params, &mut text);
        }
        text.extend_from_slice(br#","timeoutMs":"#);
        push_number(asked.timeout_ms.into(), &mut text);
        text.extend_from_slice(br#","idempotencyKey":"#);
        text.extend_from_slice(asked.key.as_str().as_bytes());
        text.extend_from_slice(b"}}");
        Self { text, id_at }
    }

    fn with_id(mut self, session: &Session, token: Token) -> Vec<u8> {
        session.write_call_id(token, &mut self.text[self.id_at..self.id_at + CALL_ID_BYTES]);
        self.text
    }
}

fn push_number(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// `node.invoke`.
pub(super) fn invoke(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    begin(nodes, call, guard::system_run)
}

/// The same for a `system.run` that a person has approved.
pub(super) fn invoke_approved(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    begin(nodes, call, guard::approved_run)
}

fn begin(
    nodes: &Nodes,
    call: Call<'_>,
    system_run: fn(Option<Raw<'_>>) -> Result<guard::SystemRun, RpcError>,
) -> Result<Outcome, RpcError> {
    let inner = &*nodes.0;
    let asked = Asked::parse(call.unread_params())?;
    let session = inner.live.find(asked.node_id.as_bytes());
    let session = session.ok_or_else(|| inner.not_connected(DeviceId::parse(&asked.node_id)))?;
    let command = session.effective.load().command(&asked.command);
    let command = command.ok_or_else(|| inner.refusal(&session, &asked.command))?;
    let Command { name, guard } = command;
    guard.check_reachable(&name)?;
    let caller = call.caller();
    if guard.needs_admin() && !caller.grant.scopes().covers(Scope::Admin) {
        return Err(RpcError::missing_scope(Scope::Admin.as_str(), &[Scope::Admin.as_str()]));
    }
    let run = match guard {
        Guard::SystemRun => Some(system_run(asked.params)?),
        Guard::BrowserProxy => {
            guard::check_browser_proxy(&name, asked.params)?;
            None
        }
        _ => None,
    };
    let params = run.as_ref().map(|run| run.params.as_str()).or(asked.params.map(Raw::as_str));
    let request = Request::new(&session, &name, params, &asked);
    let wants_open = session.sleeps && needs_open_app(&name);
    let extra = (asked.progress || run.is_some() || wants_open).then(|| {
        let key = asked.key.decode();
        Box::new(Extra {
            joined: Vec::new(),
            stream: asked.progress.then(|| Stream { key_json: asked.key.as_str().into(), next_seq: 0 }),
            run_id: run.as_ref().map(|run| run.run_id.as_str().into()),
            action: wants_open.then(|| Action::new(&name, params, &key)),
        })
    });
    let key = inner.repeats.key(caller, session.node_id, &name, asked.key.inner());
    let now = deadline::now();
    let deadline = (asked.timeout_ms > 0).then(|| {
        let at = now + Duration::from_millis(asked.timeout_ms.into());
        (at, inner.deadlines.tick_after(at))
    });
    let received = call.now();
    let waiting =
        Waiting { responder: call.later(), command: name, key, timeout_ms: asked.timeout_ms, heard: false, extra };
    let begun = inner.repeats.begin(key, received, waiting, |waiting| {
        let token = inner.take_in(&session, deadline, waiting)?;
        Ok((Place { connection: session.connection.id, token }, token))
    });
    match begun {
        Begun::Started(token) => {
            if let Some((_, tick)) = deadline {
                inner.deadlines.note(tick);
            }
            // What a run of the agent has begun ends with it, as what somebody follows ends with them.
            if asked.progress || &*caller.client.id == super::call::AGENT {
                inner.note_stream(caller, &session, token);
            }
            if let Some(run) = &run {
                session.publications().runs.begin(&run.run_id);
            }
            if session.connection.outbox.push_text(request.with_id(&session, token)) == Pushed::Refused {
                inner.fail(
                    &session,
                    token,
                    &failure("UNAVAILABLE", "failed to send invoke to node", Dispatch::NotSent),
                );
            }
        }
        Begun::Refused(NotTaken::Full, waiting) => {
            inner.counters.busy.fetch_add(1, Ordering::Relaxed);
            waiting.fail(&failure(
                "NODE_BUSY",
                "too many calls wait for this node already; try again when some are answered",
                Dispatch::NotSent,
            ));
        }
        Begun::Refused(NotTaken::Ended, waiting) => waiting.fail(&inner.not_connected(Some(session.node_id))),
        Begun::Running(place, waiting) => join(&session, place, waiting.responder),
        Begun::Done(answered, waiting) => again(&answered, waiting.responder),
    }
    Ok(Outcome::Later)
}

/// Lets a repeat wait for the call that runs.
fn join(session: &Session, place: Place, responder: Responder) {
    let joined = match place.connection == session.connection.id {
        true => session.join(place.token, responder),
        false => Err(responder),
    };
    match joined {
        Ok(()) => {}
        Err(responder) => {
            let message = "a call with this idempotencyKey is just ending, or has too many repeats; ask again";
            responder.fail(&failure("REPEATED", message, Dispatch::NotSent));
        }
    }
}

/// Answers a repeat as the call was answered.
fn again(answered: &Answered, responder: Responder) {
    match answered {
        Answered::With(payload) => responder.answer_with(payload.len(), |out| out.extend_from_slice(payload)),
        Answered::TooLarge => responder.fail(&failure(
            "ALREADY_ANSWERED",
            "the node has carried this call out, and its answer was too large to be kept for a repeat",
            Dispatch::Acked,
        )),
    };
}

/// What a node answers.
struct Answer<'a> {
    call_id: Cow<'a, str>,
    node_id: RawString<'a>,
    result: Result<Payload<'a>, NodeError>,
}

/// The payload of a result, in one form or the other.
#[derive(Clone, Copy)]
struct Payload<'a> {
    payload: Option<Raw<'a>>,
    payload_json: Option<RawString<'a>>,
}

/// The error that a node gave.
struct NodeError {
    code: Option<String>,
    message: Option<String>,
}

/// Characters of a node's error that go on to the caller.
const MAX_ERROR_CHARS: usize = 4096;

impl NodeError {
    fn parse(error: Option<Raw<'_>>) -> Self {
        let text = |value: Option<Raw<'_>>| {
            let text = value?.as_string()?.decode();
            let text: String = text.trim().chars().take(MAX_ERROR_CHARS).collect();
            (!text.is_empty()).then_some(text)
        };
        let fields = error.and_then(|error| json::fields(error.as_str(), &["code", "message"]).ok());
        let [code, message] = fields.map_or([None, None], |fields| fields.values);
        Self { code: text(code), message: text(message) }
    }

    /// The incumbent's shape: `CODE: message`, and the error itself in the details.
    fn to_rpc(&self) -> RpcError {
        let message = self.message.as_deref().unwrap_or("node invoke failed");
        let said = match &self.code {
            Some(code) => format!("{code}: {message}"),
            None => message.to_owned(),
        };
        let mut details = json!({
            "nodeError": {"code": self.code, "message": self.message},
            "nodeCommandDispatched": true,
            "dispatch": Dispatch::Acked.as_str(),
        });
        let error = RpcError::unavailable(said);
        // The node has said that it did not begin.
        if self.code.as_deref() == Some("NODE_NOT_READY") {
            details["code"] = Value::from("NODE_NOT_READY");
            return error.with_details(details).retryable(true);
        }
        error.with_details(details)
    }

    fn wants_foreground(&self) -> bool {
        let says = |text: &Option<String>| {
            text.as_ref().is_some_and(|text| text.to_ascii_uppercase().contains("BACKGROUND_UNAVAILABLE"))
        };
        says(&self.code) || says(&self.message)
    }
}

impl<'a> Answer<'a> {
    fn parse(params: Params<'a>) -> Result<Self, RpcError> {
        let refuse = |what: String| RpcError::invalid(format!("invalid node.invoke.result params: {what}"));
        let fields = params
            .fields(&["id", "nodeId", "ok", "payloadJSON", "payload", "error"])
            .map_err(|error| refuse(error.to_string()))?;
        if let Some(key) = fields.duplicate {
            return Err(refuse(format!("at {key}: must not come twice")));
        }
        if let Some(key) = fields.unknown {
            return Err(refuse(format!("unknown field `{key}`")));
        }
        let [id, node_id, ok, payload_json, payload, error] = fields.values;
        let text = |name: &str, value: Option<Raw<'a>>| {
            let value = value.ok_or_else(|| refuse(format!("missing field `{name}`")))?;
            value.as_string().ok_or_else(|| refuse(format!("at {name}: must be a string")))
        };
        let call_id = text("id", id)?.decode();
        let node_id = text("nodeId", node_id)?;
        let ok = ok.and_then(Raw::as_bool).ok_or_else(|| refuse("at ok: must be a boolean".to_owned()))?;
        // Some nodes put the value itself where its text should be.
        let payload_json = payload_json.filter(|value| !value.is_null());
        let payload = payload.or(payload_json.filter(|value| value.as_string().is_none()));
        let payload_json = payload_json.and_then(Raw::as_string);
        let result = if ok { Ok(Payload { payload, payload_json }) } else { Err(NodeError::parse(error)) };
        Ok(Self { call_id, node_id, result })
    }
}

/// `node.invoke.result`.
pub(super) fn result(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    let inner = &*nodes.0;
    let Answer { call_id, node_id, result } = Answer::parse(call.unread_params())?;
    let session = inner.session_of(call.caller(), node_id)?;
    let waiting = session.as_ref().and_then(|session| inner.take_out(session, session.token(&call_id)?));
    let (Some(session), Some(waiting)) = (session, waiting) else {
        tracing::debug!(node = %node_id.inner(), invoke = %call_id, "a result came too late, or twice");
        inner.counters.late.fetch_add(1, Ordering::Relaxed);
        return call.answer_json(br#"{"ok":true,"ignored":true}"#);
    };
    match result {
        Ok(payload) => inner.answer(&session, waiting, payload, call.now()),
        Err(error) => nodes.answer_error(&session, waiting, &error, call.now()),
    }
    call.answer_json(br#"{"ok":true}"#)
}

/// `node.invoke.progress`.
pub(super) fn progress(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    let refuse = |what: String| RpcError::invalid(format!("invalid node.invoke.progress params: {what}"));
    let fields = call
        .unread_params()
        .fields(&["invokeId", "nodeId", "seq", "chunk"])
        .map_err(|error| refuse(error.to_string()))?;
    if let Some(key) = fields.duplicate.or(fields.unknown) {
        return Err(refuse(format!("at {key}: unknown, or twice")));
    }
    let [invoke_id, node_id, seq, chunk] = fields.values;
    let strings = [invoke_id, node_id, chunk].map(|value| value.and_then(Raw::as_string));
    let [Some(invoke_id), Some(node_id), Some(chunk)] = strings else {
        return Err(refuse("invokeId, nodeId and chunk must be strings".to_owned()));
    };
    let seq =
        seq.and_then(Raw::as_u64).ok_or_else(|| refuse("at seq: must be a whole number, 0 or more".to_owned()))?;
    if chunk.inner().len() > MAX_CHUNK_BYTES && chunk.decode().len() > MAX_CHUNK_BYTES {
        return Err(RpcError::invalid("progress chunk too large"));
    }
    let forwarded = nodes.0.session_of(call.caller(), node_id)?.is_some_and(|session| {
        let token = session.token(invoke_id.inner());
        token.and_then(|token| session.with(token, |waiting| waiting.progress(invoke_id, node_id, seq, chunk)))
            == Some(true)
    });
    call.answer(&json!({"ok": true, "ignored": !forwarded}))
}

impl Waiting {
    /// Passes a piece of progress on, if the caller wants it and has not had it.
    fn progress(&mut self, invoke_id: RawString<'_>, node_id: RawString<'_>, seq: u64, chunk: RawString<'_>) -> bool {
        self.heard = true;
        let Some(stream) = self.extra.as_mut().and_then(|extra| extra.stream.as_mut()) else { return false };
        if seq < stream.next_seq {
            return false;
        }
        stream.next_seq = seq + 1;
        let key = &stream.key_json;
        let [invoke_id, node_id, chunk] = [invoke_id, node_id, chunk].map(RawString::as_str);
        let payload = format!(
            r#"{{"idempotencyKey":{key},"invokeId":{invoke_id},"nodeId":{node_id},"seq":{seq},"chunk":{chunk}}}"#
        );
        self.responder.caller().send_event_json(Event::NODE_INVOKE_PROGRESS, payload.as_bytes()) == Pushed::Queued
    }
}

/// Whether an app that sleeps may have to be opened for the command: then the node may want it put away until it is.
fn needs_open_app(command: &str) -> bool {
    ["camera.", "screen.", "talk.", "canvas."].iter().any(|prefix| command.starts_with(prefix))
}

impl Nodes {
    /// Passes a node's error on; puts the call away instead where the node wants it so.
    fn answer_error(&self, session: &Session, mut waiting: Waiting, error: &NodeError, now: UnixMs) {
        self.0.repeats.forget(waiting.key);
        if let Some(extra) = waiting.extra.as_mut() {
            if let Some(run_id) = extra.run_id.take() {
                session.publications().runs.end(&run_id);
            }
            if error.wants_foreground()
                && let Some(action) = extra.action.take()
            {
                return self.put_away(session.node_id, action, waiting, error, now);
            }
        }
        waiting.fail(&error.to_rpc());
    }

    fn put_away(&self, node_id: DeviceId, action: Action, waiting: Waiting, error: &NodeError, now: UnixMs) {
        let nodes = self.clone();
        let node_error = json!({"code": error.code, "message": error.message});
        crate::task::spawn("node.invoke", async move {
            let command = Arc::clone(&waiting.command);
            let answer = match nodes.put_action(node_id, action, now).await {
                Ok(put) => RpcError::unavailable("node command queued until iOS returns to foreground")
                    .retryable(true)
                    .with_details(json!({
                        "code": "QUEUED_UNTIL_FOREGROUND",
                        "queuedActionId": put.id,
                        "droppedActionIds": put.dropped,
                        "nodeId": node_id.to_string(),
                        "command": &*command,
                        "wake": {"available": false, "throttled": false, "path": "unsupported"},
                        "nodeError": node_error,
                        "dispatch": Dispatch::Acked.as_str(),
                    })),
                Err(error) => error,
            };
            waiting.fail(&answer);
        });
    }
}

impl Inner {
    /// The session that a node speaks for; none when a newer connection is its node's.
    fn session_of(&self, node: &Connection, node_id: RawString<'_>) -> Result<Option<Arc<Session>>, RpcError> {
        let said = node_id.decode();
        let session = self.live.find(said.as_bytes()).filter(|session| session.is_of(node));
        if session.is_none() && node.grant.device() != DeviceId::parse(&said) {
            return Err(RpcError::invalid("nodeId mismatch"));
        }
        Ok(session)
    }

    /// Answers a call with what its node gave.
    fn answer(&self, session: &Session, mut waiting: Waiting, payload: Payload<'_>, now: UnixMs) {
        let joined = waiting.joined();
        let Waiting { responder, command, key, timeout_ms, .. } = waiting;
        let bytes = payload.payload_json.map_or(0, |text| 2 * text.inner().len())
            + payload.payload.map_or(0, |payload| payload.as_str().len());
        let mut copy = None;
        responder.answer_with(bytes + command.len() + 200, |out| {
            let start = out.len();
            write_answer(session, &command, payload, timeout_ms.into(), out);
            let answer = &out[start..];
            self.repeats.end(key, answer, now);
            copy = (!joined.is_empty()).then(|| Answered::With(answer.to_vec()));
        });
        for (responder, copy) in joined.into_iter().zip(copy.iter().cycle()) {
            again(copy, responder);
        }
    }

    /// Takes a call in, within the bounds.
    fn take_in(
        &self,
        session: &Session,
        deadline: Option<(Instant, Tick)>,
        waiting: Waiting,
    ) -> Result<Token, (NotTaken, Waiting)> {
        if !self.counters.begin() {
            return Err((NotTaken::Full, waiting));
        }
        session.call(deadline, waiting).inspect_err(|_| self.counters.take_back())
    }

    /// Takes a call out, if it still waits.
    fn take_out(&self, session: &Session, token: Token) -> Option<Waiting> {
        let waiting = session.take(token)?;
        self.counters.end();
        Some(waiting)
    }

    /// Ends a call that still waits without an answer of its node.
    fn fail(&self, session: &Session, token: Token, error: &RpcError) {
        if let Some(waiting) = self.take_out(session, token) {
            self.counters.abandoned.fetch_add(1, Ordering::Relaxed);
            self.repeats.forget(waiting.key);
            waiting.fail(error);
        }
    }

    /// Ends the calls whose time is up. Says nothing: the sessions note the deadlines that are left.
    pub(super) fn sweep(&self, now: Instant) {
        self.deadlines.reset();
        let tick = self.deadlines.tick_before(now);
        let mut late = Vec::new();
        for session in self.live.all() {
            let next = session.expired(now, tick, |at| self.deadlines.tick_after(at), &mut late);
            if next != Tick::NEVER {
                self.deadlines.note(next);
            }
            for (token, waiting) in late.drain(..) {
                self.counters.end();
                self.counters.timed_out.fetch_add(1, Ordering::Relaxed);
                self.repeats.forget(waiting.key);
                let mut error = failure("TIMEOUT", "node invoke timed out", waiting.dispatch());
                if let Some(details) = &mut error.details {
                    details["effectiveTimeoutMs"] = Value::from(waiting.timeout_ms);
                }
                if waiting.extra.as_ref().is_some_and(|extra| extra.stream.is_some()) {
                    cancel(&session, token);
                }
                waiting.fail(&error);
            }
        }
    }

    /// Ends a session, and the calls that wait for it.
    pub(super) fn end_calls(&self, session: &Session) {
        for (_, waiting) in session.end() {
            self.counters.end();
            self.counters.disconnected.fetch_add(1, Ordering::Relaxed);
            self.repeats.forget(waiting.key);
            let message = format!("node disconnected ({})", waiting.command);
            let error = failure("DISCONNECTED", &message, waiting.dispatch());
            waiting.fail(&error);
        }
    }

    /// Remembers that a call ends with its caller, to cancel it when the caller goes.
    fn note_stream(&self, caller: &Connection, session: &Arc<Session>, token: Token) {
        let mut streams = self.streams();
        let of_caller = streams.entry(caller.id).or_default();
        if of_caller.len() >= 64 {
            of_caller.retain(|running| running.session.with(running.token, |_| ()).is_some());
        }
        of_caller.push(Running { session: Arc::clone(session), token });
    }

    /// A caller has gone: the commands that end with it are cancelled.
    pub(super) fn caller_gone(&self, caller: &Connection) {
        let Some(running) = self.streams().remove(&caller.id) else { return };
        for Running { session, token } in running {
            if let Some(waiting) = self.take_out(&session, token) {
                self.counters.abandoned.fetch_add(1, Ordering::Relaxed);
                self.repeats.forget(waiting.key);
                cancel(&session, token);
                waiting.fail(&failure("ABORTED", "the caller has gone", Dispatch::SentUnacked));
            }
        }
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, super::Streams> {
        self.streams.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Tells the node to stop a command whose output somebody was following, or that a run of the agent had begun. Others are
/// left to run out: a node told of a deadline keeps it itself.
fn cancel(session: &Session, token: Token) {
    let mut id = [0; CALL_ID_BYTES];
    session.write_call_id(token, &mut id);
    let payload = json!({"invokeId": String::from_utf8_lossy(&id), "nodeId": session.node_id.to_string()});
    session.connection.send_event(Event::NODE_INVOKE_CANCEL, &payload);
}

/// Appends `{"ok":true,"nodeId":..,"command":..,"payload":..,"payloadJSON":..,"effectiveTimeoutMs":..}`.
fn write_answer(session: &Session, command: &str, payload: Payload<'_>, timeout_ms: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"ok":true,"nodeId":"#);
    out.extend_from_slice(session.node_id_json.as_bytes());
    out.extend_from_slice(br#","command":""#);
    out.extend_from_slice(command.as_bytes());
    out.push(b'"');
    match (payload.payload_json, payload.payload) {
        (Some(text), _) if !text.inner().is_empty() => {
            out.extend_from_slice(br#","payload":"#);
            if json::splice(text, out).is_err() {
                // Not JSON: passed on as the text it is.
                out.extend_from_slice(br#"{"payloadJSON":"#);
                out.extend_from_slice(text.as_str().as_bytes());
                out.push(b'}');
            }
        }
        (_, Some(payload)) => {
            out.extend_from_slice(br#","payload":"#);
            out.extend_from_slice(payload.as_str().as_bytes());
        }
        (_, None) => {}
    }
    out.extend_from_slice(br#","payloadJSON":"#);
    out.extend_from_slice(payload.payload_json.map_or("null", RawString::as_str).as_bytes());
    out.extend_from_slice(br#","effectiveTimeoutMs":"#);
    push_number(timeout_ms, out);
    out.push(b'}');
}
