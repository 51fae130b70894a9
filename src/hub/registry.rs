//! Every authenticated connection, by number; events to all who may have them; closing by rule.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;

use super::outbox::{Budget, Closing, EncodedEvent, Outbox, Pushed};
use super::presence::Presence;
use crate::auth::Grant;
use crate::clock::UnixMs;
use crate::id::ConnId;
use crate::rpc::catalog::Event;
use crate::ws::close::CloseCode;

/// What a client said of itself in `connect`. Claims, not facts: for display and for policy that pairing
/// has pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Kind of program: `cli`, `node-host`, `openclaw-control-ui`, ...
    pub id: Box<str>,
    /// Name for people.
    pub display_name: Option<Box<str>>,
    /// Version of the program.
    pub version: Box<str>,
    /// `linux`, `macos`, `ios`, ...
    pub platform: Box<str>,
    /// `Linux`, `iPhone`, ...
    pub device_family: Option<Box<str>>,
    /// Hardware model.
    pub model_identifier: Option<Box<str>>,
    /// `cli`, `backend`, `node`, `probe`, `ui`, ...
    pub mode: Box<str>,
    /// Chosen by the program for one run of itself.
    pub instance_id: Option<Box<str>>,
}

/// One authenticated connection, as everyone but its driver sees it.
#[derive(Debug)]
pub struct Connection {
    /// Number since start.
    pub id: ConnId,
    /// What it may do; made by `auth`, never changed.
    pub grant: Grant,
    /// What it says it is.
    pub client: Client,
    /// Address of the client (behind a trusted proxy: of the client, not the proxy).
    pub remote_ip: Option<IpAddr>,
    /// When `hello-ok` was sent.
    pub connected_at: UnixMs,
    /// What waits to be written to it.
    pub outbox: Outbox,
}

impl Connection {
    /// Sends `event` to this connection alone, without a number.
    pub fn send_event(&self, event: &'static Event, payload: &impl Serialize) -> Pushed {
        self.send_event_json(event, &encode(payload))
    }

    /// Sends `event` with a payload that is JSON already.
    pub fn send_event_json(&self, event: &'static Event, payload: &[u8]) -> Pushed {
        let mut text = Vec::with_capacity(payload.len() + 64);
        EncodedEvent::new(event, payload, None).write(None, &mut text);
        self.outbox.push_text(text)
    }

    /// Closes it with a reason, after what waits has been written.
    pub fn close(&self, code: CloseCode, reason: impl Into<String>) {
        self.outbox.close(Closing { code, reason: reason.into(), flush: true });
    }
}

/// Sequence numbers of the two states that clients keep a copy of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StateVersion {
    /// Of the presence list.
    pub presence: u64,
    /// Of the health summary.
    pub health: u64,
}

/// Handle to the registry of connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: RwLock<HashMap<ConnId, Arc<Connection>>>,
    next_id: AtomicU64,
    budget: Arc<Budget>,
    outbox_bytes: usize,
    presence: Presence,
    health_version: AtomicU64,
}

impl Hub {
    /// An empty registry. `outbox_bytes` bounds what waits for one connection, `total_bytes` for all.
    pub fn new(outbox_bytes: usize, total_bytes: usize) -> Self {
        Self(Arc::new(Inner {
            connections: RwLock::default(),
            next_id: AtomicU64::new(1),
            budget: Arc::new(Budget::new(total_bytes)),
            outbox_bytes,
            presence: Presence::default(),
            health_version: AtomicU64::new(1),
        }))
    }

    /// A number for a new socket.
    pub fn next_id(&self) -> ConnId {
        ConnId(self.0.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes an authenticated connection in.
    pub fn register(
        &self,
        id: ConnId,
        grant: Grant,
        client: Client,
        remote_ip: Option<IpAddr>,
        now: UnixMs,
    ) -> Arc<Connection> {
        let outbox = Outbox::new(self.0.outbox_bytes, Arc::clone(&self.0.budget));
        let connection = Arc::new(Connection { id, grant, client, remote_ip, connected_at: now, outbox });
        self.write().insert(id, Arc::clone(&connection));
        self.0.presence.joined(&connection, now);
        connection
    }

    /// Forgets a connection that has ended.
    pub fn unregister(&self, id: ConnId) {
        if let Some(connection) = self.write().remove(&id) {
            self.0.presence.left(&connection);
        }
    }

    /// The connection of that number, while it lives.
    pub fn get(&self, id: ConnId) -> Option<Arc<Connection>> {
        self.read().get(&id).cloned()
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Who is there.
    pub fn presence(&self) -> &Presence {
        &self.0.presence
    }

    /// The limit on what waits for one connection, in bytes.
    pub fn outbox_bytes(&self) -> usize {
        self.0.outbox_bytes
    }

    /// Bytes that wait for all connections.
    pub fn queued_bytes(&self) -> usize {
        self.0.budget.used_bytes()
    }

    /// The current state versions.
    pub fn state_version(&self) -> StateVersion {
        StateVersion { presence: self.0.presence.version(), health: self.0.health_version.load(Ordering::Relaxed) }
    }

    /// Notes that the health summary has changed, and returns the new versions.
    pub fn health_changed(&self) -> StateVersion {
        self.0.health_version.fetch_add(1, Ordering::Relaxed);
        self.state_version()
    }

    /// Sends `event` to every connection that may have it. Returns how many took it.
    pub fn broadcast(&self, event: &'static Event, payload: &impl Serialize) -> usize {
        self.broadcast_encoded(&Arc::new(EncodedEvent::new(event, &encode(payload), None)))
    }

    /// Sends `event` together with the state versions.
    pub fn broadcast_state(&self, event: &'static Event, payload: &impl Serialize) -> usize {
        let version = encode(&self.state_version());
        self.broadcast_encoded(&Arc::new(EncodedEvent::new(event, &encode(payload), Some(&version))))
    }

    /// Sends bytes that are encoded already.
    pub fn broadcast_encoded(&self, event: &Arc<EncodedEvent>) -> usize {
        let audience = event.event().audience;
        self.read()
            .values()
            .filter(|connection| audience.includes(connection.grant.role(), connection.grant.scopes()))
            .filter(|connection| connection.outbox.push_event(event) == Pushed::Queued)
            .count()
    }

    /// Closes every connection that `which` picks. Returns how many.
    pub fn close_where(&self, code: CloseCode, reason: &str, which: impl Fn(&Connection) -> bool) -> usize {
        self.read()
            .values()
            .filter(|connection| which(connection))
            .map(|connection| connection.close(code, reason))
            .count()
    }

    /// Every connection, for those that must look at each.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.read().values().cloned().collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<ConnId, Arc<Connection>>> {
        self.0.connections.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<ConnId, Arc<Connection>>> {
        self.0.connections.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// JSON of a value of ours.
#[expect(clippy::expect_used, reason = "our own payload types have string keys and cannot fail to encode")]
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a payload of ours encodes")
}
