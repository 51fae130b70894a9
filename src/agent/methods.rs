//! The RPC methods that start and end runs, and those that say what the agent has to work with.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::media::{MAX_IMAGE_BYTES, MAX_IMAGES};
use super::providers::Endpoint;
use super::record::{Asked, End, Outcome, Route, Taken};
use super::{Agent, tools};
use crate::clock::UnixMs;
use crate::id;
use crate::rpc::dispatch::{Call, Method, Outcome as Routed, Responder};
use crate::rpc::error::RpcError;
use crate::rpc::scope::Scope;
use crate::secret::{Secret, SecretHash};
use crate::sessions::Origin;
use crate::sessions::key::{MAIN_AGENT, SessionKey};
use crate::sessions::message::{Block, Message};
use crate::sessions::methods::{HistoryParams, MAX_NAME_BYTES, key};
use crate::sessions::record::Session;
use crate::task;

/// The table that `methods.rs` mounts.
pub const METHODS: &[Method<Agent>] = &[
    Method { name: "agent", handler: agent },
    Method { name: "agent.wait", handler: wait },
    Method { name: "agent.identity.get", handler: identity },
    Method { name: "agents.list", handler: agents },
    Method { name: "models.list", handler: models },
    Method { name: "models.authStatus", handler: auth_status },
    Method { name: "models.authSetApiKey", handler: set_api_key },
    Method { name: "models.authLogout", handler: logout },
    Method { name: "tools.catalog", handler: catalog },
    Method { name: "tools.effective", handler: effective },
    Method { name: "chat.startup", handler: chat_startup },
    Method { name: "chat.metadata", handler: chat_metadata },
    Method { name: "chat.send", handler: chat_send },
    Method { name: "chat.abort", handler: chat_abort },
    Method { name: "sessions.send", handler: sessions_send },
    Method { name: "sessions.abort", handler: sessions_abort },
    Method { name: "sessions.create", handler: sessions_create },
    Method { name: "sessions.reset", handler: sessions_reset },
    Method { name: "sessions.delete", handler: sessions_delete },
    Method { name: "tools.invoke", handler: tools_invoke },
];

/// Bytes of one message.
const MAX_MESSAGE_BYTES: usize = 512 * 1024;
/// Bytes of an idempotency key.
const MAX_KEY_BYTES: usize = 512;
/// What begins the ids of runs that a channel has begun.
const CHANNEL_RUNS: &str = "telegram:";
/// The longest that `agent.wait` waits.
const MAX_WAIT_MS: u64 = 3_600_000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    mime_type: Option<String>,
    content: Option<Value>,
}

/// A message as a client sends it, checked.
fn message(text: &str, attachments: Option<Vec<Attachment>>, now: UnixMs) -> Result<Message, RpcError> {
    let mut content = Vec::new();
    if text.len() > MAX_MESSAGE_BYTES {
        return Err(RpcError::invalid(format!("the message is longer than {MAX_MESSAGE_BYTES} bytes")));
    }
    if !text.trim().is_empty() {
        content.push(Block::Text { text: text.to_owned() });
    }
    for attachment in attachments.unwrap_or_default() {
        let mime_type = attachment.mime_type.unwrap_or_default().to_ascii_lowercase();
        let data = attachment.content.as_ref().and_then(Value::as_str).unwrap_or_default();
        let data = data.rsplit_once("base64,").map_or(data, |(_, data)| data);
        if !matches!(mime_type.as_str(), "image/jpeg" | "image/png" | "image/gif" | "image/webp") {
            return Err(RpcError::invalid(format!(
                "an attachment of type {mime_type:?}: only pictures are taken (jpeg, png, gif, webp)"
            )));
        }
        let images = content.iter().filter(|block| matches!(block, Block::Image { .. })).count();
        if data.is_empty() || data.len() / 4 * 3 > MAX_IMAGE_BYTES || images == MAX_IMAGES {
            return Err(RpcError::invalid(format!(
                "pictures: {MAX_IMAGES} of {MAX_IMAGE_BYTES} bytes each at most, in base64"
            )));
        }
        content.push(Block::Image { data: data.to_owned(), mime_type });
    }
    if content.is_empty() {
        return Err(RpcError::invalid("the message is empty"));
    }
    Ok(Message::User { content, timestamp: now, sender_label: None })
}

fn run_id(idempotency_key: Option<String>) -> Result<String, RpcError> {
    let key = idempotency_key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
    match key {
        Some(key) if key.len() > MAX_KEY_BYTES || key.chars().any(char::is_control) => {
            Err(RpcError::invalid(format!("idempotencyKey: {MAX_KEY_BYTES} bytes without control characters at most")))
        }
        // Runs of channels are named after their messages: a client that took such a name would keep a message out.
        Some(key) if key.starts_with(CHANNEL_RUNS) => {
            Err(RpcError::invalid(format!("idempotencyKey: {CHANNEL_RUNS:?} begins the names of a channel's own runs")))
        }
        Some(key) => Ok(key),
        None => Ok(id::uuid()),
    }
}

const fn operator() -> Origin {
    Origin { channel: None, display_name: None, via: Some("operator") }
}

/// A run's end as `agent` and `agent.wait` report it.
fn report(run_id: &str, outcome: &Outcome, session: Option<&Session>) -> Value {
    let status = match outcome.end {
        End::Done => "ok",
        End::Failed if outcome.stop_reason == "timeout" => "timeout",
        End::Failed => "error",
        End::Aborted => "aborted",
    };
    let payloads = if outcome.text.is_empty() { json!([]) } else { json!([{"text": outcome.text, "mediaUrl": null}]) };
    let mut report = json!({
        "runId": run_id, "status": status, "endedAt": outcome.ended_at, "stopReason": outcome.stop_reason,
        "summary": if outcome.end == End::Done { "completed" } else { outcome.stop_reason.as_str() },
        "result": {"payloads": payloads, "meta": {"aborted": outcome.end == End::Aborted,
            "stopReason": outcome.stop_reason,
            "agentMeta": {"sessionId": session.map(|session| session.session_id.as_str())}}},
    });
    if let Some(error) = &outcome.error {
        report["error"] = json!(error);
    }
    report
}

fn agent(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        message: String,
        agent_id: Option<String>,
        session_key: Option<String>,
        session_id: Option<String>,
        attachments: Option<Vec<Attachment>>,
        extra_system_prompt: Option<String>,
        timeout: Option<u64>,
        idempotency_key: Option<String>,
        #[serde(default)]
        deliver: bool,
        channel: Option<String>,
        to: Option<String>,
        account_id: Option<String>,
    }
    let params: Params = call.params()?;
    check_agent(params.agent_id.as_deref())?;
    let key = match (&params.session_key, &params.session_id) {
        (Some(text), _) => key(text)?,
        (None, Some(session_id)) => {
            let all = agent.0.sessions.all();
            let found = all.into_iter().find(|(_, session)| session.session_id == *session_id);
            found.map(|(key, _)| key).ok_or_else(|| RpcError::invalid("there is no session of this sessionId"))?
        }
        (None, None) => SessionKey::main(),
    };
    let now = call.now();
    let route = match (params.deliver, params.channel, params.to) {
        (true, Some(channel), Some(to)) => {
            let account = params.account_id.unwrap_or_else(|| "default".to_owned());
            Some(Route { channel, account, to, thread: None, reply_to: None, pictures: Vec::new() })
        }
        _ => None,
    };
    let asked = Asked {
        route,
        timeout_ms: params.timeout.filter(|seconds| *seconds > 0).map(|seconds| seconds.saturating_mul(1000)),
        extra_system: params.extra_system_prompt,
        ..Asked::of(message(&params.message, params.attachments, now)?)
    };
    let run_id = run_id(params.idempotency_key)?;
    agent.0.sessions.opened(&key, call.caller());
    let (handle, responder) = (agent.clone(), call.later());
    task::spawn_on(&agent.0.runtime, "agent", async move {
        answer_twice(&handle, responder, run_id, key, asked, now).await;
    });
    Ok(Routed::Later)
}

/// Answers that the run was taken, and then, under the same id, how it ended.
async fn answer_twice(agent: &Agent, responder: Responder, run_id: String, key: SessionKey, asked: Asked, now: UnixMs) {
    let taken = agent.ask(run_id.clone(), key.clone(), operator(), asked, now).await;
    let outcome = match taken {
        Err(error) => {
            responder.fail(&error);
            return;
        }
        Ok(Taken::Ended(outcome)) => Some(outcome),
        Ok(Taken::New | Taken::Open) => {
            responder.interim(
                &json!({"runId": run_id, "sessionKey": key.as_str(), "status": "accepted", "acceptedAt": now}),
            );
            agent.wait(&run_id, Duration::from_millis(MAX_WAIT_MS)).await.ok().flatten()
        }
    };
    let Some(outcome) = outcome else {
        let error = RpcError::unavailable(format!("the run {run_id} has not ended; see agent.wait"));
        responder.fail(&error.retryable(true));
        return;
    };
    let session = agent.0.sessions.get(&key);
    if outcome.end == End::Failed {
        let said = outcome.error.clone().unwrap_or_else(|| outcome.stop_reason.clone());
        let error = RpcError::unavailable(said).with_details(report(&run_id, &outcome, session.as_deref()));
        responder.fail(&error);
    } else {
        responder.answer(&report(&run_id, &outcome, session.as_deref()));
    }
}

fn check_agent(agent_id: Option<&str>) -> Result<(), RpcError> {
    match agent_id {
        Some(agent) if !agent.eq_ignore_ascii_case(MAIN_AGENT) => Err(RpcError::invalid(format!(
            "unknown agent id {:?}: this gateway has one agent, \"{MAIN_AGENT}\"",
            agent.chars().take(64).collect::<String>()
        ))),
        _ => Ok(()),
    }
}

fn wait(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        run_id: String,
        timeout_ms: Option<u64>,
    }
    let Params { run_id, timeout_ms } = call.params()?;
    let within = Duration::from_millis(timeout_ms.unwrap_or(30_000).min(MAX_WAIT_MS));
    let agent = agent.clone();
    call.spawn(async move {
        Ok(match agent.wait(&run_id, within).await? {
            Some(outcome) => report(&run_id, &outcome, None),
            None => json!({"runId": run_id, "status": "timeout"}),
        })
    })
}

fn identity(_: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    call.answer(&json!({"agentId": MAIN_AGENT, "name": "Assistant", "nameSource": "default", "avatarStatus": "none"}))
}

fn agents(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    call.answer(&agents_list(agent))
}

/// The one agent there is, with the models it asks: a Control UI lets nobody write to one that has none.
fn agents_list(agent: &Agent) -> Value {
    let settings = &agent.settings();
    let mut names = settings.order.iter().filter_map(|at| settings.models.get(*at)).map(Endpoint::full_name);
    let mut row = json!({"id": MAIN_AGENT, "name": MAIN_AGENT});
    if let Some(primary) = names.next() {
        row["model"] = json!({"primary": primary, "fallbacks": names.collect::<Vec<_>>()});
    }
    json!({"defaultId": MAIN_AGENT, "mainKey": "main", "scope": "per-sender", "agents": [row]})
}

/// Everything that a chat begins with, in one answer.
fn chat_startup(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    let params: HistoryParams = call.params()?;
    let key = key(&params.session_key)?;
    let sessions = &agent.0.sessions;
    sessions.opened(&key, call.caller());
    let (sessions, agents, models) = (sessions.clone(), agents_list(agent), model_rows(agent));
    call.spawn(async move {
        let mut answer = sessions.history_answer(&key, params).await?;
        answer["agentsList"] = agents;
        answer["metadata"] = json!({"commands": [], "models": models});
        Ok(answer)
    })
}

fn chat_metadata(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    call.answer(&json!({"commands": [], "models": model_rows(agent)}))
}

fn models(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    call.answer(&json!({"models": model_rows(agent)}))
}

fn model_rows(agent: &Agent) -> Vec<Value> {
    agent
        .settings()
        .models
        .iter()
        .map(|endpoint| {
            let model = &endpoint.model;
            let now = UnixMs::now();
            let rests =
                agent.rests_for(&endpoint.provider).map(|rest| now.plus(u64::try_from(rest.as_millis()).unwrap_or(0)));
            let key_rests = agent.0.profiles.rests_until(&endpoint.provider, endpoint.key.as_ref(), now);
            let rests = rests.max(key_rests);
            let mut row = json!({"id": model.id, "name": model.name, "provider": endpoint.provider,
                "contextWindow": model.context_window, "reasoning": model.reasoning, "supportsTools": true,
                "available": rests.is_none()});
            let known = |kind: &&String| matches!(kind.as_str(), "text" | "image" | "audio" | "video" | "document");
            let input: Vec<_> = model.input.iter().filter(known).collect();
            if !input.is_empty() {
                row["input"] = json!(input);
            }
            if let Some(rests) = rests {
                row["unavailableReason"] = json!("cooldown");
                row["unavailableUntil"] = json!(rests);
            }
            row
        })
        .collect()
}

fn auth_status(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    let settings = agent.settings();
    let mut inline: Vec<_> = settings.models.iter().filter(|endpoint| endpoint.key.is_some()).collect();
    inline.dedup_by_key(|endpoint| endpoint.provider.as_str());
    let inline: Vec<_> = inline.iter().map(|endpoint| endpoint.provider.as_str()).collect();
    let now = call.now();
    call.answer(&agent.0.profiles.report(&inline, now))
}

fn set_api_key(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        provider: String,
        api_key: String,
        profile_id: Option<String>,
        agent_id: Option<String>,
    }
    let Params { provider, api_key, profile_id, agent_id } = call.params()?;
    check_agent(agent_id.as_deref())?;
    let (now, profiles) = (call.now(), agent.0.profiles.clone());
    let known = agent.settings().models.iter().any(|endpoint| endpoint.provider == provider);
    call.spawn(async move {
        let key = Secret::new(api_key.trim());
        let profile_id = profiles.set(&provider, profile_id.as_deref(), key, now).await?;
        let mut answer = json!({"provider": provider, "profileId": profile_id});
        if !known {
            answer["warning"] = json!(format!("no model of {provider:?} is configured: see models.providers"));
        }
        Ok(answer)
    })
}

fn logout(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        provider: String,
        profile_ids: Option<Vec<String>>,
        agent_id: Option<String>,
    }
    let Params { provider, profile_ids, agent_id } = call.params()?;
    check_agent(agent_id.as_deref())?;
    let profiles = agent.0.profiles.clone();
    call.spawn(async move {
        let removed = profiles.remove(&provider, profile_ids).await?;
        Ok(json!({"provider": provider, "removedProfiles": removed, "profileIds": removed}))
    })
}

/// The tools of this moment, as groups of the wire: one, for what nodes offer.
fn tool_rows(agent: &Agent, extra: impl Fn(&str) -> Value) -> Vec<Value> {
    tools::offer(&agent.0.nodes.callable())
        .iter()
        .map(|tool| {
            let mut row = json!({"id": tool.spec.name, "label": tool.command.as_deref().unwrap_or("nodes"),
                "description": tool.spec.description, "source": "core"});
            if let (Value::Object(row), Value::Object(extra)) = (&mut row, extra(&tool.spec.description)) {
                row.extend(extra);
            }
            row
        })
        .collect()
}

fn catalog(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    let tools = tool_rows(agent, |_| json!({"defaultProfiles": ["full"]}));
    call.answer(&json!({"agentId": MAIN_AGENT, "profiles": [{"id": "full", "label": "Full"}],
        "groups": [{"id": "nodes", "label": "Nodes", "source": "core", "tools": tools}]}))
}

fn effective(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    let tools = tool_rows(agent, |description| json!({"rawDescription": description}));
    call.answer(&json!({"agentId": MAIN_AGENT, "profile": "full",
        "groups": [{"id": "core", "label": "Nodes", "source": "core", "tools": tools}]}))
}

/// What chat clients send.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SendParams {
    #[serde(alias = "key")]
    session_key: String,
    agent_id: Option<String>,
    message: String,
    attachments: Option<Vec<Attachment>>,
    timeout_ms: Option<u64>,
    idempotency_key: Option<String>,
}

fn chat_send(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    send(agent, call)
}

fn sessions_send(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    send(agent, call)
}

fn send(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    let params: SendParams = call.params()?;
    check_agent(params.agent_id.as_deref())?;
    let key = key(&params.session_key)?;
    let now = call.now();
    agent.0.sessions.opened(&key, call.caller());
    // What the incumbent's clients write to stop what is going on.
    if matches!(params.message.trim().to_ascii_lowercase().as_str(), "/stop" | "/abort") {
        let stopped = agent.stop(&key, None, "aborted");
        return call.answer(&json!({"ok": true, "aborted": !stopped.is_empty(), "runIds": stopped}));
    }
    let run_id = run_id(params.idempotency_key)?;
    if matches!(params.message.trim().to_ascii_lowercase().as_str(), "/new" | "/reset") {
        // A word in a chat does no more than the method of that name may.
        if !call.caller().grant.scopes().covers(Scope::Admin) {
            return Err(RpcError::missing_scope(Scope::Admin.as_str(), &[Scope::Admin.as_str()]));
        }
        let agent = agent.clone();
        return call.spawn(async move {
            agent.reset(&key, now).await?;
            Ok(json!({"runId": run_id, "status": "ok"}))
        });
    }
    let asked = Asked {
        timeout_ms: params.timeout_ms.filter(|ms| *ms > 0),
        ..Asked::of(message(&params.message, params.attachments, now)?)
    };
    let agent = agent.clone();
    call.spawn(async move {
        let status = match agent.ask(run_id.clone(), key.clone(), operator(), asked, now).await? {
            Taken::New => "started",
            Taken::Open => "in_flight",
            Taken::Ended(_) => "ok",
        };
        Ok(json!({"runId": run_id, "status": status, "sessionKey": key.as_str()}))
    })
}

fn chat_abort(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        session_key: String,
        run_id: Option<String>,
    }
    let Params { session_key, run_id } = call.params()?;
    let stopped = agent.stop(&key(&session_key)?, run_id.as_deref(), "aborted");
    call.answer(&json!({"ok": true, "aborted": !stopped.is_empty(), "runIds": stopped}))
}

fn sessions_abort(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        key: Option<String>,
        run_id: Option<String>,
    }
    let Params { key: text, run_id } = call.params()?;
    let session = match (&text, &run_id) {
        (Some(text), _) => Some(key(text)?),
        (None, Some(run_id)) => agent.session_of(run_id),
        (None, None) => return Err(RpcError::invalid("invalid sessions.abort params: needs key or runId")),
    };
    let stopped = session.map(|key| agent.stop(&key, run_id.as_deref(), "aborted")).unwrap_or_default();
    let status = if stopped.is_empty() { "no-active-run" } else { "aborted" };
    call.answer(&json!({"ok": true, "abortedRunId": stopped.first(), "status": status}))
}

fn sessions_create(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        key: Option<String>,
        agent_id: Option<String>,
        label: Option<String>,
        display_name: Option<String>,
        model: Option<String>,
        message: Option<String>,
        task: Option<String>,
        attachments: Option<Vec<Attachment>>,
        idempotency_key: Option<String>,
    }
    let params: Params = call.params()?;
    check_agent(params.agent_id.as_deref())?;
    let key = match &params.key {
        Some(text) => key(text)?,
        None => key(&format!("dashboard:{}", id::uuid()))?,
    };
    let names = [&params.label, &params.display_name, &params.model];
    if names.into_iter().flatten().any(|name| name.len() > MAX_NAME_BYTES) {
        return Err(RpcError::invalid(format!(
            "invalid sessions.create params: label, displayName and model have {MAX_NAME_BYTES} bytes at most"
        )));
    }
    let now = call.now();
    let text = params.message.or(params.task).unwrap_or_default();
    let first = (!text.trim().is_empty()).then(|| message(&text, params.attachments, now)).transpose()?;
    let run_id = run_id(params.idempotency_key)?;
    agent.0.sessions.opened(&key, call.caller());
    let agent = agent.clone();
    call.spawn(async move {
        let change = move |session: &mut Session| {
            let fill = |place: &mut Option<String>, value: Option<String>| {
                if value.is_some() {
                    *place = value;
                }
            };
            fill(&mut session.label, params.label);
            fill(&mut session.display_name, params.display_name);
            fill(&mut session.model, params.model);
            Ok(())
        };
        let session = agent.0.sessions.update(&key, operator(), "create", change, now).await?;
        let mut answer = json!({"ok": true, "key": key.as_str(), "sessionId": session.session_id,
            "entry": agent.0.sessions.row(&key, &session)});
        if let Some(message) = first {
            let asked = Asked::of(message);
            match agent.ask(run_id.clone(), key, operator(), asked, now).await {
                Ok(_) => {
                    answer["runStarted"] = json!(true);
                    answer["runId"] = json!(run_id);
                }
                Err(error) => {
                    answer["runStarted"] = json!(false);
                    answer["runError"] = json!(error);
                }
            }
        }
        Ok(answer)
    })
}

impl Agent {
    /// Stops what a session does and begins it anew.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn reset(&self, key: &SessionKey, now: UnixMs) -> Result<std::sync::Arc<Session>, RpcError> {
        self.settle(key).await;
        self.0.sessions.reset(key, now).await
    }

    /// Stops the runs of a session and waits for their end, for a while.
    pub async fn settle(&self, key: &SessionKey) {
        for run_id in self.stop(key, None, "aborted") {
            let _ = self.wait(&run_id, Duration::from_secs(5)).await;
        }
    }
}

fn sessions_reset(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    #[derive(Deserialize)]
    struct Params {
        key: String,
    }
    let Params { key: text } = call.params()?;
    let (key, now, agent) = (key(&text)?, call.now(), agent.clone());
    call.spawn(async move {
        let session = agent.reset(&key, now).await?;
        let row = agent.0.sessions.row(&key, &session);
        Ok(json!({"ok": true, "key": key.as_str(), "entry": row}))
    })
}

fn sessions_delete(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        key: String,
        delete_transcript: Option<bool>,
        expected_session_id: Option<String>,
    }
    let Params { key: text, delete_transcript, expected_session_id } = call.params()?;
    let key = key(&text)?;
    if *key.as_str() == *crate::sessions::key::MAIN_KEY {
        return Err(RpcError::invalid("the main session cannot be deleted; sessions.reset empties it"));
    }
    let current = agent.0.sessions.get(&key);
    if let (Some(expected), Some(current)) = (&expected_session_id, &current)
        && *expected != current.session_id
    {
        return Err(RpcError::invalid("the session was reset in the meantime; look at it again"));
    }
    let (now, agent) = (call.now(), agent.clone());
    call.spawn(async move {
        agent.settle(&key).await;
        let deleted = agent.0.sessions.delete(&key, delete_transcript.unwrap_or(true), now).await?;
        Ok(json!({"ok": true, "key": key.as_str(), "deleted": deleted, "archived": []}))
    })
}

/// Calls a tool as the agent would, for an operator. What needs a person's approval is not called this way.
fn tools_invoke(agent: &Agent, call: Call<'_>) -> Result<Routed, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        name: String,
        args: Option<Value>,
        idempotency_key: Option<String>,
    }
    let Params { name, args, idempotency_key } = call.params()?;
    let agent = agent.clone();
    let caller = call.caller();
    let whose = caller.grant.device().map_or_else(|| caller.id.to_string(), |device| device.to_string());
    call.spawn(async move {
        let key = idempotency_key.as_deref().map(|key| (whose.as_str(), key));
        Ok(match agent.invoke_tool(&name, &args.unwrap_or_else(|| json!({})), key).await {
            Ok(output) => json!({"ok": true, "toolName": name, "source": "core", "output": output}),
            Err(error) => {
                let said = json!({"code": error.code(), "message": error.to_string()});
                json!({"ok": false, "toolName": name, "source": "core", "error": said})
            }
        })
    })
}

/// Why a tool gave no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// There is no tool of that name now.
    #[error("there is no tool {0:?}: no connected node offers it")]
    Unknown(String),
    /// The arguments are not what it takes.
    #[error("{0}")]
    Arguments(String),
    /// A person has to approve it.
    #[error("exec is the agent's: it asks for approval there")]
    NeedsApproval,
    /// It was called, and failed.
    #[error("{0}")]
    Failed(String),
}

impl ToolError {
    /// `error.code` of the wire.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unknown(_) | Self::Arguments(_) => "invalid_arguments",
            Self::NeedsApproval => "requires_approval",
            Self::Failed(_) => "tool_failed",
        }
    }
}

impl Agent {
    /// Calls a tool as a run would. A repeat of `once`, whose it is and their idempotency key, does not call it again.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn invoke_tool(
        &self,
        name: &str,
        arguments: &Value,
        once: Option<(&str, &str)>,
    ) -> Result<Value, ToolError> {
        let callable = self.0.nodes.callable();
        let offered = tools::offer(&callable);
        if !offered.iter().any(|tool| tool.spec.name == name) {
            return Err(ToolError::Unknown(name.chars().take(64).collect()));
        }
        match tools::plan(&offered, &callable, name, arguments) {
            tools::Plan::Say(said, false) => Ok(serde_json::from_str(&said).unwrap_or_else(|_| json!(said))),
            tools::Plan::Say(why, true) => Err(ToolError::Arguments(why)),
            tools::Plan::Exec { .. } => Err(ToolError::NeedsApproval),
            tools::Plan::Invoke { node_id, command, params, timeout_ms } => {
                let key = once.map(|(whose, key)| SecretHash::of(&format!("{whose}\n{key}")).to_hex());
                let key = key.unwrap_or_else(id::uuid);
                self.0.nodes.call(&node_id, &command, &params, timeout_ms, &key).await.map_err(ToolError::Failed)
            }
        }
    }
}
