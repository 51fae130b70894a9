//! Devices: keys that were approved, for which role and scopes, and the tokens they hold.
//!
//! A device that is not covered by what was approved leaves a request; someone approves or rejects it
//! (`device.pair.*`), or nobody need be asked and it is paired at once. An approved device holds one token
//! a role, of which only a hash is kept here.
//!
//! The handle is [`Devices`]. Readers ([`Devices::facts`], [`Devices::check_token`]) look at an index in
//! memory that shows what is on disk; changes are made on the store's writer, against the tables, and return
//! when they are durable. What the rules are stands in [`pairing`] and [`setup`], free of all of that; start there.
//!
//! A device that is removed or revoked loses its sockets right after the commit. One that is just being let
//! in has none yet: whoever registers a connection of a device compares [`Devices::cut_offs`] afterwards with what
//! it was before the decision, and decides again when it has moved.
//!
//! The domain knows the hub (events, and sockets to close) and the store. It does not know how a device
//! proves its key, nor what a node may run: a domain that keeps more about a device lets its rows refer to
//! `device_role`, and hears of removals by [`Devices::on_removed`].

mod change;
pub mod methods;
pub mod pairing;
pub mod record;
pub mod setup;
mod setup_change;
mod table;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

pub use change::{IssuedToken, PairingError, PairingRequest, Requested, Rotated};
pub use setup_change::{IssuedCode, Redeemed, Redeeming};
pub use table::SCHEMA;

use crate::auth::device::DeviceId;
use crate::clock::UnixMs;
use crate::hub::Hub;
use crate::rpc::scope::{Role, ScopeSet};
use crate::secret::SecretHash;
use crate::store::{Store, StoreError};
use pairing::TokenLife;
use record::{LastSeen, PairedDevice, PendingRequest, Token};
use setup::SetupCode;

/// How often requests lapse and sightings are written.
const TEND_INTERVAL: Duration = Duration::from_secs(15);

/// Handle to the devices. Cheap to clone.
#[derive(Clone)]
pub struct Devices(Arc<Inner>);

struct Inner {
    store: Store,
    hub: Hub,
    index: RwLock<Index>,
    /// Devices whose last sighting is not on disk yet.
    unsaved: Mutex<HashSet<DeviceId>>,
    /// Counts rights that were taken back; see [`Devices::cut_offs`].
    cut_offs: AtomicU64,
    silent: Mutex<pairing::SilentPairings>,
    life: Mutex<TokenLife>,
    /// When the uses of tokens by those who stay connected were last noted.
    uses_noted: Mutex<UnixMs>,
    on_removed: OnceLock<Box<dyn Fn(DeviceId, Role) + Send + Sync>>,
}

/// What is on disk, for readers. Changed only by the store's writer, after a commit.
#[derive(Default)]
struct Index {
    paired: HashMap<DeviceId, Known>,
    pending: HashMap<Box<str>, Waiting>,
    /// By their public names.
    codes: HashMap<Box<str>, Arc<SetupCode>>,
}

struct Known {
    facts: Arc<PairedDevice>,
    seen: Mutex<LastSeen>,
}

struct Waiting {
    request: Arc<PendingRequest>,
    /// Milliseconds since the epoch: when the device last asked. A retry changes this and nothing else, so it
    /// costs no write.
    seen_at: AtomicU64,
}

impl Waiting {
    fn new(request: PendingRequest, now: UnixMs) -> Self {
        Self { request: Arc::new(request), seen_at: AtomicU64::new(now.0) }
    }

    fn for_bounds(&self) -> pairing::Waiting {
        let seen_at = UnixMs(self.seen_at.load(Ordering::Relaxed));
        pairing::Waiting { device: self.request.id, source: self.request.remote_ip, seen_at }
    }
}

/// What a presented device token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenCheck {
    /// The token of this device for this role.
    Ok {
        /// What it carries.
        scopes: ScopeSet,
        /// When it was made.
        issued_at: UnixMs,
    },
    /// It was this device's, and has been replaced.
    Rotated,
    /// It was this device's, and was revoked.
    Revoked,
    /// It is this device's for another role.
    WrongRole,
    /// It is not known for this device.
    Unknown,
    /// The device is not paired.
    NotPaired,
}

impl Devices {
    /// Reads the index from `store`, which must have been opened with [`SCHEMA`]. Requests that wait get their
    /// full time again from `now` on.
    ///
    /// Blocks for the reading: a few microseconds a device.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn open(store: Store, hub: Hub, now: UnixMs) -> Result<Self, StoreError> {
        let index = store.load(move |db| {
            let mut index = Index::default();
            table::devices(db, |device, seen| {
                index.paired.insert(device.id, Known { facts: Arc::new(device), seen: Mutex::new(seen) });
            })?;
            for request in table::requests(db)? {
                index.pending.insert(request.request_id.clone(), Waiting::new(request, now));
            }
            for code in table::codes(db)? {
                index.codes.insert(code.setup_id.clone(), Arc::new(code));
            }
            Ok(index)
        })?;
        Ok(Self(Arc::new(Inner {
            store,
            hub,
            index: RwLock::new(index),
            unsaved: Mutex::default(),
            cut_offs: AtomicU64::new(0),
            silent: Mutex::default(),
            life: Mutex::default(),
            uses_noted: Mutex::new(now),
            on_removed: OnceLock::new(),
        })))
    }

    /// Calls `hook` with every role that a device loses by removal, right after the commit and before anyone is
    /// told, on the store's writer. It must not block. One hook; a second one is a defect.
    ///
    /// # Panics
    /// When there is a hook already.
    pub fn on_removed(&self, hook: impl Fn(DeviceId, Role) + Send + Sync + 'static) {
        assert!(self.0.on_removed.set(Box::new(hook)).is_ok(), "one domain hears of removals");
    }

    /// What is known of a device; `None` when it is not paired.
    pub fn facts(&self, id: DeviceId) -> Option<Arc<PairedDevice>> {
        self.0.read().paired.get(&id).map(|known| Arc::clone(&known.facts))
    }

    /// How often a right was taken back so far. Who decides on a connect reads it before and again once the connection
    /// is in the hub: when it is the same, nothing was taken back in between, and what is taken back later finds the
    /// connection there.
    pub fn cut_offs(&self) -> u64 {
        self.0.cut_offs.load(Ordering::SeqCst)
    }

    /// When a device was last seen.
    pub fn last_seen(&self, id: DeviceId) -> Option<LastSeen> {
        self.0.read().paired.get(&id).map(|known| *lock(&known.seen))
    }

    /// How many devices are paired.
    pub fn len(&self) -> usize {
        self.0.read().paired.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every paired device, in no order.
    pub fn all(&self) -> Vec<(Arc<PairedDevice>, LastSeen)> {
        self.0.read().paired.values().map(|known| (Arc::clone(&known.facts), *lock(&known.seen))).collect()
    }

    /// The requests that wait, the newest first. A retry does not make a request newer.
    pub fn pending(&self, now: UnixMs) -> Vec<Arc<PendingRequest>> {
        let mut pending: Vec<_> = self
            .0
            .read()
            .pending
            .values()
            .filter(|waiting| !waiting.for_bounds().has_lapsed(now))
            .map(|waiting| Arc::clone(&waiting.request))
            .collect();
        pending.sort_by(|a, b| (b.created_at, &a.request_id).cmp(&(a.created_at, &b.request_id)));
        pending
    }

    /// When the token of `device` for `role` ends; `None` when it does not, or there is none.
    pub fn token_end(&self, device: &PairedDevice, role: Role) -> Option<UnixMs> {
        let Token::Live { issued_at, .. } = device.approval(role)?.token else { return None };
        let used_at = self.last_seen(device.id).and_then(|seen| seen.token_used_at(role));
        lock(&self.0.life).ends_at(issued_at, used_at)
    }

    /// What `presented` is for this device and role. Compares hashes, in constant time.
    pub fn check_token(&self, id: DeviceId, role: Role, presented: &str) -> TokenCheck {
        let Some(device) = self.facts(id) else { return TokenCheck::NotPaired };
        let presented = SecretHash::of(presented);
        let is_live = |token: &Token| matches!(token, Token::Live { hash, .. } if *hash == presented);
        if let Some(approval) = device.approval(role) {
            match approval.token {
                Token::Live { hash, issued_at } if hash == presented => {
                    return TokenCheck::Ok { scopes: approval.token_scopes, issued_at };
                }
                Token::Revoked { .. } if approval.retired == Some(presented) => return TokenCheck::Revoked,
                _ if approval.retired == Some(presented) => return TokenCheck::Rotated,
                _ => {}
            }
        }
        let of_another = device.approvals.iter().any(|approval| approval.role != role && is_live(&approval.token));
        if of_another { TokenCheck::WrongRole } else { TokenCheck::Unknown }
    }

    /// Notes that a device has connected; `by_token` when its device token let it in. Costs no write now.
    pub fn touch(&self, id: DeviceId, role: Role, by_token: bool, remote_ip: Option<IpAddr>, now: UnixMs) {
        let index = self.0.read();
        let Some(known) = index.paired.get(&id) else { return };
        let mut seen = lock(&known.seen);
        seen.at = Some(now);
        seen.remote_ip = remote_ip;
        if by_token {
            seen.token_used(role, now);
        }
        drop(seen);
        lock(&self.0.unsaved).insert(id);
    }

    /// Keeps house until dropped: lets requests lapse, writes when devices were last seen.
    pub async fn run(self) {
        let mut interval = tokio::time::interval(TEND_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.tend(UnixMs::now()).await;
        }
    }
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Devices").field("paired", &self.len()).finish_non_exhaustive()
    }
}

impl Inner {
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks what is whole after every statement, so that a poisoned lock still holds the truth.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
