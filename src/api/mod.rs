//! The HTTP API: the agent and its tools for programs that speak OpenAI's chat completions, or plain HTTP.
//!
//! The handle is [`Api`]. Everything here happens on the agent's thread; the threads that carry connections wait for an
//! answer or pass a stream on. A caller who leaves takes the run with them, and one who reads slowly gets what was said
//! meanwhile in one piece: what waits for them is bounded ([`PIECES`]).
//!
//! Without `user` or a session key a request has a session of its own, which is gone when it is answered. With one, the
//! session goes on, and its transcript is the memory: of the messages only the last one is taken then.
//!
//! Where to start reading: [`completion`] and [`tool_call`] (the words), [`fault`] (what can go wrong), [`Api::complete`].

pub mod completion;
pub mod fault;
pub mod tool_call;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::agent::methods::ToolError;
use crate::agent::providers::Sampling;
use crate::agent::{Agent, Asked, End, Heard, Listener, Outcome, Said};
use crate::clock::UnixMs;
use crate::id;
use crate::rpc::scope::{Scope, ScopeSet};
use crate::sessions::key::{MAIN_AGENT, SessionKey};
use crate::sessions::message::Usage;
use crate::sessions::{Origin, Sessions};
use crate::task;
use completion::{Answering, Completion};
use fault::{Fault, Kind};
use tool_call::ToolCall;

/// Pieces of a stream that wait for its reader.
const PIECES: usize = 8;
/// How long a reader may take for one piece before it is given up.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// After how much silence a stream says that it is alive: proxies close what is silent.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
/// Bytes of a body above which it is parsed on a thread for what blocks.
const LARGE_BODY_BYTES: usize = 256 * 1024;
/// What the keys of sessions begin with that are made for one request.
const PASSING: &str = "agent:main:openai:";
/// Session keys that are the gateway's own business.
const RESERVED: [&str; 3] = ["subagent:", "cron:", "acp:"];
/// Tools that are not called over HTTP unless `gateway.tools.allow` names them: with them a caller has the host.
const DENIED_TOOLS: [&str; 12] = [
    "exec",
    "spawn",
    "shell",
    "fs_write",
    "fs_delete",
    "fs_move",
    "apply_patch",
    "sessions_spawn",
    "sessions_send",
    "cron",
    "gateway",
    "nodes",
];

/// What the operator has set.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `gateway.http.endpoints.chatCompletions.enabled`: `/v1/chat/completions` and `/v1/models`.
    pub chat_completions: bool,
    /// `gateway.tools.deny`.
    pub deny_tools: BTreeSet<String>,
    /// `gateway.tools.allow`.
    pub allow_tools: BTreeSet<String>,
}

/// What the headers of a request ask for.
#[derive(Clone, Debug, Default)]
pub struct Wants {
    /// `x-openclaw-model`.
    pub model: Option<String>,
    /// `x-openclaw-agent-id`.
    pub agent: Option<String>,
    /// `x-openclaw-session-key`.
    pub session_key: Option<String>,
}

/// An answer.
#[derive(Debug)]
pub enum Reply {
    /// Whole.
    Json(Value),
    /// As server-sent events.
    Events(mpsc::Receiver<Bytes>),
}

/// Handle to the HTTP API. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    agent: Agent,
    sessions: Sessions,
    settings: Settings,
}

impl Api {
    /// Over the agent and its sessions.
    pub fn new(agent: Agent, sessions: Sessions, settings: Settings) -> Self {
        Self(Arc::new(Inner { agent, sessions, settings }))
    }

    /// Deletes the sessions that were made for one request and outlived a former process. Once, when the agent has resumed.
    pub fn sweep(&self) {
        let passing: Vec<_> = self.0.sessions.all().into_iter().map(|(key, _)| key).collect();
        let api = self.clone();
        task::spawn_on(self.0.agent.runtime(), "api.sweep", async move {
            for key in passing.into_iter().filter(|key| key.as_str().starts_with(PASSING)) {
                let run = api.0.sessions.in_flight(&key).map(|run| run.run_id);
                api.forget(&key, run.as_deref()).await;
            }
        });
    }

    /// Deletes a session that was made for one request, once its run has ended.
    async fn forget(&self, key: &SessionKey, run: Option<&str>) {
        let Inner { agent, sessions, .. } = &*self.0;
        let deleted = async {
            if let Some(run) = run {
                agent.wait(run, Duration::from_secs(10)).await?;
            }
            sessions.delete(key, true, UnixMs::now()).await
        };
        if let Err(error) = deleted.await {
            tracing::warn!(session = %key, error = %error.message, "a session that was made for one request stays");
        }
    }

    /// Whether chat completions and models are served at all.
    pub fn serves_completions(&self) -> bool {
        self.0.settings.chat_completions
    }

    /// `GET /v1/models`: the agents, as models.
    pub fn models() -> Value {
        json!({"object": "list", "data": MODELS.map(model_row)})
    }

    /// `GET /v1/models/{id}`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn model(name: &str) -> Result<Value, Fault> {
        let known = MODELS.into_iter().find(|known| known.eq_ignore_ascii_case(name));
        known.map(model_row).ok_or_else(|| Fault::new(Kind::NotFound, unknown_model()).coded("model_not_found"))
    }

    /// `POST /v1/chat/completions`, for a caller with `scopes`. `lost` ends when the caller loses its right.
    ///
    /// # Errors
    /// See [`Fault`].
    ///
    /// # Cancel safety
    /// Dropped, the run is stopped.
    pub async fn complete(
        &self,
        scopes: ScopeSet,
        wants: Wants,
        body: Bytes,
        lost: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Reply, Fault> {
        let (answer, answered) = oneshot::channel();
        let api = self.clone();
        task::spawn_on(self.0.agent.runtime(), "api.complete", async move {
            api.answer(scopes, wants, body, lost, answer).await;
        });
        answered.await.unwrap_or_else(|_| Err(given_up()))
    }

    async fn answer(
        &self,
        scopes: ScopeSet,
        wants: Wants,
        body: Bytes,
        lost: impl Future<Output = ()>,
        mut answer: oneshot::Sender<Result<Reply, Fault>>,
    ) {
        let now = UnixMs::now();
        let parsed = tokio::select! {
            parsed = parse(body, now) => parsed,
            () = answer.closed() => return,
        };
        // Not given up half-way: a run that is on its way to the disk begins there, and somebody must be here to stop it.
        let begun = match parsed {
            Ok(completion) => self.begin(scopes, wants, completion, now).await,
            Err(fault) => Err(fault),
        };
        let (mut run, answering, stream) = match begun {
            Ok(begun) => begun,
            Err(fault) => return drop(answer.send(Err(fault))),
        };
        match stream {
            Some(include_usage) => {
                let (pieces, reader) = mpsc::channel(PIECES);
                // Whoever has left by now closes the channel, too.
                let _ = answer.send(Ok(Reply::Events(reader)));
                stream_out(&mut run, &answering, include_usage, pieces, lost).await;
            }
            None => tokio::select! {
                // The run is stopped when it is dropped.
                () = answer.closed() => {}
                () = lost => drop(answer.send(Err(lost_right()))),
                ended = run.listener.end() => {
                    run.has_ended();
                    let said = run.listener.said.borrow().clone();
                    let result = outcome(ended).map(|outcome| {
                        let text = if said.text.is_empty() { &outcome.text } else { &said.text };
                        Reply::Json(answering.whole(text, &outcome.stop_reason, said.usage))
                    });
                    let _ = answer.send(result);
                }
            },
        }
    }

    /// Starts the run of a request: the run, what its answer says of itself, and, of a stream, whether its tokens are
    /// wanted.
    async fn begin(
        &self,
        scopes: ScopeSet,
        wants: Wants,
        completion: Completion,
        now: UnixMs,
    ) -> Result<(Run, Answering, Option<bool>), Fault> {
        let Completion { model, before, message, system, user, stream, include_usage, choice } = completion;
        if let Some(agent) = &wants.agent {
            check_agent(agent)?;
        }
        check_agent(agent_of(&model).ok_or_else(|| Fault::invalid(unknown_model()).coded("model_not_found"))?)?;
        let own = wants.model.as_deref().map(|name| self.backend(scopes, name)).transpose()?;
        let (key, is_kept) = match (&wants.session_key, &user) {
            (Some(text), _) => (session_key(text)?, true),
            (None, Some(user)) => (key_of_user(user)?, true),
            (None, None) => (passing_key()?, false),
        };
        let run_id = id::uuid();
        let choice = Sampling {
            temperature: choice.temperature,
            top_p: choice.top_p,
            frequency_penalty: choice.frequency_penalty,
            presence_penalty: choice.presence_penalty,
            seed: choice.seed,
            stop: choice.stop,
            max_tokens: choice.max_tokens,
        };
        let asked =
            Asked { extra_system: system, model: own, sampling: choice, is_awaited: true, ..Asked::of(message) };
        let origin = Origin { channel: None, display_name: None, via: Some("operator") };
        let agent = &self.0.agent;
        let listener = agent.ask_and_listen(run_id.clone(), key.clone(), origin, before, asked, now).await?;
        let run = Run { api: self.clone(), id: run_id, key, is_kept, listener, is_open: true };
        let answering = Answering { id: format!("chatcmpl-{}", run.id), created: now.0 / 1000, model };
        Ok((run, answering, stream.then_some(include_usage)))
    }

    /// The model behind the agent that a caller names; a right of administrators.
    fn backend(&self, scopes: ScopeSet, name: &str) -> Result<String, Fault> {
        if !scopes.covers(Scope::Admin) {
            return Err(Fault::missing_scope(Scope::Admin.as_str()));
        }
        let unknown = || {
            let name: String = name.chars().take(100).collect();
            Fault::invalid(format!("x-openclaw-model: there is no model {name:?} in models.providers"))
        };
        self.0.agent.model_named(name).ok_or_else(unknown)
    }

    /// `POST /tools/invoke`, for a caller with `scopes` whom a proxy calls `user`. `lost` ends when the caller loses its
    /// right.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn invoke_tool(
        &self,
        scopes: ScopeSet,
        user: Option<String>,
        body: Bytes,
        lost: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Value, Fault> {
        let (mut answer, answered) = oneshot::channel();
        let api = self.clone();
        task::spawn_on(self.0.agent.runtime(), "api.invoke", async move {
            tokio::select! {
                biased;
                // Nobody waits for it: what the node does by then is the node's.
                () = answer.closed() => {}
                () = lost => drop(answer.send(Err(lost_right()))),
                result = api.invoke(scopes, user.as_deref(), &body) => drop(answer.send(result)),
            }
        });
        answered.await.unwrap_or_else(|_| Err(given_up()))
    }

    async fn invoke(&self, scopes: ScopeSet, user: Option<&str>, body: &[u8]) -> Result<Value, Fault> {
        let ToolCall { name, args, session_key: session, agent_id, idempotency_key } = tool_call::parse(body)?;
        if let Some(agent) = &agent_id {
            check_agent(agent)?;
        }
        if let Some(key) = &session {
            check_agent(session_key(key)?.agent())?;
        }
        if !self.may_be_called(scopes, &name) {
            return Err(no_tool(&name));
        }
        let whose = format!("http {}", user.unwrap_or_default());
        let once = idempotency_key.as_deref().map(|key| (whose.as_str(), key));
        let called = self.0.agent.invoke_tool(&name, &args, once).await;
        called.map(|result| json!({"ok": true, "result": result})).map_err(|error| match error {
            ToolError::Unknown(name) => no_tool(&name),
            ToolError::Arguments(why) => Fault::invalid(why),
            ToolError::NeedsApproval => Fault::new(Kind::Forbidden, error.to_string()).coded("requires_approval"),
            ToolError::Failed(why) => Fault::failed(why).coded("tool_failed"),
        })
    }

    fn may_be_called(&self, scopes: ScopeSet, name: &str) -> bool {
        let settings = &self.0.settings;
        let opened = settings.allow_tools.contains(name) && scopes.covers(Scope::Admin);
        !settings.deny_tools.contains(name) && (opened || !DENIED_TOOLS.contains(&name))
    }
}

async fn parse(body: Bytes, now: UnixMs) -> Result<Completion, Fault> {
    if body.len() <= LARGE_BODY_BYTES {
        return completion::parse(&body, now);
    }
    let parsed = tokio::task::spawn_blocking(move || completion::parse(&body, now)).await;
    parsed.unwrap_or_else(|_| Err(Fault::failed("the body could not be parsed; see the gateway's log")))
}

/// A run that somebody waits for. Dropped, it is stopped; a session that was made for it goes with it.
#[derive(Debug)]
struct Run {
    api: Api,
    id: String,
    key: SessionKey,
    is_kept: bool,
    listener: Listener,
    is_open: bool,
}

impl Run {
    fn has_ended(&mut self) {
        self.is_open = false;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.is_open {
            self.api.0.agent.stop(&self.key, Some(&self.id), "aborted");
        }
        if !self.is_kept {
            let (api, key, run) = (self.api.clone(), self.key.clone(), self.id.clone());
            task::spawn_on(self.api.0.agent.runtime(), "api.forget", async move { api.forget(&key, Some(&run)).await });
        }
    }
}

/// Passes on what a run says, until it has ended or nobody listens.
async fn stream_out(
    run: &mut Run,
    answering: &Answering,
    include_usage: bool,
    pieces: mpsc::Sender<Bytes>,
    lost: impl Future<Output = ()>,
) {
    let mut lost = std::pin::pin!(lost);
    let mut sent = String::new();
    let mut next = answering.begin();
    loop {
        let sending = tokio::time::timeout(READ_WITHIN, pieces.send(std::mem::take(&mut next).into()));
        tokio::select! {
            // Who reads slowly learns of it by the end of the stream.
            () = &mut lost => return,
            sent = sending => if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
        let end = tokio::select! {
            biased;
            () = pieces.closed() => return,
            () = &mut lost => Some(Answering::fail(&lost_right())),
            step = step(&mut run.listener, &mut sent) => match step {
                Step::More(text) => {
                    next = answering.more(&text);
                    None
                }
                Step::Broken(fault) => Some(Answering::fail(&fault)),
                Step::End(more, ended) => {
                    run.has_ended();
                    let usage = run.listener.said.borrow().usage;
                    Some(last_piece(answering, more, ended, include_usage.then_some(usage)))
                }
            },
            () = tokio::time::sleep(ALIVE_EVERY) => {
                next = ": still at it\n\n".to_owned();
                None
            }
        };
        if let Some(end) = end {
            let _ = tokio::time::timeout(READ_WITHIN, pieces.send(end.into())).await;
            return;
        }
    }
}

fn last_piece(
    answering: &Answering,
    more: Result<String, Fault>,
    ended: Option<Outcome>,
    usage: Option<Usage>,
) -> String {
    match more.and_then(|more| Ok((more, outcome(ended)?))) {
        Ok((more, outcome)) => {
            let mut text = if more.is_empty() { String::new() } else { answering.more(&more) };
            text.push_str(&answering.end(&outcome.stop_reason, usage));
            text
        }
        Err(fault) => Answering::fail(&fault),
    }
}

enum Step {
    More(String),
    /// What had not been sent by then, and how the run ended.
    End(Result<String, Fault>, Option<Outcome>),
    /// The run goes on, and this answer can't.
    Broken(Fault),
}

/// Waits until there is more to send than `sent`, or the run has ended. Cancel safe.
async fn step(listener: &mut Listener, sent: &mut String) -> Step {
    loop {
        match more_of(&listener.said.borrow_and_update(), sent) {
            Ok(Some(more)) => return Step::More(more),
            Ok(None) => {}
            Err(fault) => return Step::Broken(fault),
        }
        if let Heard::End(ended) = listener.hear().await {
            let more = more_of(&listener.said.borrow(), sent);
            return Step::End(more.map(Option::unwrap_or_default), ended);
        }
    }
}

/// What `said` has beyond `sent`, which it is added to.
fn more_of(said: &Said, sent: &mut String) -> Result<Option<String>, Fault> {
    match said.text.strip_prefix(sent.as_str()) {
        Some("") => Ok(None),
        Some(more) => {
            let more = more.to_owned();
            sent.push_str(&more);
            Ok(Some(more))
        }
        // An attempt that failed half-way had said something else.
        None => Err(Fault::failed("the model began its answer anew after a part of it had been sent; ask again")),
    }
}

fn outcome(ended: Option<Outcome>) -> Result<Outcome, Fault> {
    let outcome = ended.ok_or_else(|| Fault::failed("the gateway gave the run up; see its log"))?;
    match outcome.end {
        End::Done => Ok(outcome),
        End::Aborted => Err(Fault::failed("the run was stopped").coded("aborted")),
        End::Failed => {
            let code = match outcome.stop_reason.as_str() {
                "context_length" => "context_length_exceeded",
                "timeout" => "timeout",
                "no_model" => "no_model",
                _ => "run_failed",
            };
            let message = outcome.error.unwrap_or(outcome.stop_reason);
            let kind = if code == "context_length_exceeded" { Kind::Invalid } else { Kind::Failed };
            Err(Fault::new(kind, message).coded(code))
        }
    }
}

fn given_up() -> Fault {
    Fault::failed("the gateway gave this call up; see its log")
}

fn lost_right() -> Fault {
    Fault::new(Kind::Unauthorized, "the gateway's auth settings changed while this was answered").coded("auth_changed")
}

fn no_tool(name: &str) -> Fault {
    let name: String = name.chars().take(64).collect();
    Fault::new(
        Kind::NotFound,
        format!("Tool not available: {name}; no connected and approved node offers it to calls over HTTP"),
    )
}

/// The names under which the one agent is offered as a model.
const MODELS: [&str; 3] = ["openclaw", "openclaw/default", "openclaw/main"];

fn model_row(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "openclaw", "permission": []})
}

fn unknown_model() -> String {
    "model: no agent is called so; use openclaw, openclaw/default or openclaw/main".to_owned()
}

/// The agent that a `model` names.
fn agent_of(model: &str) -> Option<&str> {
    let model = model.trim();
    if model.eq_ignore_ascii_case("openclaw") {
        return Some(MAIN_AGENT);
    }
    ["openclaw/", "openclaw:", "agent:"].iter().find_map(|prefix| {
        let rest =
            model.get(..prefix.len()).filter(|head| head.eq_ignore_ascii_case(prefix)).map(|_| &model[prefix.len()..]);
        rest.filter(|agent| !agent.is_empty())
    })
}

fn check_agent(agent: &str) -> Result<(), Fault> {
    let agent = agent.trim();
    if agent.eq_ignore_ascii_case(MAIN_AGENT) || agent.eq_ignore_ascii_case("default") {
        return Ok(());
    }
    let agent: String = agent.chars().take(64).collect();
    Err(Fault::invalid(format!("unknown agent {agent:?}: this gateway has one agent, {MAIN_AGENT:?}")))
}

/// A session that a caller names by its key.
fn session_key(text: &str) -> Result<SessionKey, Fault> {
    let key = SessionKey::parse(text).ok_or_else(|| Fault::invalid("the session key is not one"))?;
    let rest = key.as_str().splitn(3, ':').nth(2).unwrap_or_default();
    if RESERVED.iter().any(|reserved| rest.starts_with(reserved)) {
        return Err(Fault::invalid(format!("session keys that begin with {} are reserved", RESERVED.join(", "))));
    }
    check_agent(key.agent())?;
    Ok(key)
}

/// The session of a `user`, however the caller writes them. Keys know no capitals: users whose names differ in them alone
/// are told apart by a digest.
fn key_of_user(user: &str) -> Result<SessionKey, Fault> {
    let mut name = String::with_capacity(user.len());
    for c in user.chars() {
        if c.is_whitespace() || c.is_control() || matches!(c, '%' | '~') {
            let mut bytes = [0; 4];
            c.encode_utf8(&mut bytes).bytes().for_each(|byte| name.push_str(&format!("%{byte:02x}")));
        } else {
            name.push(c);
        }
    }
    if name.to_lowercase() != name {
        let digest = ring::digest::digest(&ring::digest::SHA256, user.as_bytes());
        name.push('~');
        digest.as_ref().iter().take(8).for_each(|byte| name.push_str(&format!("{byte:02x}")));
    }
    SessionKey::parse(&format!("openai-user:{name}")).ok_or_else(|| Fault::invalid("user: too long"))
}

fn passing_key() -> Result<SessionKey, Fault> {
    SessionKey::parse(&format!("{PASSING}{}", id::uuid())).ok_or_else(|| Fault::failed("no session key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_names_an_agent() {
        for (model, agent) in [
            ("openclaw", Some("main")),
            ("OpenClaw/Default", Some("Default")),
            ("openclaw:main", Some("main")),
            ("agent:research", Some("research")),
            ("openclaw/", None),
            ("gpt-6", None),
            ("", None),
        ] {
            assert_eq!(agent_of(model), agent, "{model}");
        }
        assert!(check_agent("default").is_ok() && check_agent("research").is_err());
    }

    #[test]
    fn sessions_are_named_by_key_or_by_user_and_not_the_gateways_own() {
        assert_eq!(key_of_user("ann lee").unwrap().as_str(), "agent:main:openai-user:ann%20lee");
        let keys =
            ["aB3x", "Ab3X", "ab3x", "\u{212a}", "k", "ab3x~0123456789abcdef"].map(|user| key_of_user(user).unwrap());
        let different: BTreeSet<_> = keys.iter().map(SessionKey::as_str).collect();
        assert_eq!(different.len(), keys.len(), "{different:?}");
        assert!(key_of_user(&"\u{c4}".repeat(128)).is_ok(), "as long as a user may be");
        assert_eq!(session_key("work").unwrap().as_str(), "agent:main:work");
        for wrong in ["subagent:x", "agent:main:cron:x", "acp:1", "agent:other:x", "a b", ""] {
            assert!(session_key(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_was_sent_is_only_ever_added_to() {
        let said = |text: &str| Said { text: text.to_owned(), ..Said::default() };
        let mut sent = String::new();
        assert_eq!(more_of(&said("a"), &mut sent), Ok(Some("a".to_owned())));
        assert_eq!(more_of(&said("a"), &mut sent), Ok(None));
        assert_eq!(more_of(&said("abc"), &mut sent), Ok(Some("bc".to_owned())));
        assert!(more_of(&said("x"), &mut sent).is_err());
    }
}
