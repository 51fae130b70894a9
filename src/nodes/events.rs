//! What nodes tell of themselves with `node.event`, and what becomes of it.
//!
//! An event counts only from the node's current connection and, but for signs of life, only once its surface is
//! approved. What nobody here listens to is answered as not handled, never as an error: nodes are newer or
//! older than the gateway.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::json;

use super::live::Session;
use super::publications::{Activity, HostStats, TimedStats};
use super::record::SeenReason;
use super::{Nodes, RAPID_MS, SEEN_INTERVAL_MS, note};
use crate::clock::UnixMs;
use crate::rpc::catalog::Event;
use crate::rpc::dispatch::{Call, Outcome};
use crate::rpc::error::RpcError;

/// The result of an event (the wire's `NodeEventResult`).
#[derive(Debug, Serialize)]
struct Handled<'a> {
    ok: bool,
    event: &'a str,
    handled: bool,
    reason: &'static str,
}

/// Bytes of an event.
const MAX_EVENT_BYTES: usize = 256 * 1024;
/// Seconds of idleness that mean anything.
const MAX_IDLE_SECONDS: u64 = 30 * 24 * 60 * 60;

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum ActivityReport {
    #[serde(rename_all = "camelCase")]
    Idle {
        idle_seconds: u64,
        #[serde(default)]
        source: Source,
        #[serde(default)]
        saturated: bool,
    },
    Clear {
        action: Clear,
    },
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source {
    App,
    #[default]
    System,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Clear {
    Clear,
}

#[derive(Deserialize)]
struct Alive {
    #[serde(default)]
    trigger: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RunEvent {
    run_id: Option<String>,
}

/// `node.event`.
pub(super) fn event(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        event: String,
        payload: Option<Value>,
        #[serde(rename = "payloadJSON")]
        payload_json: Option<String>,
    }
    if call.raw_params().len() > MAX_EVENT_BYTES {
        return Err(RpcError::invalid(format!("node.event: must not have more than {MAX_EVENT_BYTES} bytes")));
    }
    let Params { event, payload, payload_json } = call.params()?;
    if event.is_empty() {
        return Err(RpcError::invalid("invalid node.event params: at event: must not be empty"));
    }
    let payload = match payload_json {
        Some(text) => serde_json::from_str(&text).unwrap_or_default(),
        None => payload.unwrap_or_default(),
    };
    let now = call.now();
    let Some(session) = nodes.0.live.of(call.caller()) else {
        return call.answer(&Handled { ok: true, event: &event, handled: false, reason: "stale_connection" });
    };
    let answer = |call: Call<'_>, (handled, reason)| call.answer(&Handled { ok: true, event: &event, handled, reason });
    match event.as_str() {
        "node.presence.alive" => alive(nodes, &session, call, payload, now, &event),
        _ if !nodes.0.is_approved(session.node_id) => answer(call, (false, "awaiting_approval")),
        "node.host.stats" => answer(call, host_stats(nodes, &session, payload, now)),
        "node.presence.activity" => answer(call, activity(nodes, &session, payload, now)),
        "exec.started" | "exec.finished" | "exec.denied" => answer(call, run_event(&session, &event, payload)),
        _ => answer(call, (false, "unsupported_event")),
    }
}

/// The node was alive, if only in the background. Durable before it is acknowledged, once a minute.
fn alive(
    nodes: &Nodes,
    session: &Session,
    call: Call<'_>,
    payload: Value,
    now: UnixMs,
    event: &str,
) -> Result<Outcome, RpcError> {
    let answer = |event, handled, reason| Handled { ok: true, event, handled, reason };
    let Ok(Alive { trigger }) = serde_json::from_value(payload) else {
        return call.answer(&answer(event, false, "invalid_payload"));
    };
    let seen = nodes.0.known().get(session.node_id).and_then(|record| record.seen);
    if seen.is_some_and(|(at, reason)| reason != SeenReason::Connect && now.since(at) < SEEN_INTERVAL_MS) {
        return call.answer(&answer(event, true, "throttled"));
    }
    let (nodes, node_id, reason) = (nodes.clone(), session.node_id, SeenReason::parse(&trigger));
    let event = event.to_owned();
    call.spawn(async move {
        let kept = nodes.keep(node_id, move |record| record.seen = Some((now, reason))).await?;
        let (handled, reason) = if kept { (true, "persisted") } else { (false, "not_paired") };
        Ok(json!({"ok": true, "event": event, "handled": handled, "reason": reason}))
    })
}

/// The node's resources. Shown at once; kept for when it is away behind its back.
fn host_stats(nodes: &Nodes, session: &Session, payload: Value, now: UnixMs) -> (bool, &'static str) {
    let Some(stats) = serde_json::from_value(payload).ok().filter(HostStats::is_plausible) else {
        return (false, "invalid_payload");
    };
    let stats = TimedStats { stats, updated_at_ms: now };
    {
        let mut published = session.publications();
        if published.host_stats.is_some_and(|before| now.since(before.updated_at_ms) < RAPID_MS) {
            return (true, "throttled");
        }
        published.host_stats = Some(stats);
    }
    note(session.node_id, nodes.keep(session.node_id, move |record| record.host_stats = Some(stats)));
    let payload = json!({"nodeId": session.node_id.to_string(), "hostStats": stats});
    nodes.0.hub.broadcast(Event::NODE_HOST_STATS, &payload);
    (true, "updated")
}

/// When the node's user was last active. Counted back from now: a node's clock is not believed.
fn activity(nodes: &Nodes, session: &Session, payload: Value, now: UnixMs) -> (bool, &'static str) {
    let Ok(report) = serde_json::from_value(payload) else { return (false, "invalid_payload") };
    let (idle_seconds, source, saturated) = match report {
        ActivityReport::Idle { idle_seconds, source, saturated } if idle_seconds <= MAX_IDLE_SECONDS => {
            (idle_seconds, source, saturated)
        }
        ActivityReport::Idle { .. } => return (false, "invalid_payload"),
        ActivityReport::Clear { action: Clear::Clear } => {
            let cleared = session.publications().activity.take().is_some();
            if cleared {
                nodes.0.show_activity(session, None);
            }
            return (true, if cleared { "cleared" } else { "already_clear" });
        }
    };
    let may_see_system = session.effective.load().surface.permissions.get("accessibility") == Some(&true);
    let is_mac_app = &*session.connection.client.id == "openclaw-macos";
    if !(if source == Source::App { is_mac_app } else { may_see_system }) {
        return (false, "permission_required");
    }
    let last_active_at_ms = UnixMs(now.0.saturating_sub(idle_seconds * 1000));
    let activity = {
        let mut published = session.publications();
        let before = published.activity;
        if before.is_some_and(|before| now.since(before.presence_updated_at_ms) < RAPID_MS) {
            return (true, "throttled");
        }
        let last_active_at_ms = match before {
            // A saturated report says "at least so long ago": it can't be newer than what is known.
            Some(before) if saturated => before.last_active_at_ms,
            Some(before) => before.last_active_at_ms.max(last_active_at_ms),
            None => last_active_at_ms,
        };
        *published.activity.insert(Activity { last_active_at_ms, presence_updated_at_ms: now })
    };
    nodes.0.show_activity(session, Some(activity));
    (true, "updated")
}

/// The life of a run. Only of one that the node was asked for through this connection.
fn run_event(session: &Session, event: &str, payload: Value) -> (bool, &'static str) {
    let run_id = serde_json::from_value(payload).ok().and_then(|RunEvent { run_id }| run_id);
    let mut published = session.publications();
    let Some(run_id) = run_id.filter(|run_id| published.runs.contains(run_id.trim())) else {
        return (false, "unmatched_exec_event");
    };
    if event != "exec.started" {
        published.runs.end(run_id.trim());
    }
    // No session here to tell.
    (false, "no_listener")
}
