//! Nodes that are connected now: one [`Session`] a node, the newest connection's.
//!
//! A session is one connection of one node, with what may be done through it and the calls it has not answered.
//! Everything that a connection can end ends with its session: a result, a disconnect or a timeout of one
//! session can't touch another of the same node. Looking a node up takes one short shared lock of a shard.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::deadline::Tick;
use super::guard::Guard;
use super::invoke::Waiting;
use super::pending::{Table, Token};
use super::publications::Publications;
use super::surface::Surface;
use crate::auth::DeviceId;
use crate::hub::Connection;
use crate::id;
use crate::rpc::dispatch::Responder;
use crate::secret::hex;

/// Calls that may wait for one node.
pub(super) const MAX_CALLS_PER_NODE: u16 = 1024;

/// What may be done through a session now: declared, approved and let by policy.
#[derive(Debug, Default)]
pub(super) struct Effective {
    /// As a surface, for those who list it.
    pub surface: Surface,
    guards: Box<[Guard]>,
}

/// A command that may be called.
#[derive(Clone, Debug)]
pub(super) struct Command {
    /// Its name; needs no escape in JSON.
    pub name: Arc<str>,
    /// What to mind.
    pub guard: Guard,
}

impl Effective {
    /// Takes a surface into effect.
    pub(super) fn new(surface: Surface) -> Self {
        let guards = surface.commands.iter().map(|command| Guard::of(command)).collect();
        Self { surface, guards }
    }

    /// The command of that name, if it may be called.
    pub(super) fn command(&self, name: &str) -> Option<Command> {
        let at = self.surface.commands.binary_search_by(|known| (**known).cmp(name)).ok()?;
        Some(Command { name: Arc::clone(&self.surface.commands[at]), guard: self.guards[at] })
    }
}

/// Calls of one session that wait for an answer.
#[derive(Debug)]
pub(super) struct Calls {
    table: Table<Waiting>,
    ended: bool,
}

/// Why a call was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// There are as many calls as there may be.
    Full,
    /// The session has just ended.
    Ended,
}

/// One connection of one node.
#[derive(Debug)]
pub(super) struct Session {
    /// The node: its device.
    pub node_id: DeviceId,
    /// The same as a JSON string.
    pub node_id_json: Box<str>,
    /// Its connection.
    pub connection: Arc<Connection>,
    /// What it declared.
    pub declared: Surface,
    /// Its `PATH`, for diagnosis.
    pub path_env: Option<Box<str>>,
    /// Whether it is an app that its system puts to sleep: some commands need it open.
    pub sleeps: bool,
    /// What may be done through it.
    pub effective: ArcSwap<Effective>,
    /// What it has published since it connected.
    pub publications: Mutex<Publications>,
    /// Calls it has not answered.
    calls: Mutex<Calls>,
    /// No later than the first deadline among them.
    earliest: AtomicU64,
    /// First half of the ids of its calls; random, so that no late answer to another session, or to another
    /// run of the gateway, can be taken for one of this.
    call_prefix: [u8; 16],
}

/// Bytes of a call's id on the wire: the session's half and the token's, in hex.
pub(super) const CALL_ID_BYTES: usize = 32;

impl Session {
    /// A session that has just begun.
    pub(super) fn new(
        node_id: DeviceId,
        connection: Arc<Connection>,
        declared: Surface,
        path_env: Option<Box<str>>,
        effective: Effective,
    ) -> Self {
        let platform = connection.client.platform.trim().to_ascii_lowercase();
        let sleeps = platform.starts_with("ios") || platform.starts_with("ipados");
        let mut call_prefix = [0; 16];
        call_prefix.copy_from_slice(hex(&id::random_bytes::<8>()).as_bytes());
        Self {
            node_id_json: format!("\"{node_id}\"").into(),
            node_id,
            connection,
            declared,
            path_env,
            sleeps,
            effective: ArcSwap::from_pointee(effective),
            publications: Mutex::default(),
            calls: Mutex::new(Calls { table: Table::new(MAX_CALLS_PER_NODE), ended: false }),
            earliest: AtomicU64::new(Tick::NEVER.0),
            call_prefix,
        }
    }

    /// Whether this is the session of that connection.
    pub(super) fn is_of(&self, connection: &Connection) -> bool {
        self.connection.id == connection.id
    }

    /// What the node has published.
    pub(super) fn publications(&self) -> MutexGuard<'_, Publications> {
        self.publications.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a call in.
    ///
    /// # Errors
    /// It can't: the call comes back.
    pub(super) fn call(&self, deadline: Option<(Instant, Tick)>, call: Waiting) -> Result<Token, (NotTaken, Waiting)> {
        let mut calls = self.calls();
        if calls.ended {
            return Err((NotTaken::Ended, call));
        }
        let token = calls.table.insert(deadline.map(|(at, _)| at), call).map_err(|call| (NotTaken::Full, call))?;
        // Only written with the lock held.
        if let Some((_, tick)) = deadline
            && tick.0 < self.earliest.load(Ordering::SeqCst)
        {
            self.earliest.store(tick.0, Ordering::SeqCst);
        }
        Ok(token)
    }

    /// Takes a call out, if it still waits.
    pub(super) fn take(&self, token: Token) -> Option<Waiting> {
        self.calls().table.take(token)
    }

    /// Lets a repeat wait along with a call.
    ///
    /// # Errors
    /// The call waits no more, or has repeats enough: the responder comes back.
    pub(super) fn join(&self, token: Token, responder: Responder) -> Result<(), Responder> {
        match self.calls().table.get_mut(token) {
            Some(waiting) => waiting.join(responder),
            None => Err(responder),
        }
    }

    /// Looks at a call, if it still waits.
    pub(super) fn with<R>(&self, token: Token, look: impl FnOnce(&mut Waiting) -> R) -> Option<R> {
        self.calls().table.get_mut(token).map(look)
    }

    /// Takes out the calls whose time is up; says when the next one's is.
    pub(super) fn expired(
        &self,
        now: Instant,
        tick: Tick,
        at: impl Fn(Instant) -> Tick,
        out: &mut Vec<(Token, Waiting)>,
    ) -> Tick {
        let earliest = Tick(self.earliest.load(Ordering::SeqCst));
        if earliest > tick {
            return earliest;
        }
        let mut calls = self.calls();
        let next = calls.table.expired(now, |token, waiting| out.push((token, waiting))).map_or(Tick::NEVER, at);
        self.earliest.store(next.0, Ordering::SeqCst);
        next
    }

    /// Ends the session for new calls and takes out those that wait.
    pub(super) fn end(&self) -> Vec<(Token, Waiting)> {
        let mut calls = self.calls();
        calls.ended = true;
        calls.table.drain().collect()
    }

    /// Writes the id that the node is to answer `token` with.
    pub(super) fn write_call_id(&self, token: Token, out: &mut [u8]) {
        let Some((prefix, number)) = out.split_at_mut_checked(16) else { return };
        prefix.copy_from_slice(&self.call_prefix);
        for (at, digit) in number.iter_mut().enumerate().take(16) {
            *digit = b"0123456789abcdef"[(token.get() >> (60 - 4 * at) & 15) as usize];
        }
    }

    /// The token of a call id, if it is one of this session's.
    pub(super) fn token(&self, call_id: &str) -> Option<Token> {
        let (prefix, number) = call_id.as_bytes().split_at_checked(16)?;
        if prefix != self.call_prefix || number.len() != 16 {
            return None;
        }
        let mut token = 0;
        for digit in number {
            let digit = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            token = token << 4 | u64::from(digit);
        }
        Some(Token::from_number(token))
    }
}

/// Shards of the registry.
const SHARDS: usize = 16;

/// A node's id as it stands on the wire: a call is looked up by the text it came with.
type IdText = [u8; 64];

fn text_of(id: DeviceId) -> IdText {
    *id.to_string().as_bytes().first_chunk().unwrap_or(&[0; 64])
}

type Shard = RwLock<HashMap<IdText, Arc<Session>, DigestState>>;

/// Hashes keys that are digests already: two multiplications instead of a pass over 64 bytes. Keyed with a secret of
/// this run, so that nobody can look for ids that fall together.
#[derive(Clone, Debug)]
struct DigestState([u64; 2]);

impl Default for DigestState {
    fn default() -> Self {
        let [low, high] = [id::random_bytes(), id::random_bytes()].map(u64::from_le_bytes);
        // An odd factor loses no bit.
        Self([low, high | 1])
    }
}

impl BuildHasher for DigestState {
    type Hasher = DigestHasher;

    fn build_hasher(&self) -> DigestHasher {
        let [state, factor] = self.0;
        DigestHasher { state, factor }
    }
}

struct DigestHasher {
    state: u64,
    factor: u64,
}

impl Hasher for DigestHasher {
    fn write(&mut self, digest: &[u8]) {
        for part in digest.chunks_exact(8).take(2) {
            let part = part.first_chunk().map_or(0, |part| u64::from_le_bytes(*part));
            let product = u128::from(self.state ^ part) * u128::from(self.factor);
            self.state = (product >> 64) as u64 ^ product as u64;
        }
    }

    // Of the length of the key, which is always the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.state
    }
}

/// Every session.
#[derive(Debug, Default)]
pub(super) struct Live {
    shards: [Shard; SHARDS],
    count: AtomicUsize,
}

/// What became of a session that wanted to be its node's.
#[derive(Debug)]
pub(super) enum Joined {
    /// It is the node's session; the one before it, if any, is not any more.
    Current(Option<Arc<Session>>),
    /// A newer connection of the node is there already.
    Outdated,
}

impl Live {
    fn shard(&self, id: &IdText) -> &Shard {
        &self.shards[usize::from(id[0] ^ id[1] << 4) % SHARDS]
    }

    /// The session of a node, while it is connected.
    pub(super) fn get(&self, node_id: DeviceId) -> Option<Arc<Session>> {
        self.find(&text_of(node_id))
    }

    /// The session of the node of this id, as it stands on the wire.
    pub(super) fn find(&self, node_id: &[u8]) -> Option<Arc<Session>> {
        let id = node_id.try_into().ok()?;
        self.shard(id).read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// The session of this very connection, if it is still its node's.
    pub(super) fn of(&self, connection: &Connection) -> Option<Arc<Session>> {
        self.get(connection.grant.device()?).filter(|session| session.is_of(connection))
    }

    /// Makes `session` its node's, unless a newer connection is. Connections are numbered as they come, so the
    /// order of two calls of this does not matter.
    pub(super) fn join(&self, session: &Arc<Session>) -> Joined {
        let id = text_of(session.node_id);
        let mut shard = self.shard(&id).write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(&id).is_some_and(|current| current.connection.id > session.connection.id) {
            return Joined::Outdated;
        }
        let before = shard.insert(id, Arc::clone(session));
        if before.is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Joined::Current(before)
    }

    /// Takes the session of this very connection out; another of the same node stays.
    pub(super) fn leave(&self, connection: &Connection) -> Option<Arc<Session>> {
        let id = text_of(connection.grant.device()?);
        let mut shard = self.shard(&id).write().unwrap_or_else(PoisonError::into_inner);
        if !shard.get(&id)?.is_of(connection) {
            return None;
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        shard.remove(&id)
    }

    /// Every session.
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            all.extend(shard.read().unwrap_or_else(PoisonError::into_inner).values().cloned());
        }
        all
    }

    /// How many nodes are connected.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
