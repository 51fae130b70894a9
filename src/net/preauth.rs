//! What strangers may cost: sockets that have not proved who is behind them, counted from the accept.
//!
//! A socket takes a [`Slot`] before anything is read from it, so that a slow TLS handshake or a slow request head
//! counts as much as a WebSocket that never says `connect`. It is counted for the peer first; when the head of a
//! request says for whom a proxy speaks, for that client ([`Slot::attribute`]). A peer that many share (a trusted
//! proxy, loopback) has room for a storm of reconnects; one client has not.
//!
//! When all places are taken, the oldest stranger goes ([`Slot::called_off`]): whoever means to come in does so within
//! a moment, so a flood gets in the way of itself and not of them.
//!
//! Memory is bounded by the number of places: a subject is forgotten with its last slot.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::limits;

/// Bytes of unfinished messages that a slot holds without asking: a `connect` has less.
const FREE_BYTES: usize = 4 * 1024;

/// How much strangers may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Sockets of all together.
    pub total: usize,
    /// Sockets of a peer that many share.
    pub shared: usize,
    /// Sockets of one client; of one /64 for IPv6.
    pub client: usize,
    /// Bytes of unfinished messages of all together, beyond a few KiB each.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            total: limits::PREAUTH_SOCKETS,
            shared: limits::PREAUTH_SOCKETS_SHARED,
            client: limits::PREAUTH_SOCKETS_CLIENT,
            bytes: limits::PREAUTH_HELD_BYTES,
        }
    }
}

/// There is no place for a socket: who it came from has too many already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// One client.
    Client,
    /// A proxy, or loopback.
    Shared,
}

/// Who a slot is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Client(u128),
    Shared(u128),
}

impl Subject {
    fn of(address: IpAddr, is_shared: bool) -> Self {
        let bits = match address.to_canonical() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            // Whoever has one address of a /64 has all of them.
            IpAddr::V6(v6) if !is_shared => v6.to_bits() >> 64 << 64,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        if is_shared { Self::Shared(bits) } else { Self::Client(bits) }
    }

    const fn full(self) -> Full {
        match self {
            Self::Client(_) => Full::Client,
            Self::Shared(_) => Full::Shared,
        }
    }
}

/// The places for strangers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Preauth(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    bounds: Bounds,
    places: Mutex<Places>,
    held_bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct Places {
    /// By age: the number counts up.
    taken: BTreeMap<u64, Place>,
    next: u64,
    counts: HashMap<Subject, usize>,
}

#[derive(Debug)]
struct Place {
    subject: Subject,
    off: Arc<Notify>,
}

impl Places {
    fn count(&mut self, subject: Subject, most: usize) -> Result<(), Full> {
        let count = self.counts.entry(subject).or_default();
        // A count of zero can be met only with room for nobody; it goes with the error.
        if *count >= most {
            return Err(subject.full());
        }
        *count += 1;
        Ok(())
    }

    fn discount(&mut self, subject: Subject) {
        if let Some(count) = self.counts.get_mut(&subject) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&subject);
            }
        }
    }

    fn leave(&mut self, number: u64) -> Option<Place> {
        let place = self.taken.remove(&number)?;
        self.discount(place.subject);
        Some(place)
    }
}

impl Preauth {
    /// Places within `bounds`.
    pub fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Inner { bounds, ..Inner::default() }))
    }

    /// Takes a place for a socket from `peer`, which many share or not. Where all are taken, the oldest stranger loses
    /// its own.
    ///
    /// # Errors
    /// [`Full`]: the peer has too many already.
    pub fn enter(&self, peer: IpAddr, is_shared: bool) -> Result<Slot, Full> {
        let subject = Subject::of(peer, is_shared);
        let mut places = self.0.places();
        places.count(subject, self.0.most(subject))?;
        if places.taken.len() >= self.0.bounds.total
            && let Some(oldest) = places.taken.keys().next().copied()
            && let Some(place) = places.leave(oldest)
        {
            place.off.notify_one();
        }
        let number = places.next;
        places.next += 1;
        let off = Arc::new(Notify::new());
        places.taken.insert(number, Place { subject, off: Arc::clone(&off) });
        drop(places);
        Ok(Slot { preauth: self.clone(), number, off, held_bytes: AtomicUsize::new(0) })
    }

    /// Sockets that have a place now.
    pub fn sockets(&self) -> usize {
        self.0.places().taken.len()
    }
}

impl Inner {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    const fn most(&self, subject: Subject) -> usize {
        match subject {
            Subject::Client(_) => self.bounds.client,
            Subject::Shared(_) => self.bounds.shared,
        }
    }
}

/// The place of one socket until its client has proved who it is. Dropped, it is free again.
#[derive(Debug)]
pub struct Slot {
    preauth: Preauth,
    number: u64,
    off: Arc<Notify>,
    held_bytes: AtomicUsize,
}

impl Slot {
    /// Counts the slot for `client`, who speaks through the peer.
    ///
    /// # Errors
    /// [`Full`]: the client has too many already; the slot stays with the peer.
    pub fn attribute(&self, client: IpAddr) -> Result<(), Full> {
        let inner = &self.preauth.0;
        let subject = Subject::of(client, false);
        let mut places = inner.places();
        let Some(before) = places.taken.get(&self.number).map(|place| place.subject) else { return Ok(()) };
        if before == subject {
            return Ok(());
        }
        places.count(subject, inner.most(subject))?;
        places.discount(before);
        if let Some(place) = places.taken.get_mut(&self.number) {
            place.subject = subject;
        }
        Ok(())
    }

    /// Says how many bytes of unfinished messages the socket holds now. `false` when that is more than there is for
    /// strangers: it has to go.
    #[must_use]
    pub fn hold(&self, bytes: usize) -> bool {
        let bytes = bytes.saturating_sub(FREE_BYTES);
        let before = self.held_bytes.swap(bytes, Ordering::Relaxed);
        if bytes == before {
            return true;
        }
        let all = &self.preauth.0.held_bytes;
        all.fetch_add(bytes, Ordering::Relaxed);
        let now = all.fetch_sub(before, Ordering::Relaxed) - before;
        bytes < before || now <= self.preauth.0.bounds.bytes
    }

    /// The client has proved who it is, and its socket stays: the place is free, and the socket is not called off.
    pub fn leave(&self) {
        // It may have been given away already; then the socket goes.
        let _ = self.preauth.0.places().leave(self.number);
    }

    /// Ends when the place was given to another: the socket has to go. Cancel safe.
    pub async fn called_off(&self) {
        self.off.notified().await;
        // Whoever waits next must hear it, too.
        self.off.notify_one();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.preauth.0.held_bytes.fetch_sub(*self.held_bytes.get_mut(), Ordering::Relaxed);
        // It may have been given away.
        let _ = self.preauth.0.places().leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn preauth() -> Preauth {
        Preauth::new(Bounds { total: 10, shared: 6, client: 3, bytes: 10_000 })
    }

    fn is_off(slot: &Slot) -> bool {
        pin!(slot.called_off()).poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn s_35_a_client_has_its_own_share_and_takes_nobody_elses() {
        let preauth = preauth();
        let flood: Vec<_> = (0..3).map(|_| preauth.enter(ip("203.0.113.1"), false).unwrap()).collect();
        assert_eq!(preauth.enter(ip("203.0.113.1"), false).unwrap_err(), Full::Client);
        assert_eq!(preauth.enter(ip("::ffff:203.0.113.1"), false).unwrap_err(), Full::Client, "the same address");
        preauth.enter(ip("203.0.113.2"), false).unwrap();
        drop(flood);
        preauth.enter(ip("203.0.113.1"), false).unwrap();
    }

    #[test]
    fn all_addresses_of_a_64_are_one_client() {
        let preauth = preauth();
        let _flood: Vec<_> = (1..=3).map(|n| preauth.enter(ip(&format!("2001:db8::{n}")), false).unwrap()).collect();
        assert_eq!(preauth.enter(ip("2001:db8::ffff"), false).unwrap_err(), Full::Client);
        preauth.enter(ip("2001:db8:0:1::1"), false).unwrap();
    }

    #[test]
    fn s_38_a_proxy_has_room_for_many_clients_and_each_of_them_for_a_few() {
        let preauth = preauth();
        let proxy = ip("10.0.0.1");
        let mut slots = Vec::new();
        for client in 1..=9 {
            let slot = preauth.enter(proxy, true).unwrap();
            slot.attribute(ip(&format!("203.0.113.{client}"))).unwrap();
            slots.push(slot);
        }
        drop(slots);
        let flood: Vec<_> = (0..3).map(|_| preauth.enter(proxy, true).unwrap()).collect();
        flood.iter().for_each(|slot| slot.attribute(ip("203.0.113.9")).unwrap());
        assert_eq!(preauth.enter(proxy, true).unwrap().attribute(ip("203.0.113.9")), Err(Full::Client));
        preauth.enter(proxy, true).unwrap().attribute(ip("203.0.113.8")).unwrap();
        let _silent: Vec<_> = (0..6).map(|_| preauth.enter(proxy, true).unwrap()).collect();
        assert_eq!(preauth.enter(proxy, true).unwrap_err(), Full::Shared, "of those who have not said for whom");
    }

    #[test]
    fn s_35_where_all_places_are_taken_the_oldest_stranger_goes() {
        let preauth = preauth();
        let slots: Vec<_> = (0..10).map(|n| preauth.enter(ip(&format!("203.0.113.{n}")), false).unwrap()).collect();
        assert!(!is_off(&slots[0]));
        let newcomer = preauth.enter(ip("198.51.100.1"), false).unwrap();
        assert!(is_off(&slots[0]) && is_off(&slots[0]), "and it stays off");
        assert!(!is_off(&slots[1]) && !is_off(&newcomer));
        assert_eq!(preauth.sockets(), 10);
        drop(slots);
        drop(newcomer);
        assert_eq!(preauth.sockets(), 0);
        assert!(preauth.0.places().counts.is_empty(), "nothing is remembered");
    }

    #[test]
    fn s_36_unfinished_messages_of_strangers_are_bounded_together() {
        let preauth = preauth();
        let slots: Vec<_> = (0..3).map(|n| preauth.enter(ip(&format!("203.0.113.{n}")), false).unwrap()).collect();
        assert!(slots[0].hold(FREE_BYTES + 6_000));
        assert!(slots[1].hold(FREE_BYTES + 4_000));
        assert!(!slots[2].hold(FREE_BYTES + 1));
        assert!(slots[2].hold(FREE_BYTES), "what a connect needs is always there");
        assert!(slots[0].hold(0));
        assert!(slots[2].hold(FREE_BYTES + 6_000));
        drop(slots);
        assert_eq!(preauth.0.held_bytes.load(Ordering::Relaxed), 0);
    }
}
