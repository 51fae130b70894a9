//! What is kept of a node while it is away, and where it stands in the store.
//!
//! One row a node, under the role `node` of its device: when the device loses the role, the row goes with it.
//! This file knows tables and values; what they mean is decided in [`super::surface`] and
//! [`super::pairing`].

use std::collections::HashMap;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::publications::TimedStats;
use super::surface::{Approval, Pins, Surface};
use crate::auth::DeviceId;
use crate::clock::UnixMs;
use crate::store::Schema;

/// The schema of this domain. It refers to the devices' tables: list theirs before it.
pub const SCHEMA: Schema = Schema { domain: "nodes", steps: &[V1] };

const V1: &str = "
CREATE TABLE node (
    device_id          BLOB PRIMARY KEY,
    role               TEXT NOT NULL DEFAULT 'node' CHECK (role = 'node'),
    name               TEXT,
    facts              TEXT NOT NULL,
    approval           TEXT,
    request_id         TEXT UNIQUE,
    request            TEXT,
    connected_at_ms    INTEGER,
    disconnected_at_ms INTEGER,
    seen_at_ms         INTEGER,
    seen_reason        TEXT,
    host_stats         TEXT,
    work_revision      INTEGER NOT NULL DEFAULT 0,
    FOREIGN KEY (device_id, role) REFERENCES device_role (device_id, role) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE node_item (
    device_id     BLOB NOT NULL REFERENCES node (device_id) ON DELETE CASCADE,
    id            TEXT NOT NULL,
    queue         TEXT NOT NULL,
    item          TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    PRIMARY KEY (device_id, id)
) STRICT, WITHOUT ROWID;
";

/// What is kept of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// Name that an operator gave it.
    pub name: Option<Box<str>>,
    /// What it said of itself when it last connected.
    pub facts: Facts,
    /// What an operator approved.
    pub approval: Option<Approved>,
    /// What waits for an operator.
    pub request: Option<Pending>,
    /// When it last connected.
    pub connected_at: Option<UnixMs>,
    /// When it last went.
    pub disconnected_at: Option<UnixMs>,
    /// When and why it was last seen.
    pub seen: Option<(UnixMs, SeenReason)>,
    /// Its resources, as last reported.
    pub host_stats: Option<TimedStats>,
}

/// What a node says of itself, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Facts {
    /// Kind of program.
    pub client_id: Box<str>,
    /// What it is doing: `node`.
    pub client_mode: Box<str>,
    /// Its own name for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<Box<str>>,
    /// Platform as it says it.
    pub platform: Box<str>,
    /// Device family as it says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_family: Option<Box<str>>,
    /// Version of the program.
    pub version: Box<str>,
    /// Hardware model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Box<str>>,
    /// Address it came from; none for a local one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_ip: Option<Box<str>>,
}

/// An approval, and its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Approved {
    /// What was approved.
    #[serde(flatten)]
    pub approval: Approval,
    /// First approval.
    pub created_at: UnixMs,
    /// Last approval.
    pub approved_at: UnixMs,
}

/// A surface that waits for approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pending {
    /// Names it: a commitment to node, kind and surface, so that approving it approves just what was shown.
    #[serde(skip)]
    pub request_id: Box<str>,
    /// What the node would have approved.
    pub surface: Surface,
    /// The kind of device it is.
    pub pins: Pins,
    /// When it first asked. Asking again does not change it, nor the order of requests.
    pub created_at: UnixMs,
}

/// Why a node was seen: the closed list of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SeenReason {
    /// It connected.
    Connect,
    /// It woke in the background.
    #[default]
    Background,
    /// A push woke it.
    SilentPush,
    /// Its system let it refresh.
    BgAppRefresh,
    /// It moved.
    SignificantLocation,
    /// Its user asked for it.
    Manual,
}

impl SeenReason {
    const ALL: [Self; 6] = [
        Self::Connect,
        Self::Background,
        Self::SilentPush,
        Self::BgAppRefresh,
        Self::SignificantLocation,
        Self::Manual,
    ];

    /// The word on the wire.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Background => "background",
            Self::SilentPush => "silent_push",
            Self::BgAppRefresh => "bg_app_refresh",
            Self::SignificantLocation => "significant_location",
            Self::Manual => "manual",
        }
    }

    /// Reads the word, as nodes write it; any other counts as `background`.
    pub(super) fn parse(text: &str) -> Self {
        let text = text.trim();
        Self::ALL.into_iter().find(|reason| reason.as_str().eq_ignore_ascii_case(text)).unwrap_or_default()
    }
}

const COLUMNS: &str = "device_id, name, facts, approval, request_id, request, connected_at_ms, disconnected_at_ms,
    seen_at_ms, seen_reason, host_stats";

/// Reads every node.
pub(super) fn load(db: &Connection) -> rusqlite::Result<HashMap<DeviceId, Record>> {
    let mut statement = db.prepare(&format!("SELECT {COLUMNS} FROM node"))?;
    statement.query_map([], read)?.collect()
}

/// Reads one node.
pub(super) fn get(db: &Connection, id: DeviceId) -> rusqlite::Result<Option<Record>> {
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM node WHERE device_id = ?1"))?;
    Ok(statement.query_row([id.as_bytes()], read).optional()?.map(|(_, record)| record))
}

/// The node whose request this is.
pub(super) fn by_request(db: &Connection, request_id: &str) -> rusqlite::Result<Option<(DeviceId, Record)>> {
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM node WHERE request_id = ?1"))?;
    statement.query_row([request_id], read).optional()
}

/// Writes one node.
pub(super) fn put(db: &Connection, id: DeviceId, record: &Record) -> rusqlite::Result<()> {
    // An update and never a replacement, which would take what refers to the row along.
    let mut statement = db.prepare_cached(&format!(
        "INSERT INTO node ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (device_id) DO UPDATE SET name = ?2, facts = ?3, approval = ?4, request_id = ?5, request = ?6,
         connected_at_ms = ?7, disconnected_at_ms = ?8, seen_at_ms = ?9, seen_reason = ?10, host_stats = ?11"
    ))?;
    statement.execute((
        id.as_bytes(),
        record.name.as_deref(),
        json(&record.facts)?,
        record.approval.as_ref().map(json).transpose()?,
        record.request.as_ref().map(|request| &*request.request_id),
        record.request.as_ref().map(json).transpose()?,
        record.connected_at.map(time),
        record.disconnected_at.map(time),
        record.seen.map(|(at, _)| time(at)),
        record.seen.map(|(_, reason)| reason.as_str()),
        record.host_stats.as_ref().map(json).transpose()?,
    ))?;
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<(DeviceId, Record)> {
    let id = DeviceId::from_bytes(row.get(0)?);
    let time = |at: usize| -> rusqlite::Result<Option<UnixMs>> {
        Ok(row.get::<_, Option<i64>>(at)?.map(|ms| UnixMs(u64::try_from(ms).unwrap_or_default())))
    };
    let request_id: Option<String> = row.get(4)?;
    let request: Option<Pending> = optional(row, 5)?;
    let reason: Option<String> = row.get(9)?;
    let record = Record {
        name: row.get::<_, Option<String>>(1)?.map(String::into_boxed_str),
        facts: optional(row, 2)?.unwrap_or_default(),
        approval: optional(row, 3)?,
        request: request_id.zip(request).map(|(id, request)| Pending { request_id: id.into(), ..request }),
        connected_at: time(6)?,
        disconnected_at: time(7)?,
        seen: time(8)?.map(|at| (at, SeenReason::parse(reason.as_deref().unwrap_or_default()))),
        host_stats: optional(row, 10)?,
    };
    Ok((id, record))
}

fn optional<T: DeserializeOwned>(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<T>> {
    let Some(text) = row.get_ref(at)?.as_str_or_null()? else { return Ok(None) };
    serde_json::from_str(text)
        .map(Some)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, error.into()))
}

/// Our own values have string keys and finite numbers, so they encode; if one ever does not, nothing is written.
pub(super) fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// A time as SQLite holds it.
pub(super) fn time(at: UnixMs) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

impl Facts {
    /// What the client of a connection says of itself.
    pub(super) fn of(connection: &crate::hub::Connection) -> Self {
        let client = &connection.client;
        Self {
            client_id: client.id.clone(),
            client_mode: client.mode.clone(),
            display_name: client.display_name.clone(),
            platform: client.platform.clone(),
            device_family: client.device_family.clone(),
            version: client.version.clone(),
            model: client.model_identifier.clone(),
            remote_ip: connection.remote_ip.map(|ip| ip.to_string().into()),
        }
    }
}
