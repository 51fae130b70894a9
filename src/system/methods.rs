//! The RPC methods of the domain.

use serde::Deserialize;
use serde_json::json;

use super::journal::{self, Tail};
use super::{System, stability};
use crate::hub::presence::Row;
use crate::rpc::catalog::Event;
use crate::rpc::dispatch::{Call, Method, Outcome};
use crate::rpc::error::RpcError;

/// The table that `methods.rs` mounts.
pub const METHODS: &[Method<System>] = &[
    Method { name: "health", handler: health },
    Method { name: "status", handler: status },
    Method { name: "system-presence", handler: system_presence },
    Method { name: "system-event", handler: system_event },
    Method { name: "gateway.identity.get", handler: identity },
    Method { name: "last-heartbeat", handler: last_heartbeat },
    Method { name: "set-heartbeats", handler: set_heartbeats },
    Method { name: "logs.tail", handler: logs_tail },
    Method { name: "config.get", handler: config_get },
    Method { name: "diagnostics.stability", handler: diagnostics_stability },
    Method { name: "system.info", handler: info },
];

fn health(system: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "there is nothing to probe yet; the types of the parameters are checked all the same")]
    struct Params {
        probe: Option<bool>,
        include_sensitive: Option<bool>,
    }
    if call.raw_params() != "{}" {
        call.params::<Params>()?;
    }
    let now = call.now();
    call.answer_with(|out| system.write_health(now, out))
}

fn diagnostics_stability(system: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    let query: stability::Query = call.params()?;
    let limit = query
        .limit()
        .ok_or_else(|| RpcError::invalid("invalid diagnostics.stability params: limit must be 1 to 1000"))?;
    let snapshot = system.stability().snapshot(&query, limit, call.now());
    call.answer(&snapshot)
}

fn info(system: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.no_params()?;
    let machine = system.machine();
    call.answer(&machine.ok_or_else(|| RpcError::unavailable("system.info is answered on Linux alone"))?)
}

fn status(system: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "there are no channels to summarise yet; the types are checked all the same")]
    struct Params {
        include_channel_summary: Option<bool>,
        include_cli_projection: Option<bool>,
    }
    call.params::<Params>()?;
    call.answer(&system.status())
}

fn system_presence(system: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.no_params()?;
    system.hub().presence().with_json(|list| call.answer_json(list))
}

/// A program on the host says something about it: a row of the presence list.
fn system_event(system: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Params {
        text: String,
        device_id: Option<Box<str>>,
        instance_id: Option<Box<str>>,
        host: Option<Box<str>>,
        ip: Option<Box<str>>,
        version: Option<Box<str>>,
        platform: Option<Box<str>>,
        device_family: Option<Box<str>>,
        model_identifier: Option<Box<str>>,
        mode: Option<Box<str>>,
        last_input_seconds: Option<u64>,
        reason: Option<Box<str>>,
        tags: Option<Vec<String>>,
        roles: Option<Vec<String>>,
        scopes: Option<Vec<String>>,
    }
    let params: Params = call.params()?;
    if params.text.trim().is_empty() {
        return Err(RpcError::invalid("invalid system-event params: at text: must not be empty"));
    }
    // Roles and scopes are granted, not announced: what a caller says of them is not shown.
    let _ = (params.roles, params.scopes);
    let key = params.device_id.clone().or_else(|| params.instance_id.clone()).or_else(|| params.host.clone());
    let key = key.unwrap_or_else(|| params.text.chars().take(64).collect());
    let row = Row {
        host: params.host,
        ip: params.ip,
        version: params.version,
        platform: params.platform,
        device_family: params.device_family,
        model_identifier: params.model_identifier,
        mode: params.mode,
        last_input_seconds: params.last_input_seconds,
        reason: params.reason,
        tags: params.tags,
        text: Some(params.text),
        ts: call.now(),
        device_id: params.device_id,
        instance_id: params.instance_id,
        ..Row::default()
    };
    system.hub().presence().note(&key, row);
    call.answer(&json!({"ok": true}))
}

fn identity(system: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.no_params()?;
    let identity = &system.facts().identity;
    call.answer(&json!({"deviceId": identity.device_id, "publicKey": identity.public_key}))
}

/// There is no agent that could have a heartbeat: the answer is `null`, as it is before the first one.
fn last_heartbeat(_: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.answer(&())
}

fn set_heartbeats(system: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        enabled: bool,
    }
    let Params { enabled } = call.params()?;
    if system.heartbeats() != enabled {
        system.set_heartbeats(enabled);
        tracing::info!(enabled, "heartbeats switched");
        system.hub().broadcast(Event::HEARTBEAT, &json!({"ts": call.now(), "enabled": enabled}));
    }
    call.answer(&json!({"ok": true, "enabled": enabled}))
}

fn logs_tail(system: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    let tail: Tail = call.params()?;
    tail.check()?;
    let folder = system.facts().log_dir.clone();
    call.spawn(async move {
        // A file is read: that is not for the threads that carry frames.
        tokio::task::spawn_blocking(move || journal::tail(&folder, &tail))
            .await
            .map_err(|_| RpcError::unavailable("the log could not be read; see the gateway's standard error"))?
    })
}

fn config_get(system: &System, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.no_params()?;
    call.answer_json(&system.config())
}
