//! Idempotency keys: a caller that asks twice gets one execution.
//!
//! While a call runs, a repeat of it joins it. After the node has carried it out, a repeat within [`KEEP_MS`] gets
//! the same answer again; that an answer was too large to keep is remembered too. A call that ended otherwise
//! (the node refused it or failed, it was too late, the node is gone) is forgotten: asking again is the caller's
//! decision.
//!
//! A caller is a device, or a connection where there is no device, or the gateway's own agent. Answers are kept in a ring of bytes with an index
//! of fixed size, for all nodes together: keeping one costs a copy and frees nothing. Under load the newest push
//! the oldest out before their time.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::auth::DeviceId;
use crate::clock::UnixMs;
use crate::hub::Connection;

/// How long an answer is kept for a repeat.
const KEEP_MS: u64 = 600_000;
/// Bytes of one answer that are kept; a larger one is only remembered.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// Bytes of answers kept, of all nodes.
const KEPT_BYTES: usize = 8 * 1024 * 1024;
/// Answers kept, of all nodes.
const KEPT: usize = 16 * 1024;
/// Places an answer may have in the index; it takes that of the oldest.
const WAYS: usize = 4;

const SHARDS: usize = 16;

/// What makes two calls the same: caller, node, command and key. Hashed with a secret of this run, so that nobody
/// can make two calls look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RepeatKey(u64);

/// How a call that has been carried out was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// With this payload.
    With(Vec<u8>),
    /// With one that was too large to keep.
    TooLarge,
}

/// What came of a call that was to begin. What it needs to wait, `W`, comes back unless it has begun.
#[derive(Clone, Debug)]
pub(super) enum Begun<R, W, T, E> {
    /// It has begun now, as this.
    Started(T),
    /// It could not begin, for this reason.
    Refused(E, W),
    /// It runs already, as this.
    Running(R, W),
    /// It has been carried out.
    Done(Answered, W),
}

/// Calls that run or were carried out. `R` is how to find a running one.
#[derive(Debug)]
pub(super) struct Repeats<R> {
    shards: [Mutex<Shard<R>>; SHARDS],
    secret: std::hash::RandomState,
}

#[derive(Debug)]
struct Shard<R> {
    running: HashMap<RepeatKey, R, BuildHasherDefault<Identity>>,
    kept: Kept,
}

impl<R> Default for Repeats<R> {
    fn default() -> Self {
        let shard =
            |_| Mutex::new(Shard { running: HashMap::default(), kept: Kept::new(KEPT / SHARDS, KEPT_BYTES / SHARDS) });
        Self { shards: std::array::from_fn(shard), secret: std::hash::RandomState::new() }
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
        // Ids of devices are digests: half of one tells them apart.
        let half = |id: DeviceId| u128::from_le_bytes(*id.as_bytes().first_chunk().unwrap_or(&[0; 16]));
        let mut hash = self.secret.build_hasher();
        let caller = match caller.grant.device() {
            Some(device) => half(device),
            // It is one caller, however many connections it makes for its calls; no connection has this number.
            None if caller.grant.is_agents() => 0,
            None => u128::from(caller.id.0),
        };
        hash.write_u128(caller);
        hash.write_u128(half(node_id));
        hash.write(command.as_bytes());
        // No UTF-8 has this byte.
        hash.write_u8(0xff);
        hash.write(idempotency_key.as_bytes());
        RepeatKey(hash.finish())
    }

    fn shard(&self, key: RepeatKey) -> MutexGuard<'_, Shard<R>> {
        self.shards[(key.0 >> 32) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins `call` with `start`, unless it has begun before.
    pub(super) fn begin<W, T, E>(
        &self,
        key: RepeatKey,
        now: UnixMs,
        call: W,
        start: impl FnOnce(W) -> Result<(R, T), (E, W)>,
    ) -> Begun<R, W, T, E> {
        let mut shard = self.shard(key);
        if let Some(running) = shard.running.get(&key) {
            return Begun::Running(running.clone(), call);
        }
        if let Some(answered) = shard.kept.get(key, now) {
            return Begun::Done(answered, call);
        }
        match start(call) {
            Ok((running, started)) => {
                shard.running.insert(key, running);
                Begun::Started(started)
            }
            Err((reason, call)) => Begun::Refused(reason, call),
        }
    }

    /// Notes that a running call was carried out, and how it was answered.
    pub(super) fn end(&self, key: RepeatKey, answer: &[u8], now: UnixMs) {
        let mut shard = self.shard(key);
        if shard.running.remove(&key).is_some() {
            shard.kept.put(key, answer, now);
        }
    }

    /// Forgets a running call that has ended otherwise.
    pub(super) fn forget(&self, key: RepeatKey) {
        self.shard(key).running.remove(&key);
    }
}

/// Answers of fixed total size. Without a first answer there is no memory for them.
#[derive(Debug)]
struct Kept {
    answers: usize,
    bytes: usize,
    index: Box<[Entry]>,
    ring: Box<[u8]>,
    /// Bytes ever written; the ring holds the last of them.
    written: u64,
}

/// Where an answer stands. All zero where there is none.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    key: u64,
    /// Among the bytes ever written.
    start: u64,
    /// One more than the bytes of the answer; [`TOO_LARGE`] where it was not kept.
    length: u32,
    /// When, in seconds since the epoch.
    at_s: u32,
}

const TOO_LARGE: u32 = u32::MAX;

impl Kept {
    fn new(answers: usize, bytes: usize) -> Self {
        Self { answers, bytes, index: Box::default(), ring: Box::default(), written: 0 }
    }

    /// Where an answer may stand in the index.
    fn places(&self, key: RepeatKey) -> std::ops::Range<usize> {
        let sets = self.answers / WAYS;
        let at = key.0 as usize % sets * WAYS;
        at..at + WAYS
    }

    fn get(&self, key: RepeatKey, now: UnixMs) -> Option<Answered> {
        let places = self.index.get(self.places(key))?;
        let entry = *places.iter().find(|entry| entry.key == key.0 && entry.length != 0)?;
        if now.since(UnixMs(u64::from(entry.at_s) * 1000)) >= KEEP_MS {
            return None;
        }
        if entry.length == TOO_LARGE {
            return Some(Answered::TooLarge);
        }
        let length = u64::from(entry.length) - 1;
        if self.written - entry.start > self.ring.len() as u64 {
            return None;
        }
        let start = (entry.start % self.ring.len() as u64) as usize;
        let first = (self.ring.len() - start).min(length as usize);
        let mut answer = self.ring[start..start + first].to_vec();
        answer.extend_from_slice(&self.ring[..length as usize - first]);
        Some(Answered::With(answer))
    }

    fn put(&mut self, key: RepeatKey, answer: &[u8], now: UnixMs) {
        if self.index.is_empty() {
            self.index = vec![Entry::default(); self.answers].into();
            self.ring = vec![0; self.bytes].into();
        }
        let start = self.written;
        let length = if answer.len() <= MAX_ANSWER_BYTES.min(self.ring.len()) {
            let at = (start % self.ring.len() as u64) as usize;
            let first = (self.ring.len() - at).min(answer.len());
            self.ring[at..at + first].copy_from_slice(&answer[..first]);
            self.ring[..answer.len() - first].copy_from_slice(&answer[first..]);
            self.written += answer.len() as u64;
            answer.len() as u32 + 1
        } else {
            TOO_LARGE
        };
        let at_s = u32::try_from(now.0 / 1000).unwrap_or(u32::MAX);
        let entry = Entry { key: key.0, start, length, at_s };
        let places = self.places(key);
        let places = &mut self.index[places];
        let same = places.iter().position(|place| place.key == key.0);
        let oldest =
            || places.iter().enumerate().min_by_key(|(_, place)| (place.length != 0, place.start)).map(|(at, _)| at);
        if let Some(at) = same.or_else(oldest) {
            places[at] = entry;
        }
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
    use crate::hub::{Client, Hub};
    use crate::rpc::scope::{Role, ScopeSet};
    use std::collections::HashSet;

    const NOW: UnixMs = UnixMs(1_795_000_000_000);

    fn begin(repeats: &Repeats<u32>, key: u64, now: UnixMs, running: u32) -> Begun<u32, (), (), ()> {
        repeats.begin(RepeatKey(key), now, (), |()| Ok((running, ())))
    }

    fn with(text: &str) -> Answered {
        Answered::With(text.as_bytes().to_vec())
    }

    #[test]
    fn a_repeat_joins_then_gets_the_answer_then_starts_anew() {
        let repeats = Repeats::default();
        assert!(matches!(begin(&repeats, 1, NOW, 7), Begun::Started(())));
        assert!(matches!(begin(&repeats, 1, NOW, 8), Begun::Running(7, ())));
        repeats.end(RepeatKey(1), b"a", NOW);
        assert!(matches!(begin(&repeats, 1, NOW, 8), Begun::Done(answer, ()) if answer == with("a")));
        let later = NOW.plus(KEEP_MS);
        assert!(matches!(begin(&repeats, 1, later, 9), Begun::Started(())));
        assert!(matches!(begin(&repeats, 1, later, 9), Begun::Running(9, ())));
        repeats.end(RepeatKey(1), &[b'x'; MAX_ANSWER_BYTES + 1], later);
        assert!(matches!(begin(&repeats, 1, later, 9), Begun::Done(Answered::TooLarge, ())));
    }

    #[test]
    fn a_call_without_an_answer_is_forgotten() {
        let repeats = Repeats::default();
        begin(&repeats, 1, NOW, 7);
        repeats.forget(RepeatKey(1));
        assert!(matches!(begin(&repeats, 1, NOW, 8), Begun::Started(())));
        // An end that comes twice, or for a call nobody knows, changes nothing.
        repeats.end(RepeatKey(2), b"b", NOW);
        assert!(matches!(begin(&repeats, 2, NOW, 1), Begun::Started(())));
        let refused: Begun<_, _, (), _> = repeats.begin(RepeatKey(3), NOW, "call", |call| Err(("full", call)));
        assert!(matches!(refused, Begun::Refused("full", "call")));
        assert!(matches!(begin(&repeats, 3, NOW, 1), Begun::Started(())));
    }

    #[test]
    fn the_newest_answers_push_the_oldest_out() {
        let mut kept = Kept::new(2 * WAYS, 10);
        assert_eq!(kept.get(RepeatKey(0), NOW), None);
        for (key, answer) in [(0, "aaaa"), (1, "bbbb"), (2, "cccc")] {
            kept.put(RepeatKey(key), answer.as_bytes(), NOW);
        }
        // The third lies over the end of the ring, and on the first.
        assert_eq!(kept.get(RepeatKey(0), NOW), None);
        assert_eq!(kept.get(RepeatKey(1), NOW), Some(with("bbbb")));
        assert_eq!(kept.get(RepeatKey(2), NOW), Some(with("cccc")));
        // Keys of one set: as many as there are ways, and the oldest goes.
        for n in 2..=5 {
            kept.put(RepeatKey(2 * n), b"", NOW);
        }
        assert_eq!(kept.get(RepeatKey(2), NOW), None);
        assert!((2..=5).all(|n| kept.get(RepeatKey(2 * n), NOW) == Some(with(""))));
        assert_eq!(kept.get(RepeatKey(1), NOW), Some(with("bbbb")));
        kept.put(RepeatKey(9), &[b'x'; 11], NOW);
        assert_eq!(kept.get(RepeatKey(9), NOW), Some(Answered::TooLarge));
    }

    #[test]
    fn callers_nodes_commands_and_keys_are_told_apart() {
        let hub = Hub::new(1 << 16, 1 << 20);
        let connection = |device| {
            let grant = Grant::for_test(Role::Operator, ScopeSet::EMPTY, device);
            hub.register(hub.next_id(), grant, Client::default(), None, NOW)
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
