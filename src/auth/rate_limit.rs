//! Limits on wrong credentials (contract 2.8), bounded in memory whatever a flood does.
//!
//! Per kind of credential and per subject (an address, IPv6 by /64; a browser origin on loopback; a proxy
//! that does not say for whom it speaks): ten wrong guesses within a minute lock that kind there for five
//! minutes. Missing credentials don't count, and success forgives its own kind.
//!
//! A *guess* is a credential not seen wrong there lately. A client that sends one stale token in a loop
//! tells an attacker nothing new, so it locks only that token out, and a good one from the same address
//! still gets in (S-39).
//!
//! When wrong guesses come from everywhere at once, there is a cap on their number in the whole gateway:
//! above it an address gets two guesses instead of ten. So the cap slows a distributed search down and still
//! never refuses an address that has done nothing (S-33).
//!
//! The table is set-associative: a subject hashes to a set of eight entries, and where all are taken the one
//! that matters least goes. Forgetting an entry forgives; it never locks anyone.
//!
//! Start with [`RateLimits::attempts`]: one [`Attempts`] a connect asks before it verifies, and counts what
//! was wrong when it is dropped.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use super::denied::Denied;
use super::headers::HeaderView;
use super::ingress::Verdict;
use crate::clock::UnixMs;

/// Sets of the table.
const SETS: usize = 2048;
/// Entries of a set.
const WAYS: usize = 8;
/// Wrong credentials an entry recognises.
const RECENT: usize = 4;
/// How many times the guesses of one client a proxy gets that does not tell its clients apart.
const PROXY_FACTOR: u32 = 10;
/// Guesses of an address while the gateway as a whole sees too many.
const GUESSES_UNDER_FLOOD: u32 = 2;

/// `gateway.auth.rateLimit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitPolicy {
    /// Wrong guesses that lock. Default 10; at least 1.
    pub max_attempts: u32,
    /// Within which time, in milliseconds. Default 60 000.
    pub window_ms: u64,
    /// For how long, in milliseconds. Default 300 000.
    pub lockout_ms: u64,
    /// Whether truly local peers without a browser are exempt. Default true.
    pub exempt_loopback: bool,
    /// Wrong guesses a window in the whole gateway above which each address gets fewer. Default 1 000.
    pub global_attempts: u32,
}

impl Default for RateLimitPolicy {
    fn default() -> Self {
        Self { max_attempts: 10, window_ms: 60_000, lockout_ms: 300_000, exempt_loopback: true, global_attempts: 1_000 }
    }
}

/// What was guessed. Each is counted for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CredentialKind {
    /// The gateway's token or password.
    SharedSecret,
    /// A device token.
    DeviceToken,
    /// A setup code.
    BootstrapToken,
    /// The shortcode of a join URL.
    JoinCode,
}

impl CredentialKind {
    const ALL: usize = 4;
}

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Address(u128),
    Origin(u64),
    Proxy(u128),
}

impl Subject {
    fn address(address: IpAddr) -> u128 {
        match address.to_canonical() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits() >> 64 << 64,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: CredentialKind,
    subject: Subject,
    window_start: UnixMs,
    guesses: u32,
    repeats: u32,
    locked_until: UnixMs,
    repeats_locked_until: UnixMs,
    recent: [u64; RECENT],
    next: u8,
}

impl Entry {
    fn is_locked(&self, now: UnixMs, policy: &RateLimitPolicy) -> Option<u64> {
        wait(self.locked_until, now, policy)
    }

    fn is_stale(&self, now: UnixMs, policy: &RateLimitPolicy) -> bool {
        self.is_locked(now, policy).is_none()
            && wait(self.repeats_locked_until, now, policy).is_none()
            && now.0.abs_diff(self.window_start.0) >= policy.window_ms
    }
}

/// Milliseconds until `end`. An end further off than a lockout lasts is one that the clock jumped away from.
fn wait(end: UnixMs, now: UnixMs, policy: &RateLimitPolicy) -> Option<u64> {
    Some(end.since(now)).filter(|wait| (1..=policy.lockout_ms).contains(wait))
}

/// The limits of one gateway. Shared by all connections; no operation takes more than one short lock.
#[derive(Debug)]
pub struct RateLimits {
    policy: RwLock<RateLimitPolicy>,
    hasher: RandomState,
    sets: Box<[Mutex<Vec<Entry>>]>,
    /// Wrong guesses in the whole gateway: the window's number in the upper half, the count in the lower.
    global: AtomicU64,
}

impl RateLimits {
    /// Limits that have seen nothing yet.
    pub fn new(policy: RateLimitPolicy) -> Self {
        Self {
            policy: RwLock::new(within_range(policy)),
            hasher: RandomState::new(),
            sets: (0..SETS).map(|_| Mutex::default()).collect(),
            global: AtomicU64::new(0),
        }
    }

    /// Counts by another policy from now on. What was counted so far stays counted.
    pub fn set_policy(&self, policy: RateLimitPolicy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = within_range(policy);
    }

    fn policy(&self) -> RateLimitPolicy {
        *self.policy.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempts of one request that came from where `verdict` says.
    pub fn attempts(&self, verdict: Verdict, headers: HeaderView<'_>, now: UnixMs) -> Attempts<'_> {
        Attempts { limits: self, subject: self.subject(verdict, headers), now, wrong: [None; CredentialKind::ALL] }
    }

    fn subject(&self, verdict: Verdict, headers: HeaderView<'_>) -> Option<Subject> {
        let loopback = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        let origin = || headers.values("origin").next();
        match verdict {
            Verdict::DirectLocal => match origin() {
                Some(origin) => Some(Subject::Origin(self.hasher.hash_one(origin.to_ascii_lowercase()))),
                None if self.policy().exempt_loopback => None,
                None => Some(Subject::Address(Subject::address(loopback))),
            },
            Verdict::TrustedProxy { proxy, client: None } => Some(Subject::Proxy(Subject::address(proxy))),
            Verdict::Unattributable { peer, .. } => Some(Subject::Proxy(Subject::address(peer))),
            Verdict::DirectRemote { client }
            | Verdict::TrustedProxy { client: Some(client), .. }
            | Verdict::TailscaleServe { client }
            | Verdict::TailscaleFunnel { client } => Some(Subject::Address(Subject::address(client))),
        }
    }

    fn with_set<T>(
        &self,
        kind: CredentialKind,
        subject: Subject,
        act: impl FnOnce(&mut Vec<Entry>, Option<usize>) -> T,
    ) -> T {
        let index = self.hasher.hash_one((kind, subject)) as usize % SETS;
        let mut set = self.sets[index].lock().unwrap_or_else(PoisonError::into_inner);
        let position = set.iter().position(|entry| entry.kind == kind && entry.subject == subject);
        act(&mut set, position)
    }

    fn check(&self, kind: CredentialKind, subject: Subject, guess: u64, now: UnixMs) -> Result<(), Denied> {
        let policy = self.policy();
        let wait_ms = self.with_set(kind, subject, |set, position| {
            let entry = &set[position?];
            let repeats = || wait(entry.repeats_locked_until, now, &policy);
            entry.is_locked(now, &policy).or_else(|| repeats().filter(|_| entry.recent.contains(&guess)))
        });
        wait_ms.map_or(Ok(()), |retry_after_ms| Err(Denied::RateLimited { retry_after_ms }))
    }

    fn record(&self, kind: CredentialKind, subject: Subject, guess: u64, now: UnixMs) {
        let (allowed, policy) = (self.allowance(subject, now), self.policy());
        let new = self.with_set(kind, subject, |set, position| {
            let index = position.unwrap_or_else(|| self.place(set, kind, subject, now));
            let entry = &mut set[index];
            if entry.is_locked(now, &policy).is_some() {
                return false;
            }
            if now.0.abs_diff(entry.window_start.0) >= policy.window_ms {
                (entry.window_start, entry.guesses, entry.repeats) = (now, 0, 0);
            }
            let lock = now.plus(policy.lockout_ms);
            if entry.recent.contains(&guess) {
                entry.repeats = entry.repeats.saturating_add(1);
                if entry.repeats + 1 >= policy.max_attempts {
                    entry.repeats_locked_until = lock;
                }
                return false;
            }
            entry.recent[usize::from(entry.next)] = guess;
            entry.next = (entry.next + 1) % RECENT as u8;
            entry.guesses += 1;
            if entry.guesses >= allowed {
                entry.locked_until = lock;
            }
            true
        });
        if new {
            self.count_globally(now);
        }
    }

    /// Makes room for a subject and returns where: an empty place, or that of the entry that matters least.
    fn place(&self, set: &mut Vec<Entry>, kind: CredentialKind, subject: Subject, now: UnixMs) -> usize {
        let entry = Entry {
            kind,
            subject,
            window_start: now,
            guesses: 0,
            repeats: 0,
            locked_until: UnixMs::default(),
            repeats_locked_until: UnixMs::default(),
            recent: [0; RECENT],
            next: 0,
        };
        if set.len() < WAYS {
            set.push(entry);
            return set.len() - 1;
        }
        let worth = |entry: &Entry| {
            (
                !entry.is_stale(now, &self.policy()),
                entry.is_locked(now, &self.policy()),
                entry.guesses,
                entry.window_start,
            )
        };
        let least = set.iter().enumerate().min_by_key(|(_, entry)| worth(entry)).map_or(0, |(index, _)| index);
        set[least] = entry;
        least
    }

    fn forgive(&self, kind: CredentialKind, subject: Subject) {
        self.with_set(kind, subject, |set, position| {
            if let Some(position) = position {
                set.swap_remove(position);
            }
        });
    }

    /// The guesses a subject has at this moment.
    fn allowance(&self, subject: Subject, now: UnixMs) -> u32 {
        let factor = if matches!(subject, Subject::Proxy(_)) { PROXY_FACTOR } else { 1 };
        let (window, count) = split(self.global.load(Ordering::Relaxed));
        let flood = window == self.window(now) && count >= self.policy().global_attempts;
        let guesses =
            if flood { self.policy().max_attempts.min(GUESSES_UNDER_FLOOD) } else { self.policy().max_attempts };
        guesses.saturating_mul(factor)
    }

    fn count_globally(&self, now: UnixMs) {
        let current = self.window(now);
        let bump = |packed| {
            let (window, count) = split(packed);
            let count = if window == current { count.saturating_add(1) } else { 1 };
            Some(u64::from(current) << 32 | u64::from(count))
        };
        // The closure always gives a value, so the update can't fail.
        let _ = self.global.fetch_update(Ordering::Relaxed, Ordering::Relaxed, bump);
    }

    fn window(&self, now: UnixMs) -> u32 {
        (now.0 / self.policy().window_ms.max(1)) as u32
    }

    /// Entries held now; for a gauge. Takes every lock once.
    pub fn entries(&self) -> usize {
        self.sets.iter().map(|set| set.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

fn within_range(policy: RateLimitPolicy) -> RateLimitPolicy {
    RateLimitPolicy { max_attempts: policy.max_attempts.max(1), ..policy }
}

fn split(packed: u64) -> (u32, u32) {
    ((packed >> 32) as u32, packed as u32)
}

/// The attempts of one request: ask before verifying, say what came out. What was wrong is counted when this
/// is dropped, on whatever path that happens.
#[derive(Debug)]
pub struct Attempts<'a> {
    limits: &'a RateLimits,
    subject: Option<Subject>,
    now: UnixMs,
    wrong: [Option<(CredentialKind, u64)>; CredentialKind::ALL],
}

impl Attempts<'_> {
    /// Whether `credential` may be verified at all.
    ///
    /// # Errors
    /// [`Denied::RateLimited`]: it must not be.
    pub fn check(&self, kind: CredentialKind, credential: &str) -> Result<(), Denied> {
        let Some(subject) = self.subject else { return Ok(()) };
        self.limits.check(kind, subject, self.guess(credential), self.now)
    }

    /// `credential` was verified and is wrong.
    pub fn wrong(&mut self, kind: CredentialKind, credential: &str) {
        self.wrong[kind as usize] = Some((kind, self.guess(credential)));
    }

    /// What was wrong as a `kind` turned out to be a right credential of another kind: don't count it.
    pub fn excuse(&mut self, kind: CredentialKind) {
        self.wrong[kind as usize] = None;
    }

    /// A right credential of this kind came.
    pub fn right(&mut self, kind: CredentialKind) {
        self.excuse(kind);
        if let Some(subject) = self.subject {
            self.limits.forgive(kind, subject);
        }
    }

    fn guess(&self, credential: &str) -> u64 {
        // 0 marks an empty place.
        self.limits.hasher.hash_one(credential).max(1)
    }
}

impl Drop for Attempts<'_> {
    fn drop(&mut self) {
        let Some(subject) = self.subject else { return };
        for (kind, guess) in self.wrong.into_iter().flatten() {
            self.limits.record(kind, subject, guess, self.now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: CredentialKind = CredentialKind::SharedSecret;

    fn remote(address: &str) -> Verdict {
        Verdict::DirectRemote { client: address.parse().unwrap() }
    }

    fn limits() -> RateLimits {
        RateLimits::new(RateLimitPolicy::default())
    }

    fn guess(limits: &RateLimits, verdict: Verdict, credential: &str, now: u64) -> Result<(), Denied> {
        let mut attempts = limits.attempts(verdict, HeaderView::default(), UnixMs(now));
        attempts.check(KIND, credential)?;
        attempts.wrong(KIND, credential);
        Ok(())
    }

    /// Makes `count` different wrong guesses.
    fn guesses(limits: &RateLimits, verdict: Verdict, count: u32, now: u64) {
        for number in 0..count {
            guess(limits, verdict, &format!("wrong {number}"), now).unwrap();
        }
    }

    #[test]
    fn ten_wrong_guesses_lock_for_five_minutes() {
        let limits = limits();
        let there = remote("198.51.100.7");
        guesses(&limits, there, 9, 1_000);
        guess(&limits, there, "the tenth", 2_000).unwrap();
        let denied = guess(&limits, there, "the right one", 3_000).unwrap_err();
        assert_eq!(denied, Denied::RateLimited { retry_after_ms: 299_000 });
        assert!(guess(&limits, there, "another", 301_999).is_err());
        assert!(guess(&limits, there, "another", 302_000).is_ok());
    }

    #[test]
    fn guesses_spread_over_minutes_do_not_lock() {
        let limits = limits();
        for minute in 0..20 {
            guesses(&limits, remote("198.51.100.7"), 9, minute * 60_000);
        }
    }

    #[test]
    fn s_31_one_peer_has_one_entry() {
        for (one, same, other) in [
            ("198.51.100.7", "::ffff:198.51.100.7", "198.51.100.8"),
            ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"),
        ] {
            let limits = limits();
            guesses(&limits, remote(one), 10, 0);
            assert!(guess(&limits, remote(same), "x", 0).is_err(), "{same}");
            assert!(guess(&limits, remote(other), "x", 0).is_ok(), "{other}");
        }
    }

    #[test]
    fn kinds_are_counted_apart_and_success_forgives_its_own() {
        let limits = limits();
        let there = remote("198.51.100.7");
        guesses(&limits, there, 9, 0);
        limits.attempts(there, HeaderView::default(), UnixMs(0)).right(CredentialKind::DeviceToken);
        guess(&limits, there, "the tenth", 0).unwrap();
        let mut attempts = limits.attempts(there, HeaderView::default(), UnixMs(0));
        assert!(attempts.check(CredentialKind::DeviceToken, "x").is_ok());
        assert!(attempts.check(KIND, "x").is_err());
        attempts.right(KIND);
        assert!(attempts.check(KIND, "x").is_ok());
    }

    #[test]
    fn s_39_a_stale_token_in_a_loop_locks_only_itself_out() {
        let limits = limits();
        let there = remote("198.51.100.7");
        for _ in 0..10 {
            guess(&limits, there, "stale", 0).unwrap();
        }
        assert!(guess(&limits, there, "stale", 1).is_err());
        let attempts = limits.attempts(there, HeaderView::default(), UnixMs(1));
        assert!(attempts.check(KIND, "good").is_ok());
    }

    #[test]
    fn s_03_a_browser_on_loopback_is_counted_by_its_origin() {
        let limits = limits();
        let page: &[(&str, &[u8])] = &[("origin", b"https://evil.example")];
        for number in 0..10 {
            let mut attempts = limits.attempts(Verdict::DirectLocal, HeaderView::new(page), UnixMs(0));
            attempts.check(KIND, "x").unwrap();
            attempts.wrong(KIND, &number.to_string());
        }
        let check =
            |lines| limits.attempts(Verdict::DirectLocal, HeaderView::new(lines), UnixMs(0)).check(KIND, "x").is_ok();
        assert!(!check(page));
        assert!(check(&[("origin", b"http://localhost")]));
        assert!(check(&[]));
    }

    #[test]
    fn only_a_truly_local_peer_is_exempt() {
        let limits = limits();
        guesses(&limits, Verdict::DirectLocal, 50, 0);
        let rebound = remote("127.0.0.1");
        guesses(&limits, rebound, 10, 0);
        assert!(guess(&limits, rebound, "x", 0).is_err());
        let strict = RateLimits::new(RateLimitPolicy { exempt_loopback: false, ..RateLimitPolicy::default() });
        guesses(&strict, Verdict::DirectLocal, 10, 0);
        assert!(guess(&strict, Verdict::DirectLocal, "x", 0).is_err());
    }

    #[test]
    fn s_33_under_a_flood_each_address_gets_fewer_guesses_and_no_one_is_refused_unheard() {
        let limits = limits();
        for host in 0..1_000_u32 {
            guess(&limits, Verdict::DirectRemote { client: IpAddr::V4((0x0a00_0000 + host).into()) }, "x", 0).unwrap();
        }
        let newcomer = remote("198.51.100.7");
        guesses(&limits, newcomer, 2, 1);
        assert!(guess(&limits, newcomer, "third", 1).is_err());
        assert!(guess(&limits, remote("198.51.100.8"), "good", 1).is_ok());
        assert!(guess(&limits, remote("198.51.100.9"), "good", 60_001).is_ok());
    }

    #[test]
    fn s_34_a_flood_of_addresses_neither_grows_the_table_nor_frees_the_locked() {
        let limits = limits();
        let attacker = remote("203.0.113.9");
        guesses(&limits, attacker, 10, 0);
        for host in 0..100_000_u32 {
            guess(&limits, Verdict::DirectRemote { client: IpAddr::V4((0x0a00_0000 + host).into()) }, "x", 1).unwrap();
        }
        assert!(limits.entries() <= SETS * WAYS);
        assert!(guess(&limits, attacker, "x", 2).is_err());
    }

    #[test]
    fn a_clock_that_jumps_back_locks_no_one_for_ever() {
        let limits = limits();
        let there = remote("198.51.100.7");
        guesses(&limits, there, 10, 1_000_000_000);
        assert!(guess(&limits, there, "x", 1_000_000).is_ok());
    }

    #[test]
    fn a_proxy_that_hides_its_clients_gets_more_guesses_than_one_client() {
        let limits = limits();
        let proxy = Verdict::TrustedProxy { proxy: "10.0.0.1".parse().unwrap(), client: None };
        guesses(&limits, proxy, 100, 0);
        assert!(guess(&limits, proxy, "x", 0).is_err());
    }
}
