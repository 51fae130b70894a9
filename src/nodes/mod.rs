//! Nodes: devices that offer commands. Who is connected, what was approved, calls to them and their answers.
//!
//! Two approvals stand between a device and its commands: of the device (the domain `devices`), and of what it
//! offers, here. Until both are given nothing can be called. The handle is [`Nodes`].
//!
//! Where to start reading:
//!
//! * the main road, `node.invoke`: [`invoke`], over [`live`] (who is connected) and [`pending`] (what is not
//!   answered), with [`deadline`] and [`repeats`] at its sides;
//! * what may be called: [`surface`] (the rules of approval), [`policy`] (the operator's and the platform's),
//!   [`guard`] (commands with rules of their own);
//! * who decides, and what is kept: [`pairing`], [`record`], [`known`];
//! * what nodes tell: [`events`], [`publications`]; what waits for them: [`queue`].
//!
//! The domain knows the hub, the store and the devices. It does not know sockets, nor what a command does.

mod call;
mod deadline;
mod events;
mod guard;
mod invoke;
mod known;
mod live;
pub mod methods;
mod pairing;
mod pending;
pub mod policy;
mod publications;
mod queue;
mod record;
mod repeats;
mod surface;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use serde_json::json;

pub use call::Callable;
pub use record::SCHEMA;

use crate::auth::DeviceId;
use crate::clock::UnixMs;
use crate::devices::Devices;
use crate::hub::outbox::Budget;
use crate::hub::{Connection, Hub};
use crate::id::ConnId;
use crate::rpc::catalog::Event;
use crate::rpc::error::RpcError;
use crate::rpc::scope::Role;
use crate::spread::Spread;
use crate::store::{Store, StoreError};
use crate::ws::close::CloseCode;
use deadline::Deadlines;
use guard::Guard;
use invoke::{MAX_CALLS, Place, Running};
use known::Known;
use live::{Joined, Live, Session};
use policy::{CommandPolicy, Platform};
use publications::{Activity, Skill};
use record::{Facts, Record, SeenReason};
use repeats::Repeats;
use surface::{Pins, Surface};

/// Reports of one kind that come faster than this from one node are not passed on.
const RAPID_MS: u64 = 1000;
/// How often a sign of life is written.
const SEEN_INTERVAL_MS: u64 = 60_000;

/// What the operator has set for nodes (`gateway.nodes`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePolicy {
    /// Commands that may be called, whatever the platform; exact names.
    pub allow_commands: Vec<String>,
    /// Commands that may not; exact names. They win.
    pub deny_commands: Vec<String>,
    /// Whether nodes may publish tools for agents.
    pub plugin_tools: bool,
    /// Whether nodes may publish skills.
    pub allow_skills: bool,
}

impl Default for NodePolicy {
    fn default() -> Self {
        Self { allow_commands: Vec::new(), deny_commands: Vec::new(), plugin_tools: true, allow_skills: true }
    }
}

impl NodePolicy {
    fn commands(&self) -> CommandPolicy {
        let [allow, deny] = [&self.allow_commands, &self.deny_commands].map(|list| list.iter().map(String::as_str));
        CommandPolicy::new(allow, deny)
    }
}

/// What a node declares in `connect`. Claims: what of it counts is decided here.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    /// Capabilities.
    pub caps: Vec<String>,
    /// Commands.
    pub commands: Vec<String>,
    /// What its operating system lets it do.
    pub permissions: BTreeMap<String, bool>,
    /// Its `PATH`, for diagnosis.
    pub path_env: Option<String>,
}

/// Counts since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls taken in.
    pub begun: u64,
    /// Calls that nodes answered.
    pub answered: u64,
    /// Calls whose time was up.
    pub timed_out: u64,
    /// Calls that were lost with their node.
    pub disconnected: u64,
    /// Calls that could not be sent, or whose caller went.
    pub abandoned: u64,
    /// Calls refused because too many waited.
    pub busy: u64,
    /// Results that came too late, twice, or from a connection that was not the node's.
    pub late: u64,
}

/// Calls that a thread has seen begin and end.
#[derive(Debug, Default)]
struct Flow {
    begun: AtomicU64,
    ended: AtomicU64,
}

#[derive(Debug)]
struct Counters {
    /// Room for calls that wait.
    room: Budget,
    flow: Spread<Flow>,
    timed_out: AtomicU64,
    disconnected: AtomicU64,
    abandoned: AtomicU64,
    busy: AtomicU64,
    late: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        let [timed_out, disconnected, abandoned, busy, late] = Default::default();
        let (room, flow) = (Budget::new(MAX_CALLS), Spread::default());
        Self { room, flow, timed_out, disconnected, abandoned, busy, late }
    }
}

impl Counters {
    /// Counts a call that is to begin; `false` when there are as many as there may be.
    fn begin(&self) -> bool {
        let has_room = self.room.take(1);
        if has_room {
            self.flow.here().begun.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Counts a call that has ended.
    fn end(&self) {
        self.flow.here().ended.fetch_add(1, Ordering::Relaxed);
        self.room.give_back(1);
    }

    /// Counts a call that did not begin after all.
    fn take_back(&self) {
        self.flow.here().begun.fetch_sub(1, Ordering::Relaxed);
        self.room.give_back(1);
    }

    /// Calls that wait.
    fn waiting(&self) -> usize {
        self.room.used()
    }

    fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [timed_out, disconnected, abandoned] = [&self.timed_out, &self.disconnected, &self.abandoned].map(read);
        Counts {
            // One thread's may be less than none: wrapping, the sum is right all the same.
            begun: self.flow.all().fold(0, |sum, flow| sum.wrapping_add(read(&flow.begun))),
            answered: self
                .flow
                .all()
                .map(|flow| read(&flow.ended))
                .sum::<u64>()
                .saturating_sub(timed_out + disconnected + abandoned),
            timed_out,
            disconnected,
            abandoned,
            busy: read(&self.busy),
            late: read(&self.late),
        }
    }
}

/// Handle to the nodes. Cheap to clone.
#[derive(Clone)]
pub struct Nodes(Arc<Inner>);

/// Calls by the connection that follows their output.
type Streams = HashMap<ConnId, Vec<Running>>;

struct Inner {
    hub: Hub,
    store: Store,
    devices: Devices,
    /// What is on disk. Locked before a shard of `live` where both are needed, so that an approval and a node that
    /// connects meet in one order or the other.
    known: Mutex<Known>,
    live: Live,
    repeats: Repeats<Place>,
    deadlines: Deadlines,
    streams: Mutex<Streams>,
    policy: ArcSwap<CommandPolicy>,
    settings: ArcSwap<NodePolicy>,
    counters: Counters,
}

impl Nodes {
    /// Reads what is kept from `store`, which must have been opened with the devices' schema and [`SCHEMA`], in this
    /// order. Takes the one hook that `devices` has for removals. Blocks for the reading.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn open(
        store: Store,
        hub: Hub,
        devices: Devices,
        settings: NodePolicy,
        _now: UnixMs,
    ) -> Result<Self, StoreError> {
        let records = store.load(record::load)?;
        let inner = Arc::new(Inner {
            hub,
            store,
            devices,
            known: Mutex::new(Known::new(records)),
            live: Live::default(),
            repeats: Repeats::default(),
            deadlines: Deadlines::default(),
            streams: Mutex::default(),
            policy: ArcSwap::from_pointee(settings.commands()),
            settings: ArcSwap::from_pointee(settings),
            counters: Counters::default(),
        });
        let hooked = Arc::downgrade(&inner);
        inner.devices.on_removed(move |device, role| {
            if let Some(inner) = hooked.upgrade().filter(|_| role == Role::Node) {
                inner.forget(device);
            }
        });
        Ok(Self(inner))
    }

    /// Keeps the deadlines of calls until dropped. Cancel safe.
    pub async fn run(self) {
        loop {
            self.0.deadlines.due().await;
            self.0.sweep(deadline::now());
        }
    }

    /// A node has connected: from now on it can be called, as far as it was approved. Without an approval of what it
    /// declares, the request for one is on disk when this returns.
    ///
    /// The connection of the same node before it, if any, is closed. Connections are told apart by when they came, so
    /// the order in which two of a node get here does not matter.
    ///
    /// # Errors
    /// The request could not be stored.
    ///
    /// # Cancel safety
    /// Dropped half-way, the node is connected all the same: call [`Nodes::disconnected`].
    pub async fn connected(
        &self,
        connection: &Arc<Connection>,
        declared: Declared,
        now: UnixMs,
    ) -> Result<(), RpcError> {
        let Some(node_id) = connection.grant.device().filter(|_| connection.grant.is_paired()) else {
            return Err(RpcError::invalid("a node needs a paired device identity"));
        };
        let noting = self.note_session(Arc::clone(connection), node_id, true, now);
        if self.join(node_id, connection, declared) {
            noting.await?;
        } else {
            // Nothing that anyone waits for: when it was last seen, and what it said of itself.
            note(node_id, noting);
        }
        Ok(())
    }

    /// Makes the connection its node's. Says whether that changes what waits for approval.
    fn join(&self, node_id: DeviceId, connection: &Arc<Connection>, declared: Declared) -> bool {
        let inner = &*self.0;
        let surface = Surface::declared(
            declared.caps.iter().map(String::as_str),
            declared.commands.iter().map(String::as_str),
            declared.permissions.iter().map(|(name, on)| (name.as_str(), *on)),
        );
        let (joined, news) = {
            let mut known = inner.known();
            let record = known.get(node_id);
            let approval = record.and_then(|record| record.approval.as_ref()).map(|approved| &approved.approval);
            let pins = pairing::pins(connection);
            let judged = pairing::judge(&inner.policy.load(), &surface, &pins, approval);
            let request = record.and_then(|record| record.request.as_ref());
            let news = judged.changes(request, node_id, &pins);
            let path_env = declared.path_env.map(String::into_boxed_str);
            let session = Session::new(node_id, Arc::clone(connection), surface, path_env, judged.effective);
            let joined = inner.live.join(&Arc::new(session));
            known.moved(node_id);
            (joined, news)
        };
        match joined {
            Joined::Outdated => {
                connection.close(CloseCode::POLICY_VIOLATION, "a newer connection of this node is there already");
                false
            }
            Joined::Current(before) => {
                if let Some(before) = before {
                    tracing::info!(node = %node_id, old = %before.connection.id, new = %connection.id, "node reconnected");
                    inner.end_calls(&before);
                    before.connection.close(CloseCode::POLICY_VIOLATION, "replaced by a newer connection of this node");
                }
                news
            }
        }
    }

    /// A connection has ended. Calls that waited for it, or that it waited for, end with it.
    pub fn disconnected(&self, connection: &Connection) {
        let now = UnixMs::now();
        let inner = &*self.0;
        inner.caller_gone(connection);
        let Some(session) = inner.live.leave(connection) else { return };
        inner.end_calls(&session);
        inner.known().moved(session.node_id);
        if session.publications().activity.take().is_some() {
            inner.show_activity(&session, None);
        }
        note(session.node_id, self.keep(session.node_id, move |record| record.disconnected_at = Some(now)));
    }

    /// Takes other settings into effect, also for nodes that are connected. False when they are as before.
    pub fn configure(&self, settings: NodePolicy) -> bool {
        let inner = &*self.0;
        if **inner.settings.load() == settings {
            return false;
        }
        let (plugin_tools, allow_skills) = (settings.plugin_tools, settings.allow_skills);
        {
            // A node that joins holds this from the look at the policy until it is among the connected.
            let _known = inner.known();
            inner.policy.store(Arc::new(settings.commands()));
            inner.settings.store(Arc::new(settings));
        }
        for session in inner.live.all() {
            let node_id = session.node_id;
            {
                let mut published = session.publications();
                if !plugin_tools {
                    published.tools.clear();
                }
                if !allow_skills {
                    published.skills.clear();
                }
            }
            if inner.take_into_effect(&mut inner.known(), node_id) {
                let noting = self.note_session(Arc::clone(&session.connection), node_id, false, UnixMs::now());
                note(node_id, noting);
            }
        }
        true
    }

    /// How many nodes are connected.
    pub fn connected_count(&self) -> usize {
        self.0.live.len()
    }

    /// How many calls wait for nodes.
    pub fn waiting_calls(&self) -> usize {
        self.0.counters.waiting()
    }

    /// What has happened since start.
    pub fn counts(&self) -> Counts {
        self.0.counters.read()
    }

    /// The payload of `node.list`; `pairing` for callers who manage pairing.
    fn list(&self, pairing: bool, now: UnixMs) -> Vec<u8> {
        let inner = &*self.0;
        let active = inner.active_node();
        let strangers = inner.strangers();
        let rows = {
            let mut known = inner.known();
            let mut rows = known.rows(&inner.live);
            let strangers = strangers.iter().filter(|(id, _)| known.get(*id).is_none());
            rows.extend(strangers.map(|(id, record)| Arc::new(known::encode(*id, record, None))));
            rows
        };
        let mut out = Vec::with_capacity(64 + rows.iter().map(|row| row.bytes()).sum::<usize>());
        out.extend_from_slice(format!(r#"{{"ts":{}"#, now.0).as_bytes());
        if let Some(active) = active {
            out.extend_from_slice(format!(r#","activeNodeId":"{active}""#).as_bytes());
        }
        out.extend_from_slice(br#","nodes":["#);
        for (at, row) in rows.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            row.write(pairing, active, &mut out);
        }
        out.extend_from_slice(b"]}");
        out
    }

    /// The payload of `node.describe`: the node's row, why what it declares can't be called, and its skills.
    fn describe(&self, node_id: DeviceId, pairing: bool, now: UnixMs) -> Option<Vec<u8>> {
        let inner = &*self.0;
        let active = inner.active_node();
        let row = inner.known().row(node_id, &inner.live);
        let row = row.or_else(|| {
            let (id, record) = inner.strangers().into_iter().find(|(id, _)| *id == node_id)?;
            Some(Arc::new(known::encode(id, &record, None)))
        })?;
        let mut out = format!(r#"{{"ts":{},"#, now.0).into_bytes();
        let start = out.len();
        row.write(pairing, active, &mut out);
        out.remove(start);
        if let Some(session) = inner.live.get(node_id) {
            let effective = session.effective.load();
            let withheld: BTreeMap<_, _> = session
                .declared
                .commands
                .iter()
                .filter(|command| !effective.surface.has_command(command))
                .map(|command| (command, inner.refusal(&session, command).message))
                .collect();
            let published = session.publications();
            let skill = |skill: &Skill| json!({"name": skill.name, "description": skill.description});
            let skills: Vec<_> = published.skills.iter().map(skill).collect();
            let more = json!({"withheldCommands": withheld, "nodeSkills": skills});
            out.pop();
            out.push(b',');
            out.extend_from_slice(&crate::hub::registry::encode(&more)[1..]);
        }
        Some(out)
    }
}

/// Lets a write go on behind the back of whoever caused it; a failure is logged.
fn note<T>(node_id: DeviceId, writing: impl Future<Output = Result<T, StoreError>> + Send + 'static) {
    crate::task::spawn("nodes.note", async move {
        if let Err(error) = writing.await {
            tracing::warn!(node = %node_id, %error, "what a node last said was not stored");
        }
    });
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes").field("connected", &self.0.live.len()).finish_non_exhaustive()
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Whole after every statement, so that a poisoned lock still holds the truth.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Devices that are paired as nodes and have not connected since, and all that is known of them.
    fn strangers(&self) -> Vec<(DeviceId, Record)> {
        let paired = self.devices.all();
        let strangers: Vec<_> = {
            let known = self.known();
            let is_stranger = |id| known.get(id).is_none();
            paired
                .iter()
                .filter(|(device, _)| is_stranger(device.id))
                .filter(|(device, _)| device.standing_approvals().any(|approval| approval.role == Role::Node))
                .collect()
        };
        let record = strangers.into_iter().map(|(device, seen)| {
            let claims = &device.claims;
            let facts = Facts {
                client_id: claims.client_id.clone(),
                client_mode: claims.client_mode.clone(),
                display_name: claims.display_name.clone(),
                platform: claims.platform.clone(),
                device_family: claims.device_family.clone(),
                remote_ip: seen.remote_ip.map(|ip| ip.to_string().into()),
                ..Facts::default()
            };
            let seen = seen.at.map(|at| (at, SeenReason::Connect));
            (device.id, Record { name: device.label.clone(), facts, seen, ..Record::default() })
        });
        record.collect()
    }

    fn is_approved(&self, node_id: DeviceId) -> bool {
        self.known().get(node_id).is_some_and(|record| record.approval.is_some())
    }

    /// The connected node whose user was active last.
    fn active_node(&self) -> Option<DeviceId> {
        let activity = |session: &Arc<Session>| Some((session.publications().activity?, session.node_id));
        let times = |activity: &Activity| (activity.last_active_at_ms, activity.presence_updated_at_ms);
        let active = self.live.all().iter().filter_map(activity).max_by_key(|(activity, _)| times(activity));
        active.map(|(_, node_id)| node_id)
    }

    /// Tells readers when a node's user was last active, or that it is not known any more.
    fn show_activity(&self, session: &Session, activity: Option<Activity>) {
        self.known().touch(session.node_id);
        let payload = json!({
            "nodeId": session.node_id.to_string(),
            "lastActiveAtMs": activity.map(|activity| activity.last_active_at_ms),
            "presenceUpdatedAtMs": activity.map(|activity| activity.presence_updated_at_ms),
        });
        self.hub.broadcast(Event::NODE_PRESENCE, &payload);
    }

    /// Why a node that is not connected can't be called.
    fn not_connected(&self, node_id: Option<DeviceId>) -> RpcError {
        let is_paired = node_id
            .and_then(|id| self.devices.facts(id))
            .is_some_and(|device| device.standing_approvals().any(|approval| approval.role == Role::Node));
        let message = match is_paired {
            true => "node not connected",
            false => "node not connected: no node of this id is paired; see node.list",
        };
        let mut details = json!({
            "code": "NOT_CONNECTED",
            "known": is_paired,
            "nodeError": {"code": "NOT_CONNECTED", "message": "node not connected"},
            "nodeCommandDispatched": false,
            "dispatch": "not_sent",
        });
        if let Some((at, _)) = node_id.and_then(|id| self.known().get(id)?.seen) {
            details["lastSeenAtMs"] = json!(at);
        }
        RpcError::unavailable(message).retryable(is_paired).with_details(details)
    }

    /// Why a connected node can't be called with this command.
    fn refusal(&self, session: &Session, command: &str) -> RpcError {
        if let Err(error) = Guard::of(command).check_reachable(command) {
            return error;
        }
        let shown: String = command.chars().filter(|c| !c.is_control()).take(128).collect();
        let pins = pairing::pins(&session.connection);
        let declared = &session.declared;
        let known = self.known();
        let record = known.get(session.node_id);
        let approved = record.and_then(|record| record.approval.as_ref());
        let approved = approved.is_some_and(|approved| approved.approval.surface.has_command(command));
        let offered = self.policy.load().may_offer(pairing::kind(&pins, declared), command);
        let (reason, why) = if offered && declared.commands.is_empty() {
            ("node did not declare commands", "the node did not declare any supported commands".to_owned())
        } else if offered && !declared.has_command(command) {
            let platform = &pins.platform;
            ("command not declared by node", format!("the node (platform: {platform}) does not support \"{shown}\""))
        } else if offered && !approved {
            let how = match record.and_then(|record| record.request.as_ref()) {
                Some(request) => format!("run `nodes approve {}`", request.request_id),
                None => "reconnect the node, then see `nodes pending`".to_owned(),
            };
            ("command not approved", format!("\"{shown}\" waits for an operator's approval; {how}"))
        } else {
            ("command not allowlisted", self.why_not_allowlisted(&pins, &shown))
        };
        RpcError::invalid(format!("node command not allowed: {why}"))
            .with_details(json!({"reason": reason, "command": shown, "dispatch": "not_sent"}))
    }

    /// Why policy does not let a command run, and what would.
    fn why_not_allowlisted(&self, pins: &Pins, command: &str) -> String {
        let Pins { platform, device_family } = pins;
        if self.settings.load().deny_commands.iter().any(|denied| denied.trim() == command) {
            return format!("\"{command}\" is denied by gateway.nodes.commands.deny");
        }
        match Platform::why_unknown(platform, device_family) {
            Some(why) => format!("\"{command}\": {why}"),
            None => format!(
                "\"{command}\" is not in the allowlist for platform \"{platform}\"; gateway.nodes.commands.allow can add it"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
