//! Idempotency keys: a caller that asks twice gets one execution.
//!
//! While a call runs, a repeat of it joins it. After it has ended with the node's answer, a repeat within
//! [`KEEP`] gets that answer again; an answer too large to keep is remembered as given. A call that ended
//! without the node's answer (too late, node gone) is forgotten: what became of it is unknown, and asking again
//! is the caller's decision.
//!
//! A caller is a device, or a connection where there is no device. Memory is bounded by number and bytes for all
//! nodes together; the oldest answers go first, so that under heavy load the window is shorter than [`KEEP`].

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::auth::DeviceId;
use crate::hub::Connection;
use crate::rpc::error::RpcError;

/// How long an answer is kept for a repeat.
pub(super) const KEEP: Duration = Duration::from_secs(600);
/// Answers kept, of all nodes.
pub(super) const MAX_KEPT: usize = 16 * 1024;
/// Bytes of answers kept, of all nodes.
pub(super) const MAX_KEPT_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of one answer that are kept; a larger one is only remembered.
pub(super) const MAX_ANSWER_BYTES: usize = 16 * 1024;

const SHARDS: usize = 16;

/// What makes two calls the same: caller, node, command and key. Hashed with a secret of this run, so that nobody
/// can make two calls look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RepeatKey(u64);

/// How a call ended.
#[derive(Clone, Debug)]
pub(super) enum Ended {
    /// With this payload.
    Answer(Arc<[u8]>),
    /// With this error of the node.
    Failure(Arc<RpcError>),
    /// With an answer that was too large to keep.
    TooLarge,
}

/// What came of a call that was to begin. What it needs to wait, `W`, comes back unless it has begun.
#[derive(Clone, Debug)]
pub(super) enum Begun<R, W, E> {
    /// It has begun now, as this.
    Started(R),
    /// It could not begin, for this reason.
    Refused(E, W),
    /// It runs already, as this.
    Running(R, W),
    /// It has ended, like this.
    Done(Ended, W),
}

#[derive(Debug)]
enum Known<R> {
    Running(R),
    Done(Ended, Instant),
}

#[derive(Debug)]
struct Shard<R> {
    known: HashMap<RepeatKey, Known<R>, BuildHasherDefault<Identity>>,
    /// Ended calls, oldest first.
    done: VecDeque<RepeatKey>,
    bytes: usize,
}

impl<R> Default for Shard<R> {
    fn default() -> Self {
        Self { known: HashMap::default(), done: VecDeque::new(), bytes: 0 }
    }
}

/// Calls that run or have ended. `R` is how to find a running one.
#[derive(Debug)]
pub(super) struct Repeats<R> {
    shards: [Mutex<Shard<R>>; SHARDS],
    secret: std::hash::RandomState,
}

impl<R> Default for Repeats<R> {
    fn default() -> Self {
        Self { shards: Default::default(), secret: std::hash::RandomState::new() }
    }
}

impl<R: Clone> Repeats<R> {
    /// The key of a call.
    pub(super) fn key(
        &self,
        caller: &Connection,
        node_id: DeviceId,
        command: &str,
        idempotency_key: &str,
    ) -> RepeatKey {
        let mut hash = self.secret.build_hasher();
        match caller.grant.device() {
            Some(device) => hash.write(device.as_bytes()),
            None => hash.write_u64(caller.id.0),
        }
        hash.write(node_id.as_bytes());
        for part in [command, idempotency_key] {
            hash.write(part.as_bytes());
            // No UTF-8 has this byte.
            hash.write_u8(0xff);
        }
        RepeatKey(hash.finish())
    }

    fn shard(&self, key: RepeatKey) -> MutexGuard<'_, Shard<R>> {
        self.shards[(key.0 >> 32) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins `call` with `start`, unless it has begun before.
    pub(super) fn begin<W, E>(
        &self,
        key: RepeatKey,
        now: Instant,
        call: W,
        start: impl FnOnce(W) -> Result<R, (E, W)>,
    ) -> Begun<R, W, E> {
        let mut shard = self.shard(key);
        let shard = &mut *shard;
        match shard.known.get(&key) {
            Some(Known::Running(running)) => return Begun::Running(running.clone(), call),
            Some(Known::Done(ended, at)) if now.saturating_duration_since(*at) < KEEP => {
                return Begun::Done(ended.clone(), call);
            }
            Some(stale @ Known::Done(..)) => {
                shard.bytes -= bytes(stale);
                shard.known.remove(&key);
                shard.done.retain(|done| *done != key);
            }
            None => {}
        }
        match start(call) {
            Ok(running) => {
                shard.known.insert(key, Known::Running(running.clone()));
                Begun::Started(running)
            }
            Err((reason, call)) => Begun::Refused(reason, call),
        }
    }

    /// Notes how a running call has ended.
    pub(super) fn end(&self, key: RepeatKey, ended: Ended, now: Instant) {
        let mut shard = self.shard(key);
        let shard = &mut *shard;
        let Some(known) = shard.known.get_mut(&key).filter(|known| matches!(known, Known::Running(_))) else { return };
        *known = Known::Done(ended, now);
        shard.bytes += bytes(known);
        shard.done.push_back(key);
        while shard.done.len() > MAX_KEPT / SHARDS || shard.bytes > MAX_KEPT_BYTES / SHARDS {
            let Some(oldest) = shard.done.pop_front() else { break };
            if let Some(gone) = shard.known.remove(&oldest) {
                shard.bytes -= bytes(&gone);
            }
        }
    }

    /// Forgets a running call that has ended without an answer.
    pub(super) fn forget(&self, key: RepeatKey) {
        let mut shard = self.shard(key);
        if matches!(shard.known.get(&key), Some(Known::Running(_))) {
            shard.known.remove(&key);
        }
    }
}

fn bytes<R>(known: &Known<R>) -> usize {
    match known {
        Known::Done(Ended::Answer(payload), _) => payload.len(),
        _ => 0,
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{DeviceKey, Grant};
    use crate::clock::UnixMs;
    use crate::hub::{Client, Hub};
    use crate::rpc::scope::{Role, ScopeSet};
    use std::collections::HashSet;

    fn begin(repeats: &Repeats<u32>, key: u64, now: Instant, running: u32) -> Begun<u32, (), ()> {
        repeats.begin(RepeatKey(key), now, (), |()| Ok(running))
    }

    fn answer(text: &str) -> Ended {
        Ended::Answer(text.as_bytes().into())
    }

    #[test]
    fn a_repeat_joins_then_gets_the_answer_then_starts_anew() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        assert!(matches!(begin(&repeats, 1, now, 7), Begun::Started(_)));
        assert!(matches!(begin(&repeats, 1, now, 8), Begun::Running(7, ())));
        repeats.end(RepeatKey(1), answer("a"), now);
        assert!(matches!(begin(&repeats, 1, now, 8), Begun::Done(Ended::Answer(text), ()) if *text == *b"a"));
        assert!(matches!(begin(&repeats, 1, now + KEEP, 9), Begun::Started(_)));
        assert!(matches!(begin(&repeats, 1, now + KEEP, 9), Begun::Running(9, ())));
    }

    #[test]
    fn a_call_without_an_answer_is_forgotten() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        begin(&repeats, 1, now, 7);
        repeats.forget(RepeatKey(1));
        assert!(matches!(begin(&repeats, 1, now, 8), Begun::Started(_)));
        // An end that comes twice, or for a call nobody knows, changes nothing.
        repeats.end(RepeatKey(2), answer("b"), now);
        assert!(matches!(begin(&repeats, 2, now, 1), Begun::Started(_)));
        let refused = repeats.begin(RepeatKey(3), now, "call", |call| Err(("full", call)));
        assert!(matches!(refused, Begun::Refused("full", "call")));
        assert!(matches!(begin(&repeats, 3, now, 1), Begun::Started(_)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        let most = (MAX_KEPT / SHARDS) as u64;
        // All in one shard: the top bits are zero.
        for key in 0..most + 10 {
            begin(&repeats, key, now, 0);
            repeats.end(RepeatKey(key), Ended::TooLarge, now);
        }
        assert!(matches!(begin(&repeats, 9, now, 0), Begun::Started(_)));
        assert!(matches!(begin(&repeats, most + 9, now, 0), Begun::Done(Ended::TooLarge, ())));
        let repeats = Repeats::default();
        let large: Arc<[u8]> = vec![b'x'; MAX_KEPT_BYTES / SHARDS / 2].into();
        for key in 0..3 {
            begin(&repeats, key, now, 0);
            repeats.end(RepeatKey(key), Ended::Answer(Arc::clone(&large)), now);
        }
        assert!(matches!(begin(&repeats, 0, now, 0), Begun::Started(_)));
        assert!(matches!(begin(&repeats, 2, now, 0), Begun::Done(..)));
    }

    #[test]
    fn callers_nodes_commands_and_keys_are_told_apart() {
        let hub = Hub::new(1 << 16, 1 << 20);
        let connection = |device| {
            let grant = Grant::for_test(Role::Operator, ScopeSet::EMPTY, device);
            hub.register(hub.next_id(), grant, Client::default(), None, UnixMs(0))
        };
        let key = |n| DeviceKey::from_bytes([n; 32]);
        let node = |n| key(n).unwrap().device_id();
        let repeats = Repeats::<u32>::default();
        let (a, b, c) = (connection(key(7)), connection(None), connection(None));
        let mut keys = HashSet::new();
        for caller in [&a, &b, &c] {
            for (node, command, key) in
                [(node(2), "c", "k"), (node(3), "c", "k"), (node(2), "ck", ""), (node(2), "c", "l")]
            {
                assert!(keys.insert(repeats.key(caller, node, command, key)));
            }
        }
        let again = connection(key(7));
        assert_eq!(repeats.key(&a, node(2), "c", "k"), repeats.key(&again, node(2), "c", "k"));
    }
}
