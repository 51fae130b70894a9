//! The RPC methods of the domain.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::pairing::{self, PairedRow, PendingRow, unknown_node};
use super::publications::{self, Skill, ToolDescriptor};
use super::queue::{Priority, WORK_TTL_MS, WorkKind};
use super::{Nodes, events, invoke};
use crate::auth::DeviceId;
use crate::rpc::dispatch::{Call, Method, Outcome};
use crate::rpc::error::RpcError;
use crate::rpc::scope::Scope;
use crate::task;

/// The table that `methods.rs` mounts.
pub const METHODS: &[Method<Nodes>] = &[
    Method { name: "node.invoke", handler: invoke::invoke },
    Method { name: "node.invoke.result", handler: invoke::result },
    Method { name: "node.invoke.progress", handler: invoke::progress },
    Method { name: "node.list", handler: list },
    Method { name: "node.describe", handler: describe },
    Method { name: "environments.list", handler: environments },
    Method { name: "node.rename", handler: rename },
    Method { name: "node.event", handler: events::event },
    Method { name: "node.pair.list", handler: pair_list },
    Method { name: "node.pair.approve", handler: pair_approve },
    Method { name: "node.pair.reject", handler: pair_reject },
    Method { name: "node.pair.remove", handler: pair_remove },
    Method { name: "node.pluginTools.update", handler: plugin_tools },
    Method { name: "node.skills.update", handler: skills },
    Method { name: "node.runnerInventory.update", handler: runner_inventory },
    Method { name: "node.pluginSurface.refresh", handler: plugin_surface },
    Method { name: "node.pending.enqueue", handler: enqueue },
    Method { name: "node.pending.drain", handler: drain },
    Method { name: "node.pending.pull", handler: pull },
    Method { name: "node.pending.ack", handler: ack },
    Method { name: "skills.bins", handler: skills_bins },
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeParams {
    node_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RequestParams {
    request_id: String,
}

fn node_id(text: &str) -> Result<DeviceId, RpcError> {
    DeviceId::parse(text.trim()).ok_or_else(unknown_node)
}

/// The node that calls.
fn own_id(call: &Call<'_>) -> Result<DeviceId, RpcError> {
    call.caller().grant.device().ok_or_else(|| RpcError::invalid("a node without a device identity has no place here"))
}

/// Bytes of what a node publishes at once. What is kept of it is bounded tighter.
const MAX_PUBLISHED_BYTES: usize = 8 * 1024 * 1024;

/// Parses what a node publishes: parameters that may carry raw JSON inside.
fn published<T: DeserializeOwned>(call: &Call<'_>, method: &str) -> Result<T, RpcError> {
    if call.raw_params().len() > MAX_PUBLISHED_BYTES {
        return Err(RpcError::invalid(format!("{method}: must not have more than {MAX_PUBLISHED_BYTES} bytes")));
    }
    let mut parser = serde_json::Deserializer::from_str(call.raw_params());
    serde_path_to_error::deserialize(&mut parser)
        .map_err(|error| RpcError::invalid(format!("invalid {method} params: at {}: {}", error.path(), error.inner())))
}

fn list(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.no_params()?;
    let pairing = call.caller().grant.scopes().covers(Scope::Pairing);
    let now = call.now();
    call.answer_json(&nodes.list(pairing, now))
}

/// The gateway's own machine and the nodes, as places where something can run.
fn environments(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct List {
        nodes: Vec<Row>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Row {
        node_id: String,
        display_name: Option<String>,
        platform: Option<String>,
        #[serde(default)]
        connected: bool,
        #[serde(default)]
        caps: Vec<String>,
        #[serde(default)]
        commands: Vec<String>,
    }
    let list: List = serde_json::from_slice(&nodes.list(false, call.now()))
        .map_err(|error| RpcError::unavailable(format!("the list of nodes could not be read: {error}")))?;
    let own = json!({"id": "gateway", "type": "local", "label": "Gateway", "status": "available",
        "platform": std::env::consts::OS, "sessionHost": true, "trust": "persistent", "capabilities": []});
    let rows = list.nodes.into_iter().map(|row| {
        let mut all = json!({"id": format!("node:{}", row.node_id), "type": "node",
            "label": row.display_name.unwrap_or(row.node_id), "sessionHost": false, "trust": "persistent",
            "status": if row.connected { "available" } else { "unavailable" },
            "capabilities": row.caps, "invocableCommands": if row.connected { row.commands } else { Vec::new() }});
        if let Some(platform) = row.platform {
            all["platform"] = json!(platform);
        }
        all
    });
    call.answer(&json!({"environments": std::iter::once(own).chain(rows).collect::<Vec<_>>()}))
}

fn describe(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    let NodeParams { node_id: id } = call.params()?;
    let pairing = call.caller().grant.scopes().covers(Scope::Pairing);
    let row = nodes.describe(node_id(&id)?, pairing, call.now()).ok_or_else(unknown_node)?;
    call.answer_json(&row)
}

fn rename(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Params {
        node_id: String,
        display_name: String,
    }
    let Params { node_id: id, display_name } = call.params()?;
    let (id, by, nodes) = (node_id(&id)?, pairing::manager(call.caller()), nodes.clone());
    call.spawn(async move { nodes.rename(id, display_name, by).await })
}

fn pair_list(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.no_params()?;
    let by = pairing::manager(call.caller());
    let answer = {
        let known = nodes.0.known();
        let mine = || known.iter().filter(|(id, _)| by.reaches(*id));
        let mut pending: Vec<_> = mine().filter_map(|(id, record)| PendingRow::of(id, record)).collect();
        pending.sort_by(|a, b| b.order().cmp(&a.order()));
        let mut paired: Vec<_> = mine().filter_map(|(id, record)| PairedRow::of(id, record)).collect();
        paired.sort_by(|a, b| b.order().cmp(&a.order()));
        crate::hub::registry::encode(&json!({"pending": pending, "paired": paired}))
    };
    call.answer_json(&answer)
}

fn pair_approve(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    let RequestParams { request_id } = call.params()?;
    let (by, now, nodes) = (pairing::manager(call.caller()), call.now(), nodes.clone());
    call.spawn(async move { nodes.approve(request_id, by, now).await })
}

fn pair_reject(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    let RequestParams { request_id } = call.params()?;
    let (by, now, nodes) = (pairing::manager(call.caller()), call.now(), nodes.clone());
    call.spawn(async move { nodes.reject(request_id, by, now).await })
}

fn pair_remove(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    let NodeParams { node_id: id } = call.params()?;
    let (id, by, now, nodes) = (node_id(&id)?, pairing::manager(call.caller()), call.now(), nodes.clone());
    let (hold, responder) = (call.hold(), call.later());
    task::spawn("node.pair.remove", async move {
        match nodes.remove(id, by, now).await {
            Ok(()) => responder.answer(&json!({"nodeId": id.to_string()})),
            Err(error) => responder.fail(&error),
        };
        drop(hold);
    });
    Ok(Outcome::Held)
}

/// A node publishes its tools anew; the answer has those that agents may use now.
fn plugin_tools(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        tools: Vec<ToolDescriptor>,
    }
    let Params { tools } = published(&call, "node.pluginTools.update")?;
    let session = nodes.0.live.of(call.caller()).ok_or_else(unknown_node)?;
    let tools = publications::tools(tools);
    let visible = {
        let mut published = session.publications();
        // Asked under the lock: who switches it off empties the list under it afterwards.
        published.tools = if nodes.0.settings.load().plugin_tools { tools } else { Vec::new() };
        published.visible_tools(&session.effective.load().surface)
    };
    nodes.0.known().touch(session.node_id);
    let mut answer = format!(r#"{{"nodeId":{},"tools":"#, session.node_id_json).into_bytes();
    answer.extend_from_slice(&visible);
    answer.push(b'}');
    call.answer_json(&answer)
}

/// A node publishes its skills anew; the answer has those that were taken.
fn skills(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        skills: Vec<Skill>,
    }
    let Params { skills } = published(&call, "node.skills.update")?;
    let session = nodes.0.live.of(call.caller()).ok_or_else(unknown_node)?;
    let skills = publications::skills(skills);
    let mut published = session.publications();
    published.skills = if nodes.0.settings.load().allow_skills { skills } else { Vec::new() };
    let answer = json!({"nodeId": session.node_id.to_string(), "skills": published.skills});
    drop(published);
    call.answer(&answer)
}

/// A node says what workers it could host. This gateway sends none: it takes note of nothing, and says so by
/// `sessionHost: false` wherever nodes are listed.
fn runner_inventory(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "the shape is checked; there is nothing here to run on a node")]
    struct Params {
        protocol_features: Vec<String>,
        worker_host: Option<serde_json::Value>,
        worker_runs: Option<serde_json::Value>,
    }
    call.params::<Params>()?;
    let session = nodes.0.live.of(call.caller()).ok_or_else(unknown_node)?;
    call.answer(&json!({"nodeId": session.node_id.to_string()}))
}

/// There are no plugins here, so none has a surface to refresh.
fn plugin_surface(_: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "no surface has an address to compare with")]
    struct Params {
        surface: String,
        observed_url: Option<String>,
    }
    let Params { surface, .. } = call.params()?;
    let surface: String = surface.trim().chars().filter(|c| !c.is_control()).take(64).collect();
    Err(RpcError::unavailable(format!("{surface} plugin surface unavailable")).retryable(false))
}

fn enqueue(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "this gateway can't wake a device, whether asked to or not")]
    struct Params {
        node_id: String,
        #[serde(rename = "type")]
        kind: WorkKind,
        priority: Option<Priority>,
        expires_in_ms: Option<u64>,
        wake: Option<bool>,
    }
    let Params { node_id: id, kind, priority, expires_in_ms, .. } = call.params()?;
    let ttl_ms = expires_in_ms.unwrap_or(WORK_TTL_MS);
    if !(1000..=WORK_TTL_MS).contains(&ttl_ms) {
        return Err(RpcError::invalid(format!(
            "invalid node.pending.enqueue params: at expiresInMs: must be from 1000 to {WORK_TTL_MS}"
        )));
    }
    let (id, now, nodes) = (node_id(&id)?, call.now(), nodes.clone());
    call.spawn(async move { nodes.enqueue(id, kind, priority.unwrap_or_default(), ttl_ms, now).await })
}

fn drain(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Params {
        max_items: Option<usize>,
    }
    let Params { max_items } = call.params()?;
    if max_items.is_some_and(|most| !(1..=10).contains(&most)) {
        return Err(RpcError::invalid("invalid node.pending.drain params: at maxItems: must be from 1 to 10"));
    }
    let (id, now, nodes) = (own_id(&call)?, call.now(), nodes.clone());
    call.spawn(async move { nodes.drain(id, max_items, now).await })
}

fn pull(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.no_params()?;
    let (id, now, nodes) = (own_id(&call)?, call.now(), nodes.clone());
    call.spawn(async move { nodes.pull(id, now).await })
}

fn ack(nodes: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        ids: Vec<String>,
    }
    let Params { mut ids } = call.params()?;
    ids.truncate(super::queue::MAX_ACTIONS);
    let (id, now, nodes) = (own_id(&call)?, call.now(), nodes.clone());
    call.spawn(async move { nodes.ack(id, ids, now).await })
}

/// The programs that skills of the gateway need: it has no skills.
fn skills_bins(_: &Nodes, call: Call<'_>) -> Result<Outcome, RpcError> {
    call.no_params()?;
    call.answer(&json!({"bins": []}))
}
