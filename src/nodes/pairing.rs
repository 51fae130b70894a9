//! Approval of what nodes offer: the requests, the decisions, and what becomes of a node that comes or goes.
//!
//! A request's id is a commitment to the node's key, its kind and the whole surface: the same declaration has
//! the same id whenever it is made, another has another, and approving an id approves what was shown under it.
//! Decisions are made on the store's writer against the tables; readers, listeners and the node's live
//! session see them once they are on disk.

use std::sync::Arc;

use ring::digest::{Context, SHA256};
use serde::Serialize;
use serde_json::json;

use super::known::{Known, display_name};
use super::live::Effective;
use super::policy::{CommandPolicy, Kind, Platform};
use super::publications::TimedStats;
use super::record::{self, Approved, Facts, Pending, Record, SeenReason};
use super::surface::{self, Approval, Declaration, Pins, Request, Surface};
use super::{Inner, Nodes};
use crate::auth::DeviceId;
use crate::clock::UnixMs;
use crate::devices::pairing::Manager;
use crate::hub::Connection;
use crate::id;
use crate::rpc::catalog::Event;
use crate::rpc::error::{ErrorCode, RpcError};
use crate::rpc::scope::ScopeSet;
use crate::store::{Change, StoreError, Tx};

/// Characters of a name that an operator gives.
const MAX_NAME_CHARS: usize = 128;

/// What policy and approval make of a declaration.
#[derive(Debug)]
pub(super) struct Judged {
    /// What of the declaration policy lets the node offer: what an operator is asked about.
    pub offered: Surface,
    /// What may be done through the node now.
    pub effective: Effective,
    /// What to do about approval.
    pub request: Request,
}

impl Judged {
    /// Whether the request that waits, if any, is not the one to wait now.
    pub(super) fn changes(&self, waiting: Option<&Pending>, node_id: DeviceId, pins: &Pins) -> bool {
        match (self.request, waiting) {
            (Request::Clear, waiting) => waiting.is_some(),
            (Request::Open, None) => true,
            (Request::Open, Some(waiting)) => *waiting.request_id != *request_id(node_id, pins, &self.offered),
        }
    }
}

/// Judges what a node declares.
pub(super) fn judge(policy: &CommandPolicy, declared: &Surface, pins: &Pins, approved: Option<&Approval>) -> Judged {
    let kind = kind(pins, declared);
    let offered = declared.with_commands(|command| policy.may_offer(kind, command));
    let same_kind = |a: &Pins, b: &Pins| platform(a) == platform(b);
    let decided = surface::reconcile(approved, Declaration { offered: &offered, pins }, same_kind);
    // A node that is another kind of device than the one approved gets what both kinds may do.
    let kinds = [kind, approved.map_or(kind, |approval| Kind { platform: platform(&approval.pins), ..kind })];
    let effective =
        decided.effective.with_commands(|command| kinds.into_iter().all(|kind| policy.may_run(kind, command, true)));
    Judged { offered, effective: Effective::new(effective), request: decided.request }
}

fn platform(pins: &Pins) -> Platform {
    Platform::of(&pins.platform, &pins.device_family)
}

/// What policy needs to know of a node.
pub(super) fn kind(pins: &Pins, declared: &Surface) -> Kind {
    let [caps, commands] = [&declared.caps, &declared.commands].map(|list| list.iter().map(|name| &**name));
    Kind::new(platform(pins), caps, commands)
}

/// What a connection's device is to be judged as: what was approved for it, where that is known.
pub(super) fn pins(connection: &Connection) -> Pins {
    let grant = &connection.grant;
    Pins { platform: grant.platform().into(), device_family: grant.device_family().into() }
}

/// The id of the request to approve `surface` for a node of this kind.
pub(super) fn request_id(node_id: DeviceId, pins: &Pins, surface: &Surface) -> String {
    let mut hash = Context::new(&SHA256);
    // Each part with its length before it: no two declarations run into the same bytes.
    let mut add = |part: &str| {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    };
    // The node's id is the digest of its key.
    add(&node_id.to_string());
    add(&pins.platform);
    add(&pins.device_family);
    for list in [&surface.caps, &surface.commands] {
        add(&list.len().to_string());
        list.iter().for_each(|name| add(name));
    }
    for (key, on) in &surface.permissions {
        add(key);
        add(if *on { "1" } else { "0" });
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finish().as_ref()[..16]);
    id::uuid_from(bytes)
}

/// The rights of a session over devices.
pub(super) fn manager(caller: &Connection) -> Manager {
    let grant = &caller.grant;
    let device = grant.device().filter(|_| grant.method() == crate::auth::Method::DeviceToken);
    Manager { scopes: grant.scopes(), device, connection: Some(caller.id) }
}

/// A request as it is listed and announced.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PendingRow<'a> {
    request_id: &'a str,
    node_id: String,
    client_id: &'a str,
    client_mode: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<&'a str>,
    platform: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_family: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_identifier: Option<&'a str>,
    #[serde(flatten)]
    surface: &'a Surface,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_ip: Option<&'a str>,
    required_approve_scopes: ScopeSet,
    silent: bool,
    ts: UnixMs,
}

impl<'a> PendingRow<'a> {
    /// The newest first. Asking again makes a request no newer.
    pub(super) fn order(&self) -> (UnixMs, &'a str) {
        (self.ts, self.request_id)
    }

    /// The row of a node's request, if it has one.
    pub(super) fn of(node_id: DeviceId, record: &'a Record) -> Option<Self> {
        let Record { facts, request, .. } = record;
        let request = request.as_ref()?;
        Some(Self {
            request_id: &request.request_id,
            node_id: node_id.to_string(),
            client_id: &facts.client_id,
            client_mode: &facts.client_mode,
            display_name: display_name(record, None),
            platform: &facts.platform,
            version: &facts.version,
            device_family: facts.device_family.as_deref(),
            model_identifier: facts.model.as_deref(),
            surface: &request.surface,
            remote_ip: facts.remote_ip.as_deref(),
            required_approve_scopes: request.surface.required_scopes(),
            silent: false,
            ts: request.created_at,
        })
    }
}

/// A node with its approval, as it is listed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PairedRow<'a> {
    node_id: String,
    client_id: &'a str,
    client_mode: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    display_name: Option<&'a str>,
    platform: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_family: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_identifier: Option<&'a str>,
    #[serde(flatten)]
    surface: &'a Surface,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_ip: Option<&'a str>,
    created_at_ms: UnixMs,
    approved_at_ms: UnixMs,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_connected_at_ms: Option<UnixMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_disconnected_at_ms: Option<UnixMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_host_stats: Option<TimedStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_at_ms: Option<UnixMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen_reason: Option<SeenReason>,
}

impl<'a> PairedRow<'a> {
    /// The latest approval first.
    pub(super) fn order(&self) -> (UnixMs, &str) {
        (self.approved_at_ms, &self.node_id)
    }

    /// The row of a node, if it is approved.
    pub(super) fn of(node_id: DeviceId, record: &'a Record) -> Option<Self> {
        let Record { facts, approval, .. } = record;
        let approved = approval.as_ref()?;
        Some(Self {
            node_id: node_id.to_string(),
            client_id: &facts.client_id,
            client_mode: &facts.client_mode,
            display_name: display_name(record, None),
            platform: &facts.platform,
            version: &facts.version,
            device_family: facts.device_family.as_deref(),
            model_identifier: facts.model.as_deref(),
            surface: &approved.approval.surface,
            remote_ip: facts.remote_ip.as_deref(),
            created_at_ms: approved.created_at,
            approved_at_ms: approved.approved_at,
            last_connected_at_ms: record.connected_at,
            last_disconnected_at_ms: record.disconnected_at,
            last_host_stats: record.host_stats,
            last_seen_at_ms: record.seen.map(|(at, _)| at),
            last_seen_reason: record.seen.map(|(_, reason)| reason),
        })
    }
}

/// How a request ended, as `node.pair.resolved` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Approved,
    /// Also: replaced by another request, or not needed any more.
    Rejected,
    /// The node itself was removed.
    Removed,
}

impl Decision {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Removed => "removed",
        }
    }
}

fn unknown_request() -> RpcError {
    RpcError::invalid(
        "unknown requestId: it was decided, or the node has declared something else since; see node.pair.list",
    )
    .with_details(json!({"code": "UNKNOWN_REQUEST"}))
}

/// The error for a node id that names no node.
pub(super) fn unknown_node() -> RpcError {
    RpcError::invalid("unknown nodeId").with_details(json!({"code": "UNKNOWN_NODE"}))
}

fn denied(what: &str) -> RpcError {
    RpcError::invalid(format!(
        "{what}: a session of a device's own token manages that device alone, without operator.admin"
    ))
    .with_details(json!({"code": "DEVICE_OWNERSHIP"}))
}

/// A row that refers to nothing: the device has lost the role meanwhile.
fn is_orphan(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation)
}

impl Nodes {
    /// Notes in the store what waits for approval now, and if the node has `come` just now also that.
    pub(super) fn note_session(
        &self,
        connection: Arc<Connection>,
        node_id: DeviceId,
        come: bool,
        now: UnixMs,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let (inner, store) = (Arc::clone(&self.0), self.0.store.clone());
        let op = move |tx: &Tx<'_>| {
            let mut record = record::get(tx, node_id)?.unwrap_or_default();
            if come {
                record.facts = Facts::of(&connection);
                record.connected_at = Some(now);
                record.seen = Some((now, SeenReason::Connect));
            }
            // A newer connection of the node, if there is one by now, says what is asked for.
            let news = inner.live.of(&connection).map(|session| {
                let approved = record.approval.as_ref().map(|approved| &approved.approval);
                let pins = pins(&connection);
                let judged = judge(&inner.policy.load(), &session.declared, &pins, approved);
                update_request(node_id, &mut record, judged, pins, now)
            });
            match record::put(tx, node_id, &record) {
                Err(error) if is_orphan(&error) => return Ok(Change::of(())),
                written => written?,
            }
            Ok(Change::of(()).publish(move || {
                inner.known().show(node_id, record);
                if let Some(news) = news {
                    inner.announce(node_id, news, now);
                }
            }))
        };
        async move { store.write(op).await }
    }

    /// Approves a request, and lets the node's live session have what it asked for.
    pub(super) async fn approve(
        &self,
        request_id: String,
        by: Manager,
        now: UnixMs,
    ) -> Result<serde_json::Value, RpcError> {
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            let (node_id, mut record) = record::by_request(tx, &request_id)?.ok_or_else(unknown_request)?;
            if !by.reaches(node_id) {
                return Err(denied("node pairing approval denied"));
            }
            let request = record.request.take().ok_or_else(unknown_request)?;
            let required = request.surface.required_scopes();
            if let Some(missing) = required.iter().find(|scope| !by.scopes.covers(*scope)) {
                let required: Vec<_> = required.iter().map(|scope| scope.as_str()).collect();
                return Err(RpcError::missing_scope(missing.as_str(), &required));
            }
            let created_at = record.approval.as_ref().map_or(now, |approved| approved.created_at);
            let before = record.approval.as_ref().map(|before| before.approval.surface.commands.clone());
            let approval = Approval { surface: request.surface, pins: request.pins };
            let commands = approval.surface.commands.clone();
            record.approval = Some(Approved { approval, created_at, approved_at: now });
            record::put(tx, node_id, &record)?;
            let answer = json!({"requestId": request_id, "node": PairedRow::of(node_id, &record)});
            Ok(Change::of(answer).publish(move || {
                // Who widens what a node may do leaves a trace (S-77); the names of commands are plain.
                let old = before.unwrap_or_default();
                tracing::info!(node = %node_id, ?old, new = ?commands, by = ?by.connection, "a node's commands were approved");
                inner.show_approval(node_id, record);
                inner.resolved(&request_id, node_id, Decision::Approved, now);
            }))
        };
        self.0.store.write(op).await
    }

    /// Rejects a request. The node may ask again when it next connects.
    pub(super) async fn reject(
        &self,
        request_id: String,
        by: Manager,
        now: UnixMs,
    ) -> Result<serde_json::Value, RpcError> {
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            let (node_id, mut record) = record::by_request(tx, &request_id)?.ok_or_else(unknown_request)?;
            if !by.reaches(node_id) {
                return Err(denied("node pairing rejection denied"));
            }
            record.request = None;
            record::put(tx, node_id, &record)?;
            let answer = json!({"requestId": request_id, "nodeId": node_id.to_string()});
            Ok(Change::of(answer).publish(move || {
                tracing::info!(node = %node_id, by = ?by.connection, "a node's commands were rejected");
                inner.known().show(node_id, record);
                inner.resolved(&request_id, node_id, Decision::Rejected, now);
            }))
        };
        self.0.store.write(op).await
    }

    /// Takes the role `node` from a device, and with it everything that was approved. The node is cut off at
    /// once; to come back it has to be paired and approved anew.
    pub(super) async fn remove(&self, node_id: DeviceId, by: Manager, now: UnixMs) -> Result<(), RpcError> {
        let device = self.0.devices.facts(node_id).ok_or_else(unknown_node)?;
        if !by.reaches(node_id) || by.may_remove(&device).is_err() {
            return Err(denied("node pairing removal denied"));
        }
        match self.0.devices.remove_role(node_id, crate::rpc::scope::Role::Node, by.connection, now).await {
            Ok(()) => {
                tracing::info!(node = %node_id, by = ?by.connection, "a node was removed");
                self.0.resolved("", node_id, Decision::Removed, now);
                Ok(())
            }
            Err(crate::devices::PairingError::UnknownDevice) => Err(unknown_node()),
            Err(error) => Err(RpcError::new(ErrorCode::Unavailable, error.to_string()).retryable(true)),
        }
    }

    /// Gives a node a name of the operator's choosing.
    pub(super) async fn rename(
        &self,
        node_id: DeviceId,
        name: String,
        by: Manager,
    ) -> Result<serde_json::Value, RpcError> {
        let name = name.trim().to_owned();
        if name.is_empty() {
            return Err(RpcError::invalid("displayName required"));
        }
        if name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
            return Err(RpcError::invalid(format!(
                "invalid node.rename params: at displayName: must have at most {MAX_NAME_CHARS} characters, and no \
                 control characters"
            )));
        }
        if !by.reaches(node_id) {
            return Err(denied("node rename denied"));
        }
        let inner = Arc::clone(&self.0);
        let op = move |tx: &Tx<'_>| {
            let mut record = record::get(tx, node_id)?.ok_or_else(unknown_node)?;
            record.name = Some(name.as_str().into());
            record::put(tx, node_id, &record)?;
            let answer = json!({"nodeId": node_id.to_string(), "displayName": name});
            Ok(Change::of(answer).publish(move || inner.known().show(node_id, record)))
        };
        self.0.store.write(op).await
    }

    /// Changes what is kept of a node; durable when it returns. Says whether there is such a node.
    pub(super) fn keep<F>(
        &self,
        node_id: DeviceId,
        change: F,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send + use<F>
    where
        F: FnOnce(&mut Record) + Send + 'static,
    {
        let (inner, store) = (Arc::clone(&self.0), self.0.store.clone());
        let op = move |tx: &Tx<'_>| {
            let Some(mut record) = record::get(tx, node_id)? else { return Ok(Change::of(false)) };
            change(&mut record);
            record::put(tx, node_id, &record)?;
            Ok(Change::of(true).publish(move || inner.known().change(node_id, |known| *known = record)))
        };
        async move { store.write(op).await }
    }
}

/// What a declaration has changed among the requests.
#[derive(Debug, Default)]
struct News {
    /// A request that is not there any more.
    gone: Option<Box<str>>,
    /// Whether there is a new one.
    opened: bool,
}

/// Opens, keeps or clears the request of a node.
fn update_request(node_id: DeviceId, record: &mut Record, judged: Judged, pins: Pins, now: UnixMs) -> News {
    match judged.request {
        Request::Clear => News { gone: record.request.take().map(|request| request.request_id), opened: false },
        Request::Open => {
            let request_id = request_id(node_id, &pins, &judged.offered).into_boxed_str();
            if record.request.as_ref().is_some_and(|request| request.request_id == request_id) {
                return News::default();
            }
            let request = Pending { request_id, surface: judged.offered, pins, created_at: now };
            let gone = record.request.replace(request).map(|request| request.request_id);
            News { gone, opened: true }
        }
    }
}

impl Inner {
    /// Shows an approval to readers and takes it into effect.
    fn show_approval(&self, node_id: DeviceId, record: Record) {
        let mut known = self.known();
        known.show(node_id, record);
        self.take_into_effect(&mut known, node_id);
    }

    /// Judges a live session again, by what is approved and the policy of now. Says whether that changes what waits
    /// for approval.
    pub(super) fn take_into_effect(&self, known: &mut Known, node_id: DeviceId) -> bool {
        let Some(session) = self.live.get(node_id) else { return false };
        let record = known.get(node_id);
        let approved = record.and_then(|record| record.approval.as_ref()).map(|approved| &approved.approval);
        let pins = pins(&session.connection);
        let judged = judge(&self.policy.load(), &session.declared, &pins, approved);
        let news = judged.changes(record.and_then(|record| record.request.as_ref()), node_id, &pins);
        session.effective.store(Arc::new(judged.effective));
        known.touch(node_id);
        news
    }

    fn announce(&self, node_id: DeviceId, news: News, now: UnixMs) {
        if let Some(gone) = &news.gone {
            self.resolved(gone, node_id, Decision::Rejected, now);
        }
        if news.opened {
            let payload = {
                let known = self.known();
                let row = known.get(node_id).and_then(|record| PendingRow::of(node_id, record));
                row.map(|row| crate::hub::registry::encode(&row))
            };
            if let Some(payload) = payload {
                let event = crate::hub::outbox::EncodedEvent::new(Event::NODE_PAIR_REQUESTED, &payload, None);
                self.hub.broadcast_encoded(&Arc::new(event));
            }
        }
    }

    fn resolved(&self, request_id: &str, node_id: DeviceId, decision: Decision, now: UnixMs) {
        let payload = json!({
            "requestId": request_id,
            "nodeId": node_id.to_string(),
            "decision": decision.as_str(),
            "ts": now,
        });
        self.hub.broadcast(Event::NODE_PAIR_RESOLVED, &payload);
        // The node waits for this to publish what it held back.
        if decision == Decision::Approved
            && let Some(session) = self.live.get(node_id)
        {
            session.connection.send_event(Event::NODE_PAIR_RESOLVED, &payload);
        }
    }

    /// A device has lost the role `node`.
    pub(super) fn forget(&self, node_id: DeviceId) {
        self.known().forget(node_id);
        if let Some(session) = self.live.get(node_id) {
            session.effective.store(Arc::default());
            self.live.leave(&session.connection);
            self.end_calls(&session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::DeviceKey;
    use std::collections::HashSet;

    fn surface(caps: &[&str], commands: &[&str], permissions: &[(&str, bool)]) -> Surface {
        Surface::declared(caps.iter().copied(), commands.iter().copied(), permissions.iter().copied())
    }

    fn pins(platform: &str, device_family: &str) -> Pins {
        Pins { platform: platform.into(), device_family: device_family.into() }
    }

    fn judged(declared: &Surface, pins: &Pins, approved: Option<&Approval>) -> (Vec<Arc<str>>, Request) {
        let judged = judge(&CommandPolicy::default(), declared, pins, approved);
        (judged.effective.surface.commands.to_vec(), judged.request)
    }

    #[test]
    fn what_policy_would_never_let_it_offer_is_not_asked_for() {
        let declared = surface(&[], &["system.run", "sms.send", "dir.list"], &[]);
        let judged = judge(&CommandPolicy::default(), &declared, &pins("linux", "Linux"), None);
        assert_eq!(judged.offered, surface(&[], &["system.run"], &[]));
        assert!(judged.effective.surface.commands.is_empty());
    }

    #[test]
    fn a_node_gains_nothing_by_saying_it_is_another_device() {
        let phone = surface(&[], &["camera.list", "location.get"], &[]);
        let approved = Approval { surface: phone.clone(), pins: pins("ios", "iPhone") };
        let same = judged(&phone, &pins("iOS 18.5", "iPhone"), Some(&approved));
        assert_eq!(same, (phone.commands.to_vec(), Request::Clear));
        let more = surface(&[], &["camera.list", "location.get", "system.run"], &[]);
        let (effective, request) = judged(&more, &pins("linux", "Linux"), Some(&approved));
        assert_eq!((effective, request), (Vec::new(), Request::Open));
        // Not even what was approved, where the kind that was approved may not do it.
        let host = Approval { surface: surface(&[], &["system.run"], &[]), pins: pins("ios", "iPhone") };
        let (effective, _) = judged(&host.surface, &pins("linux", "Linux"), Some(&host));
        assert!(effective.is_empty());
    }

    #[test]
    fn a_request_id_commits_to_everything_that_is_approved_with_it() {
        let node = |seed| DeviceKey::from_bytes([seed; 32]).unwrap().device_id();
        let linux = pins("linux", "Linux");
        let base = surface(&["c"], &["a", "b"], &[("p", true)]);
        let mut seen = HashSet::new();
        for (node, pins, surface) in [
            (node(2), &linux, base.clone()),
            (node(3), &linux, base.clone()),
            (node(2), &pins("macos", "Linux"), base.clone()),
            (node(2), &pins("linux", ""), base),
            (node(2), &linux, surface(&["c"], &["ab"], &[("p", true)])),
            (node(2), &linux, surface(&["c", "a"], &["b"], &[("p", true)])),
            (node(2), &linux, surface(&["c"], &["a", "b"], &[("p", false)])),
            (node(2), &linux, surface(&["c"], &["a", "b"], &[])),
        ] {
            assert!(seen.insert(request_id(node, pins, &surface)));
        }
        let orders =
            [&["a", "b"], &["b", "a"]].map(|commands| request_id(node(2), &linux, &surface(&[], commands, &[])));
        assert_eq!(orders[0], orders[1]);
    }
}
