//! What waits for a node that is away or asleep.
//!
//! Two queues: *work* that an operator leaves (`node.pending.enqueue`, taken with `node.pending.drain`), one item
//! a type; and *actions*, calls that an app could not carry out in the background (`node.pending.pull` and
//! `node.pending.ack`), at most [`MAX_ACTIONS`], the oldest going first. Both are in the store and nowhere
//! else: they are rare, and must outlive a restart.

use std::cmp::Reverse;
use std::sync::Arc;

use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Nodes;
use super::pairing::unknown_node;
use super::record::{json as encode, time};
use crate::auth::DeviceId;
use crate::clock::UnixMs;
use crate::id;
use crate::rpc::error::RpcError;
use crate::store::{Change, Tx};

/// Actions that wait for one node.
pub(super) const MAX_ACTIONS: usize = 64;
/// How long an action waits.
pub(super) const ACTION_TTL_MS: u64 = 10 * 60_000;
/// How long work waits, unless said otherwise.
pub(super) const WORK_TTL_MS: u64 = 24 * 60 * 60_000;
/// Items of work that a node takes at once, unless it says otherwise.
const DEFAULT_DRAIN: usize = 4;

/// A call to carry out when the app is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Action {
    command: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    params_json: Option<Box<str>>,
    idempotency_key: Box<str>,
}

impl Action {
    /// The action that a call becomes.
    pub(super) fn new(command: &str, params: Option<&str>, idempotency_key: &str) -> Self {
        Self { command: command.into(), params_json: params.map(Box::from), idempotency_key: idempotency_key.into() }
    }
}

/// An action was put away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Put {
    /// Its id.
    pub id: String,
    /// Actions that had to go for it.
    pub dropped: Vec<String>,
}

/// What an operator may want of a sleeping node: the closed list of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum WorkKind {
    /// Tell how you are.
    #[serde(rename = "status.request")]
    Status,
    /// Tell where you are.
    #[serde(rename = "location.request")]
    Location,
}

/// How urgent it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Priority {
    /// As ever.
    #[default]
    Normal,
    /// First.
    High,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Work {
    #[serde(rename = "type")]
    kind: WorkKind,
    priority: Priority,
}

/// The two queues, as they stand in the store.
const WORK: &str = "work";
const ACTIONS: &str = "action";

/// One row of a queue.
struct Item<T> {
    id: String,
    item: T,
    created_at: i64,
    expires_at: i64,
}

impl Item<Work> {
    fn listed(&self) -> Value {
        json!({"id": self.id, "type": self.item.kind, "priority": self.item.priority, "createdAtMs": self.created_at,
            "expiresAtMs": self.expires_at})
    }
}

/// The items of a node that have not lapsed, the oldest first.
fn items<T: serde::de::DeserializeOwned>(
    tx: &Tx<'_>,
    node_id: DeviceId,
    queue: &str,
    now: UnixMs,
) -> rusqlite::Result<Vec<Item<T>>> {
    tx.prepare_cached("DELETE FROM node_item WHERE device_id = ?1 AND expires_at_ms <= ?2")?
        .execute((node_id.as_bytes(), time(now)))?;
    let mut statement = tx.prepare_cached(
        "SELECT id, item, created_at_ms, expires_at_ms FROM node_item WHERE device_id = ?1 AND queue = ?2
         ORDER BY created_at_ms, id",
    )?;
    let rows = statement.query_map((node_id.as_bytes(), queue), |row| {
        let text: String = row.get(1)?;
        let item = serde_json::from_str(&text)
            .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error.into()))?;
        Ok(Item { id: row.get(0)?, item, created_at: row.get(2)?, expires_at: row.get(3)? })
    })?;
    rows.collect()
}

fn insert<T: Serialize>(tx: &Tx<'_>, node_id: DeviceId, queue: &str, item: &Item<T>) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT INTO node_item (device_id, id, queue, item, created_at_ms, expires_at_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute((node_id.as_bytes(), &item.id, queue, encode(&item.item)?, item.created_at, item.expires_at))?;
    Ok(())
}

fn delete(tx: &Tx<'_>, node_id: DeviceId, id: &str) -> rusqlite::Result<bool> {
    let deleted = tx
        .prepare_cached("DELETE FROM node_item WHERE device_id = ?1 AND id = ?2")?
        .execute((node_id.as_bytes(), id))?;
    Ok(deleted > 0)
}

/// Counts changes of a node's work; `step` is 0 to look.
fn revision(tx: &Tx<'_>, node_id: DeviceId, step: i64) -> rusqlite::Result<Option<i64>> {
    tx.prepare_cached(
        "UPDATE node SET work_revision = work_revision + ?2 WHERE device_id = ?1 RETURNING work_revision",
    )?
    .query_row((node_id.as_bytes(), step), |row| row.get(0))
    .optional()
}

impl Nodes {
    /// Leaves work for a node. Work of a type that waits already is not left twice.
    pub(super) async fn enqueue(
        &self,
        node_id: DeviceId,
        kind: WorkKind,
        priority: Priority,
        ttl_ms: u64,
        now: UnixMs,
    ) -> Result<Value, RpcError> {
        let op = move |tx: &Tx<'_>| {
            let mut revised = revision(tx, node_id, 0)?.ok_or_else(unknown_node)?;
            let waiting = items::<Work>(tx, node_id, WORK, now)?.into_iter().find(|item| item.item.kind == kind);
            let item = match waiting {
                Some(item) => item,
                None => {
                    let item = Item {
                        id: id::uuid(),
                        item: Work { kind, priority },
                        created_at: time(now),
                        expires_at: time(now.plus(ttl_ms)),
                    };
                    insert(tx, node_id, WORK, &item)?;
                    revised = revision(tx, node_id, 1)?.unwrap_or(revised);
                    item
                }
            };
            // This gateway has no way to wake a device.
            let answer = json!({"nodeId": node_id.to_string(), "revision": revised, "queued": item.listed(), "wakeTriggered": false});
            Ok(Change::of(answer))
        };
        self.0.store.write(op).await
    }

    /// Gives a node its work, the urgent first, and takes it out of the queue. A node that asks is asked for its
    /// status in any case.
    pub(super) async fn drain(&self, node_id: DeviceId, most: Option<usize>, now: UnixMs) -> Result<Value, RpcError> {
        let op = move |tx: &Tx<'_>| {
            let most = most.unwrap_or(DEFAULT_DRAIN);
            let mut revised = revision(tx, node_id, 0)?.ok_or_else(unknown_node)?;
            let mut waiting = items::<Work>(tx, node_id, WORK, now)?;
            waiting.sort_by_key(|item| (Reverse(item.item.priority), item.created_at));
            let asks_status = waiting.iter().any(|item| item.item.kind == WorkKind::Status);
            let left = waiting.split_off(most.min(waiting.len()));
            for item in &waiting {
                delete(tx, node_id, &item.id)?;
            }
            if !waiting.is_empty() {
                revised = revision(tx, node_id, 1)?.unwrap_or(revised);
            }
            let mut given: Vec<Value> = waiting.iter().map(Item::listed).collect();
            let mut has_more = !left.is_empty();
            if !asks_status {
                if given.len() < most {
                    given.push(json!({"id": "baseline-status", "type": WorkKind::Status, "priority": "default",
                        "createdAtMs": now, "expiresAtMs": null}));
                } else {
                    has_more = true;
                }
            }
            Ok(Change::of(
                json!({"nodeId": node_id.to_string(), "revision": revised, "items": given, "hasMore": has_more}),
            ))
        };
        self.0.store.write(op).await
    }

    /// Puts an action away. One with the same key that waits already stands for it.
    pub(super) async fn put_action(&self, node_id: DeviceId, action: Action, now: UnixMs) -> Result<Put, RpcError> {
        let op = move |tx: &Tx<'_>| {
            let waiting = items::<Action>(tx, node_id, ACTIONS, now)?;
            if let Some(same) = waiting.iter().find(|item| item.item.idempotency_key == action.idempotency_key) {
                return Ok(Change::of(Put { id: same.id.clone(), dropped: Vec::new() }));
            }
            let too_many = (waiting.len() + 1).saturating_sub(MAX_ACTIONS);
            let dropped: Vec<String> = waiting.into_iter().take(too_many).map(|item| item.id).collect();
            for old in &dropped {
                delete(tx, node_id, old)?;
                tracing::warn!(node = %node_id, action = %old, "an action was dropped: too many wait for the node");
            }
            let item =
                Item { id: id::uuid(), item: action, created_at: time(now), expires_at: time(now.plus(ACTION_TTL_MS)) };
            insert(tx, node_id, ACTIONS, &item)?;
            Ok(Change::of(Put { id: item.id, dropped }))
        };
        self.0.store.write(op).await
    }

    /// The actions that wait for a node; those it may not be asked for any more are taken out.
    pub(super) async fn pull(&self, node_id: DeviceId, now: UnixMs) -> Result<Value, RpcError> {
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            let effective = inner.live.get(node_id).map(|session| session.effective.load_full());
            let mut actions = Vec::new();
            for Item { id: action_id, item, created_at, .. } in items::<Action>(tx, node_id, ACTIONS, now)? {
                if effective.as_ref().is_some_and(|effective| effective.command(&item.command).is_some()) {
                    actions.push(json!({"id": action_id, "command": item.command, "paramsJSON": item.params_json,
                        "enqueuedAtMs": created_at}));
                } else {
                    delete(tx, node_id, &action_id)?;
                }
            }
            Ok(Change::of(json!({"nodeId": node_id.to_string(), "actions": actions})))
        };
        self.0.store.write(op).await
    }

    /// Takes out actions that the node has carried out.
    pub(super) async fn ack(&self, node_id: DeviceId, ids: Vec<String>, now: UnixMs) -> Result<Value, RpcError> {
        let op = move |tx: &Tx<'_>| {
            for action in &ids {
                delete(tx, node_id, action)?;
            }
            let left = items::<Action>(tx, node_id, ACTIONS, now)?.len();
            Ok(Change::of(json!({"nodeId": node_id.to_string(), "ackedIds": ids, "remainingCount": left})))
        };
        self.0.store.write(op).await
    }
}
