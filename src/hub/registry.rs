//! Every authenticated connection, by number; events to all who may have them; closing by rule.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::Serialize;

use super::outbox::{Budget, Closing, EncodedEvent, Outbox, Pushed};
use super::presence::Presence;
use crate::auth::Grant;
use crate::clock::{UnixMs, monotonic_s};
use crate::id::ConnId;
use crate::limits;
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
    /// Signs of life.
    pub pulse: Pulse,
}

/// Signs of life of one connection, on the clock of [`crate::clock::monotonic_s`].
#[derive(Debug)]
pub struct Pulse {
    received_s: AtomicU32,
    pinged_s: AtomicU32,
}

/// What the pulse says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Alive as far as one can tell: ping it.
    Ping,
    /// A ping is under way.
    Wait,
    /// Nothing came for too long.
    Dead,
}

impl Pulse {
    /// A connection that was heard at `now_s`.
    pub const fn new(now_s: u32) -> Self {
        Self { received_s: AtomicU32::new(now_s), pinged_s: AtomicU32::new(0) }
    }

    /// Any bytes came: that is life, whatever they are.
    pub fn received(&self, now_s: u32) {
        self.received_s.store(now_s, Ordering::Relaxed);
    }

    /// A ping has been handed to the kernel. The deadline of the pong counts from here, not from when the ping was
    /// queued behind other data.
    pub fn pinged(&self, now_s: u32) {
        self.pinged_s.store(now_s, Ordering::Relaxed);
    }

    /// What to do about the connection now.
    pub fn judge(&self, now_s: u32) -> Life {
        let interval = limits::PING_INTERVAL.as_secs() as u32;
        let deadline = limits::PONG_DEADLINE.as_secs() as u32;
        let (received, pinged) = (self.received_s.load(Ordering::Relaxed), self.pinged_s.load(Ordering::Relaxed));
        let silent_s = now_s.saturating_sub(received);
        let unanswered = pinged > received;
        if unanswered && now_s.saturating_sub(pinged) >= deadline || silent_s >= 2 * interval + deadline {
            Life::Dead
        } else if unanswered {
            Life::Wait
        } else {
            Life::Ping
        }
    }
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
        self.outbox.close(Closing { code, reason: reason.into(), flush: true, too_much: None });
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
    connections: [RwLock<Connections>; SHARDS],
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
            connections: std::array::from_fn(|_| RwLock::default()),
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
        let pulse = Pulse::new(monotonic_s());
        let connection = Arc::new(Connection { id, grant, client, remote_ip, connected_at: now, outbox, pulse });
        self.write(id).insert(id, Arc::clone(&connection));
        self.0.presence.joined(&connection, now);
        connection
    }

    /// A connection without a socket, for calls that the gateway makes itself. It is in no list; what is sent to it
    /// waits in its outbox for whoever made it.
    pub fn internal(&self, grant: Grant, client: Client, now: UnixMs) -> Arc<Connection> {
        let outbox = Outbox::new(self.0.outbox_bytes, Arc::clone(&self.0.budget));
        let (id, pulse) = (self.next_id(), Pulse::new(monotonic_s()));
        Arc::new(Connection { id, grant, client, remote_ip: None, connected_at: now, outbox, pulse })
    }

    /// Forgets a connection that has ended.
    pub fn unregister(&self, id: ConnId) {
        let removed = self.write(id).remove(&id);
        if let Some(connection) = removed {
            self.0.presence.left(&connection);
        }
    }

    /// The connection of that number, while it lives.
    pub fn get(&self, id: ConnId) -> Option<Arc<Connection>> {
        self.read(shard_of(id)).get(&id).cloned()
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.read(shard).len()).sum()
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
        self.0.budget.used()
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
        let mut taken = 0;
        self.each(|connection| {
            if audience.includes(connection.grant.role(), connection.grant.scopes())
                && connection.outbox.push_event(event) == Pushed::Queued
            {
                taken += 1;
            }
        });
        taken
    }

    /// Closes every connection that `which` picks. Returns how many.
    pub fn close_where(&self, code: CloseCode, reason: &str, which: impl Fn(&Connection) -> bool) -> usize {
        let mut closed = 0;
        self.each(|connection| {
            if which(connection) {
                connection.close(code, reason);
                closed += 1;
            }
        });
        closed
    }

    /// Every connection, for those that must look at each.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        let mut all = Vec::new();
        self.each(|connection| all.push(Arc::clone(connection)));
        all
    }

    /// One turn of the wheel: connections are spread over [`SHARDS`] slots, one slot is visited a second, and each
    /// connection in it gets its ping and its `tick`, or is closed when it gave no sign of life. No connection has
    /// a timer of its own.
    pub fn beat(&self, slot: usize, tick: &Arc<EncodedEvent>, now_s: u32) {
        for connection in self.read(slot % SHARDS).values() {
            match connection.pulse.judge(now_s) {
                Life::Ping => {
                    connection.outbox.push_ping();
                    connection.outbox.push_event(tick);
                }
                Life::Wait => {
                    connection.outbox.push_event(tick);
                }
                Life::Dead => connection.outbox.close(Closing {
                    code: CloseCode::POLICY_VIOLATION,
                    reason: "no sign of life: a ping was not answered in time".to_owned(),
                    flush: false,
                    too_much: None,
                }),
            }
        }
    }

    fn each(&self, mut visit: impl FnMut(&Arc<Connection>)) {
        for shard in 0..SHARDS {
            self.read(shard).values().for_each(&mut visit);
        }
    }

    fn read(&self, shard: usize) -> RwLockReadGuard<'_, Connections> {
        self.0.connections[shard].read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, id: ConnId) -> RwLockWriteGuard<'_, Connections> {
        self.0.connections[shard_of(id)].write().unwrap_or_else(PoisonError::into_inner)
    }
}

type Connections = HashMap<ConnId, Arc<Connection>>;

/// Slots of the wheel, and shards of the registry: one a second makes the ping interval.
pub const SHARDS: usize = limits::PING_INTERVAL.as_secs() as usize;

fn shard_of(id: ConnId) -> usize {
    (id.0 % SHARDS as u64) as usize
}

/// JSON of a value of ours.
#[expect(clippy::expect_used, reason = "our own payload types have string keys and cannot fail to encode")]
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a payload of ours encodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pong_deadline_counts_from_when_the_ping_was_written() {
        let pulse = Pulse::new(100);
        assert_eq!(pulse.judge(125), Life::Ping);
        // Queued at 125, but it stood behind a large message until 140.
        pulse.pinged(140);
        assert_eq!(pulse.judge(150), Life::Wait);
        assert_eq!(pulse.judge(165), Life::Dead);
        pulse.received(164);
        assert_eq!(pulse.judge(165), Life::Ping);
    }

    #[test]
    fn a_peer_that_takes_nothing_for_long_is_dead_even_if_no_ping_got_out() {
        let pulse = Pulse::new(100);
        assert_eq!(pulse.judge(150), Life::Ping);
        assert_eq!(pulse.judge(175), Life::Dead);
    }
}
