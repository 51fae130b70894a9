//! Who is there: a bounded list with one row a device (or program), as `system-presence` and `hello-ok`
//! show it.
//!
//! The list is kept small on purpose ([`MAX_ROWS`] newest): it goes to every client that connects, and an
//! installation with ten thousand nodes must not send ten thousand rows to each. Its JSON is encoded once
//! per version and shared.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::Serialize;

use super::registry::{Connection, encode};
use crate::clock::UnixMs;
use crate::id::ConnId;
use crate::rpc::scope::{Role, ScopeSet};

/// Rows the list holds; beyond them the oldest goes.
pub const MAX_ROWS: usize = 200;

/// One row (the wire's `PresenceEntry`).
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Name of the machine or program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Box<str>>,
    /// Address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<Box<str>>,
    /// Version of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Box<str>>,
    /// Platform as the client says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Box<str>>,
    /// Device family as the client says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_family: Option<Box<str>>,
    /// Hardware model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_identifier: Option<Box<str>>,
    /// `gateway`, `cli`, `node`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Box<str>>,
    /// Seconds since the user last touched the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_input_seconds: Option<u64>,
    /// Why the row is as it is: `self`, `connect`, or what a `system-event` gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
    /// Tags from a `system-event`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// A line for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// When the row was last touched.
    pub ts: UnixMs,
    /// The device, where there is an identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<Box<str>>,
    /// Roles it is connected in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
    /// Scopes it holds as an operator.
    #[serde(skip_serializing_if = "no_scopes")]
    pub scopes: ScopeSet,
    /// Identifier of the run of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<Box<str>>,
}

#[derive(Debug)]
struct Entry {
    key: Box<str>,
    row: Row,
    connections: Vec<ConnId>,
    pinned: bool,
}

#[derive(Debug, Default)]
struct Rows {
    entries: Vec<Entry>,
    encoded: Option<Bytes>,
}

/// What a thread has last seen of a list.
#[derive(Default)]
struct LastSeen {
    list: u64,
    version: u64,
    json: Box<[u8]>,
}

thread_local! {
    static LAST_SEEN: RefCell<LastSeen> = RefCell::default();
}

/// The list and its version.
#[derive(Debug)]
pub struct Presence {
    /// Tells it from other lists of the process; never zero.
    id: u64,
    rows: Mutex<Rows>,
    version: AtomicU64,
    changed: Arc<tokio::sync::Notify>,
}

impl Default for Presence {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, rows: Mutex::default(), version: AtomicU64::new(0), changed: Arc::default() }
    }
}

impl Presence {
    /// Puts the gateway's own row first; it never leaves.
    pub fn set_self(&self, row: Row) {
        self.change(|entries| {
            entries.retain(|entry| !entry.pinned);
            entries.insert(0, Entry { key: "self".into(), row, connections: Vec::new(), pinned: true });
        });
    }

    /// Adds or refreshes a row that stands for no connection (`system-event`).
    pub fn note(&self, key: &str, row: Row) {
        self.change(|entries| match entries.iter_mut().find(|entry| *entry.key == *key) {
            Some(entry) => entry.row = row,
            None => push_bounded(entries, Entry { key: key.into(), row, connections: Vec::new(), pinned: false }),
        });
    }

    pub(super) fn joined(&self, connection: &Connection, now: UnixMs) {
        let key = key_of(connection);
        let row = row_of(connection, now);
        self.change(|entries| match entries.iter_mut().find(|entry| entry.key == key && !entry.pinned) {
            Some(entry) => {
                let mut roles = std::mem::take(&mut entry.row.roles);
                roles.retain(|role| *role != connection.grant.role());
                let scopes = entry.row.scopes.union(row.scopes);
                entry.row = row;
                entry.row.roles.extend(roles);
                entry.row.scopes = scopes;
                entry.connections.push(connection.id);
            }
            None => {
                push_bounded(entries, Entry { key, row, connections: vec![connection.id], pinned: false });
            }
        });
    }

    pub(super) fn left(&self, connection: &Connection) {
        let key = key_of(connection);
        self.change(|entries| {
            if let Some(at) = entries.iter().position(|entry| entry.key == key && !entry.pinned) {
                entries[at].connections.retain(|id| *id != connection.id);
                if entries[at].connections.is_empty() {
                    entries.remove(at);
                }
            }
        });
    }

    /// The list as JSON, encoded once per version.
    pub fn json(&self) -> Bytes {
        self.encoded().0
    }

    /// Looks at the list as JSON. Each thread keeps the bytes that it has last looked at: as long as nothing changes, all
    /// that threads share is a number that nobody writes.
    pub fn with_json<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        LAST_SEEN.with_borrow_mut(|last| {
            if last.list != self.id || last.version != self.version.load(Ordering::Acquire) {
                let (json, version) = self.encoded();
                // A copy: whoever counted along with others would write what they write.
                *last = LastSeen { list: self.id, version, json: json.to_vec().into() };
            }
            look(&last.json)
        })
    }

    /// The list as JSON, and its version.
    fn encoded(&self) -> (Bytes, u64) {
        let mut rows = self.lock();
        let version = self.version.load(Ordering::Relaxed);
        if let Some(encoded) = &rows.encoded {
            return (encoded.clone(), version);
        }
        let list: Vec<&Row> = rows.entries.iter().map(|entry| &entry.row).collect();
        let encoded = Bytes::from(encode(&list));
        rows.encoded = Some(encoded.clone());
        (encoded, version)
    }

    /// Number of the current list; it grows with every change.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Signalled after every change; wait on it, pause, then broadcast once for the burst.
    pub fn changed(&self) -> Arc<tokio::sync::Notify> {
        Arc::clone(&self.changed)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Entry>)) {
        {
            let mut rows = self.lock();
            change(&mut rows.entries);
            rows.encoded = None;
            self.version.fetch_add(1, Ordering::Release);
        }
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push_bounded(entries: &mut Vec<Entry>, entry: Entry) {
    if entries.len() >= MAX_ROWS
        && let Some(oldest) = entries.iter().position(|entry| !entry.pinned)
    {
        entries.remove(oldest);
    }
    entries.push(entry);
}

/// One row a device; without one, a run of a program; without that, a connection.
fn key_of(connection: &Connection) -> Box<str> {
    match (connection.grant.device(), &connection.client.instance_id) {
        (Some(device), _) => device.to_string().into(),
        (None, Some(instance)) => instance.clone(),
        (None, None) => connection.id.to_string().into(),
    }
}

fn row_of(connection: &Connection, now: UnixMs) -> Row {
    let client = &connection.client;
    let device_id: Option<Box<str>> = connection.grant.device().map(|id| id.to_string().into());
    let host: Box<str> = client.display_name.clone().unwrap_or_else(|| client.id.clone());
    Row {
        text: Some(format!("Node: {host} · mode {}", client.mode)),
        host: Some(host),
        version: Some(client.version.clone()),
        platform: Some(client.platform.clone()),
        device_family: client.device_family.clone(),
        model_identifier: client.model_identifier.clone(),
        mode: Some(client.mode.clone()),
        reason: Some("connect".into()),
        ts: now,
        instance_id: device_id.clone().or_else(|| client.instance_id.clone()),
        device_id,
        roles: vec![connection.grant.role()],
        scopes: connection.grant.scopes(),
        // Of this host itself there is none to show.
        ip: connection.remote_ip.map(|ip| ip.to_string().into()),
        last_input_seconds: None,
        tags: None,
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn no_scopes(scopes: &ScopeSet) -> bool {
    scopes.is_empty()
}
