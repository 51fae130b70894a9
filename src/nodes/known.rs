//! Every node that has ever connected and still may: an index in memory of what is on disk, and how it is listed.
//!
//! Changed only by what the store publishes after a commit. A node's row is encoded once and kept until something
//! of it changes, so that a list of ten thousand nodes is a copy of bytes.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use super::live::{Live, Session};
use super::publications::{Activity, TimedStats};
use super::record::{Facts, Record, SeenReason};
use super::surface::Surface;
use crate::auth::DeviceId;
use crate::clock::UnixMs;

/// The index.
#[derive(Debug, Default)]
pub(super) struct Known {
    entries: HashMap<DeviceId, Entry>,
    /// The nodes in the order of the list, until that may have changed.
    order: Option<Arc<[DeviceId]>>,
}

#[derive(Debug, Default)]
struct Entry {
    record: Record,
    row: Option<Arc<Row>>,
}

/// A node as it is listed: JSON without the closing brace, and what only those who manage pairing see of it.
#[derive(Debug)]
pub(super) struct Row {
    node_id: DeviceId,
    shared: Box<[u8]>,
    pairing: Box<[u8]>,
}

impl Row {
    /// Bytes it takes in a list, about.
    pub(super) fn bytes(&self) -> usize {
        self.shared.len() + self.pairing.len() + 24
    }

    /// Appends the row; `active` for the node whose user is there, `pairing` for readers who manage pairing.
    pub(super) fn write(&self, pairing: bool, active: Option<DeviceId>, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.shared);
        if pairing {
            out.extend_from_slice(&self.pairing);
        }
        if active == Some(self.node_id) {
            out.extend_from_slice(br#","active":true"#);
        }
        out.push(b'}');
    }
}

impl Known {
    /// The index of these records.
    pub(super) fn new(records: HashMap<DeviceId, Record>) -> Self {
        let entries = records.into_iter().map(|(id, record)| (id, Entry { record, row: None })).collect();
        Self { entries, order: None }
    }

    /// What is kept of a node.
    pub(super) fn get(&self, id: DeviceId) -> Option<&Record> {
        self.entries.get(&id).map(|entry| &entry.record)
    }

    /// Every node.
    pub(super) fn iter(&self) -> impl Iterator<Item = (DeviceId, &Record)> {
        self.entries.iter().map(|(id, entry)| (*id, &entry.record))
    }

    /// Shows what is on disk now.
    pub(super) fn show(&mut self, id: DeviceId, record: Record) {
        self.entries.insert(id, Entry { record, row: None });
        self.order = None;
    }

    /// Changes a node in place, in ways that do not move it in the list.
    pub(super) fn change(&mut self, id: DeviceId, change: impl FnOnce(&mut Record)) {
        if let Some(entry) = self.entries.get_mut(&id) {
            change(&mut entry.record);
            entry.row = None;
        }
    }

    /// Forgets a node.
    pub(super) fn forget(&mut self, id: DeviceId) -> Option<Record> {
        self.order = None;
        self.entries.remove(&id).map(|entry| entry.record)
    }

    /// Something of the node's session has changed.
    pub(super) fn touch(&mut self, id: DeviceId) {
        self.change(id, |_| ());
    }

    /// The node has come or gone.
    pub(super) fn moved(&mut self, id: DeviceId) {
        self.touch(id);
        self.order = None;
    }

    /// One node's row.
    pub(super) fn row(&mut self, id: DeviceId, live: &Live) -> Option<Arc<Row>> {
        let entry = self.entries.get_mut(&id)?;
        let row = entry.row.get_or_insert_with(|| Arc::new(encode(id, &entry.record, live.get(id).as_deref())));
        Some(Arc::clone(row))
    }

    /// The rows of all nodes: those that are connected first, then by name.
    pub(super) fn rows(&mut self, live: &Live) -> Vec<Arc<Row>> {
        let order = match &self.order {
            Some(order) => Arc::clone(order),
            None => {
                let mut keys: Vec<_> = self
                    .entries
                    .iter()
                    .map(|(id, entry)| {
                        let session = live.get(*id);
                        let name = display_name(&entry.record, session.as_deref()).map(str::to_lowercase);
                        (session.is_none(), name.unwrap_or_else(|| id.to_string()), *id)
                    })
                    .collect();
                keys.sort_unstable();
                let order: Arc<[DeviceId]> = keys.into_iter().map(|(_, _, id)| id).collect();
                Arc::clone(self.order.insert(order))
            }
        };
        order.iter().filter_map(|id| self.row(*id, live)).collect()
    }
}

/// Where approval of a node's surface stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ApprovalState {
    Approved,
    Unapproved,
    PendingApproval,
    PendingReapproval,
}

/// A row for everyone who may list nodes (the incumbent's shape).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shared<'a> {
    node_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    platform: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    client_id: &'a str,
    client_mode: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_family: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_identifier: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_ip: Option<&'a str>,
    caps: &'a [Arc<str>],
    commands: &'a [Arc<str>],
    session_host: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_stats: Option<TimedStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_plugin_tools: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_env: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<&'a std::collections::BTreeMap<Arc<str>, bool>>,
    approval_state: ApprovalState,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_at_ms: Option<UnixMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_connected_at_ms: Option<UnixMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_disconnected_at_ms: Option<UnixMs>,
    #[serde(flatten)]
    activity: Option<Activity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_at_ms: Option<UnixMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_reason: Option<SeenReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approved_at_ms: Option<UnixMs>,
    paired: bool,
    connected: bool,
}

/// What those who manage pairing see in addition.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pairing<'a> {
    pending_request_id: &'a str,
    pending_declared_caps: &'a [Arc<str>],
    pending_declared_commands: &'a [Arc<str>],
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pending_declared_permissions: &'a std::collections::BTreeMap<Arc<str>, bool>,
}

/// The name that people know a node by: the operator's, or the node's own.
pub(super) fn display_name<'a>(record: &'a Record, session: Option<&'a Session>) -> Option<&'a str> {
    let own = match session {
        Some(session) => session.connection.client.display_name.as_deref(),
        None => record.facts.display_name.as_deref(),
    };
    record.name.as_deref().or(own)
}

/// Encodes the row of a node.
pub(super) fn encode(id: DeviceId, record: &Record, session: Option<&Session>) -> Row {
    let live_facts = session.map(|session| Facts::of(&session.connection));
    let facts = live_facts.as_ref().unwrap_or(&record.facts);
    let effective = session.map(|session| session.effective.load_full());
    let nothing = Surface::default();
    let surface = match (&effective, &record.approval) {
        (Some(effective), _) => &effective.surface,
        (None, Some(approved)) => &approved.approval.surface,
        (None, None) => &nothing,
    };
    let published = session.map(Session::publications);
    let connected_at = session.map(|session| session.connection.connected_at);
    let seen = connected_at.map(|at| (at, SeenReason::Connect)).or(record.seen);
    let shared = Shared {
        node_id: id.to_string(),
        display_name: display_name(record, session),
        platform: &facts.platform,
        version: &facts.version,
        client_id: &facts.client_id,
        client_mode: &facts.client_mode,
        device_family: facts.device_family.as_deref(),
        model_identifier: facts.model.as_deref(),
        remote_ip: facts.remote_ip.as_deref(),
        caps: &surface.caps,
        commands: &surface.commands,
        session_host: false,
        host_stats: published.as_ref().map_or(record.host_stats, |published| published.host_stats),
        node_plugin_tools: published.as_ref().and_then(|published| {
            let tools = published.visible_tools(surface);
            String::from_utf8(tools).ok().and_then(|tools| RawValue::from_string(tools).ok())
        }),
        path_env: session.and_then(|session| session.path_env.as_deref()),
        permissions: Some(&surface.permissions).filter(|permissions| !permissions.is_empty()),
        approval_state: match (&record.request, &record.approval) {
            (Some(_), Some(_)) => ApprovalState::PendingReapproval,
            (Some(_), None) => ApprovalState::PendingApproval,
            (None, Some(_)) => ApprovalState::Approved,
            (None, None) => ApprovalState::Unapproved,
        },
        connected_at_ms: connected_at,
        last_connected_at_ms: connected_at.or(record.connected_at),
        last_disconnected_at_ms: record.disconnected_at.filter(|_| session.is_none()),
        activity: published.as_ref().and_then(|published| published.activity),
        last_seen_at_ms: seen.map(|(at, _)| at),
        last_seen_reason: seen.map(|(_, reason)| reason),
        approved_at_ms: record.approval.as_ref().map(|approved| approved.approved_at),
        paired: true,
        connected: session.is_some(),
    };
    let mut shared = crate::hub::registry::encode(&shared);
    shared.pop();
    let pairing = record.request.as_ref().map_or_else(Vec::new, |request| {
        let mut pairing = crate::hub::registry::encode(&Pairing {
            pending_request_id: &request.request_id,
            pending_declared_caps: &request.surface.caps,
            pending_declared_commands: &request.surface.commands,
            pending_declared_permissions: &request.surface.permissions,
        });
        pairing.pop();
        pairing[0] = b',';
        pairing
    });
    Row { node_id: id, shared: shared.into(), pairing: pairing.into() }
}
