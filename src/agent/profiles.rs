//! Auth profiles: keys of model providers, several a provider, kept in the state file; and which of them rest.
//!
//! The handle is [`Profiles`]. Which key is tried first is decided by [`order`], how long one rests after a failure by
//! [`rest_after`]; both pure. A profile stays first for as long as it serves, because providers keep caches by key. That
//! one rests is on disk soon after it is so, and is known again after a restart; it waits for nobody.
//!
//! A key is shown to nobody: lists hold ids and states.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, params};
use serde_json::{Value, json};

use super::providers::FailureKind;
use crate::clock::UnixMs;
use crate::rpc::error::RpcError;
use crate::secret::Secret;
use crate::store::{Change, Schema, Store, StoreError};
use crate::task;

/// The tables of this part of the domain.
pub const SCHEMA: Schema = Schema {
    domain: "profiles",
    steps: &["
        CREATE TABLE auth_profiles (
            id TEXT PRIMARY KEY,
            provider TEXT NOT NULL,
            key TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            errors INTEGER NOT NULL DEFAULT 0,
            rests_until INTEGER NOT NULL DEFAULT 0,
            reason TEXT
        ) STRICT;
    "],
};

/// Profiles that are kept.
const MAX_PROFILES: usize = 256;
/// Bytes of a key.
const MAX_KEY_BYTES: usize = 16 * 1024;
/// The rest after the first failure, the second, and each one after that.
const RESTS: [Duration; 3] = [Duration::from_secs(30), Duration::from_secs(60), Duration::from_secs(300)];
/// The rest of an account that is out of credit.
const UNPAID: Duration = Duration::from_secs(600);
/// The longest rest that a provider may ask for.
const LONGEST_REST: Duration = Duration::from_secs(24 * 3600);
/// After how long without one a failure is the first again.
const FORGETS: u64 = 24 * 3600 * 1000;

/// What the configuration says of profiles: `auth.profiles` and `auth.order`. It holds no key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// `auth.order`, by provider: these and no others, in this order.
    pub order: BTreeMap<String, Vec<String>>,
    /// `auth.profiles`: id and provider, in the order of the file.
    pub profiles: Vec<(String, String)>,
}

/// A key to try.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Whose: the id of a profile; `None` for the key of `models.providers`.
    pub profile: Option<String>,
    /// The key; `None` where a provider needs none.
    pub key: Option<Secret>,
    /// It failed not long ago.
    pub rests: bool,
}

#[derive(Clone, Debug)]
struct Profile {
    provider: String,
    key: Secret,
    created_at: UnixMs,
    health: Health,
}

/// How a key has done lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Health {
    errors: u32,
    rests_until: UnixMs,
    reason: Option<&'static str>,
}

/// Handle to the profiles. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Profiles(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    routing: Routing,
    runtime: tokio::runtime::Handle,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    profiles: BTreeMap<String, Profile>,
    /// Keys of the configuration, by provider.
    inline: BTreeMap<String, Health>,
}

impl Profiles {
    /// Reads what is kept from `store`, which must have been opened with [`SCHEMA`]. Blocks for the reading.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn open(store: Store, routing: Routing, runtime: tokio::runtime::Handle) -> Result<Self, StoreError> {
        let profiles = store.load(load)?;
        let table = Table { profiles, inline: BTreeMap::new() };
        Ok(Self(Arc::new(Inner { store, routing, runtime, table: Mutex::new(table) })))
    }

    /// The keys for `provider`, best first: its profiles, then `inline`. Those that rest come last. Never empty: a
    /// provider without any key is asked without one.
    pub fn credentials(&self, provider: &str, inline: Option<&Secret>, now: UnixMs) -> Vec<Credential> {
        let table = self.table();
        let stored: Vec<_> = table
            .profiles
            .iter()
            .filter(|(_, profile)| profile.provider == provider)
            .map(|(id, profile)| (id.as_str(), profile.created_at))
            .collect();
        let mut found: Vec<_> = order(&self.0.routing, provider, &stored)
            .into_iter()
            .filter_map(|id| {
                let profile = table.profiles.get(id)?;
                let rests = profile.health.rests_until > now;
                Some(Credential { profile: Some(id.to_owned()), key: Some(profile.key.clone()), rests })
            })
            .collect();
        if inline.is_some() || found.is_empty() {
            let rests = table.inline.get(provider).is_some_and(|health| health.rests_until > now);
            found.push(Credential { profile: None, key: inline.cloned(), rests });
        }
        found.sort_by_key(|credential| credential.rests);
        found
    }

    /// Lets a key rest that a provider has refused.
    pub fn failed(
        &self,
        provider: &str,
        credential: &Credential,
        kind: FailureKind,
        retry_after: Option<Duration>,
        now: UnixMs,
    ) {
        let mut table = self.table();
        let health = match &credential.profile {
            Some(id) => match table.profiles.get_mut(id) {
                Some(profile) => &mut profile.health,
                None => return,
            },
            None => table.inline.entry(provider.to_owned()).or_default(),
        };
        let long_ago = now.since(health.rests_until) > FORGETS;
        health.errors = if long_ago { 1 } else { health.errors.saturating_add(1) };
        let rest = rest_after(kind, health.errors, retry_after);
        health.rests_until = now.plus(u64::try_from(rest.as_millis()).unwrap_or(u64::MAX));
        health.reason = Some(reason(kind));
        let health = health.clone();
        drop(table);
        let profile = credential.profile.as_deref();
        tracing::warn!(provider, profile, reason = health.reason, rest_s = rest.as_secs(), "a provider's key rests");
        self.keep(credential, health);
    }

    /// Notes that a key has served.
    pub fn served(&self, provider: &str, credential: &Credential) {
        let mut table = self.table();
        let health = match &credential.profile {
            Some(id) => table.profiles.get_mut(id).map(|profile| &mut profile.health),
            None => table.inline.get_mut(provider),
        };
        let Some(health) = health.filter(|health| **health != Health::default()) else { return };
        *health = Health::default();
        drop(table);
        self.keep(credential, Health::default());
    }

    /// Puts the health of a profile on disk, whenever that is done.
    fn keep(&self, credential: &Credential, health: Health) {
        let Some(id) = credential.profile.clone() else { return };
        let store = self.0.store.clone();
        task::spawn_on(&self.0.runtime, "agent.profiles", async move {
            let written = store.write(move |tx| {
                tx.prepare_cached("UPDATE auth_profiles SET errors = ?2, rests_until = ?3, reason = ?4 WHERE id = ?1")?
                    .execute(params![id, health.errors, time(health.rests_until), health.reason])?;
                Ok::<_, StoreError>(Change::of(()))
            });
            if let Err(error) = written.await {
                tracing::warn!(%error, "that a provider's key rests was not stored");
            }
        });
    }

    /// When the key of a provider that is tried next can be asked again; `None` when it can be now.
    pub fn rests_until(&self, provider: &str, inline: Option<&Secret>, now: UnixMs) -> Option<UnixMs> {
        let credentials = self.credentials(provider, inline, now);
        if credentials.iter().any(|credential| !credential.rests) {
            return None;
        }
        let table = self.table();
        let until = credentials.iter().filter_map(|credential| match &credential.profile {
            Some(id) => table.profiles.get(id).map(|profile| profile.health.rests_until),
            None => table.inline.get(provider).map(|health| health.rests_until),
        });
        until.min()
    }

    /// Keeps a key for `provider` as the profile `id`, or as `<provider>:default`. What was there under the id is
    /// replaced. Gives the id.
    ///
    /// # Errors
    /// It is no key, there are too many, or it can't be written.
    pub async fn set(&self, provider: &str, id: Option<&str>, key: Secret, now: UnixMs) -> Result<String, RpcError> {
        let is_word = |text: &str| {
            (1..=128).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\'))
        };
        let id = id.map_or_else(|| format!("{provider}:default"), str::to_owned);
        if !is_word(provider) || !is_word(&id) {
            return Err(RpcError::invalid("provider and profile id: 128 printable characters without blanks at most"));
        }
        let text = key.expose();
        if text.is_empty() || text.len() > MAX_KEY_BYTES || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(RpcError::invalid(
                "the key is empty, too long, or holds what no key holds (blanks, line breaks)",
            ));
        }
        let (handle, provider) = (self.clone(), provider.to_owned());
        self.0
            .store
            .write(move |tx| {
                let others: i64 =
                    tx.query_row("SELECT count(*) FROM auth_profiles WHERE id != ?1", [&id], |row| row.get(0))?;
                if usize::try_from(others).unwrap_or(usize::MAX) >= MAX_PROFILES {
                    return Err(RpcError::unavailable(format!(
                        "there are {MAX_PROFILES} profiles, the most that are kept"
                    )));
                }
                tx.execute(
                    "INSERT OR REPLACE INTO auth_profiles (id, provider, key, created_at) VALUES (?1, ?2, ?3, ?4)",
                    params![id, provider, key.expose(), time(now)],
                )?;
                let profile = Profile { provider, key, created_at: now, health: Health::default() };
                Ok::<_, RpcError>(Change::of(id.clone()).publish(move || {
                    handle.table().profiles.insert(id, profile);
                }))
            })
            .await
    }

    /// Forgets profiles of `provider`: those named, or all. Gives their ids.
    ///
    /// # Errors
    /// One of those named is not there, or it can't be written.
    pub async fn remove(&self, provider: &str, ids: Option<Vec<String>>) -> Result<Vec<String>, RpcError> {
        let of_provider: Vec<String> = {
            let table = self.table();
            let own = table.profiles.iter().filter(|(_, profile)| profile.provider == provider);
            own.map(|(id, _)| id.clone()).collect()
        };
        let ids = ids.unwrap_or_else(|| of_provider.clone());
        if let Some(unknown) = ids.iter().find(|id| !of_provider.contains(id)) {
            let unknown: String = unknown.chars().take(128).collect();
            return Err(RpcError::invalid(format!("the provider {provider:?} has no profile {unknown:?}")));
        }
        let handle = self.clone();
        self.0
            .store
            .write(move |tx| {
                for id in &ids {
                    tx.execute("DELETE FROM auth_profiles WHERE id = ?1", [id])?;
                }
                Ok::<_, RpcError>(Change::of(ids.clone()).publish(move || {
                    let mut table = handle.table();
                    ids.iter().for_each(|id| drop(table.profiles.remove(id)));
                }))
            })
            .await
    }

    /// `models.authStatus`: per provider its profiles and how they are. `inline` are the providers that the
    /// configuration holds a key for.
    pub fn report(&self, inline: &[&str], now: UnixMs) -> Value {
        let table = self.table();
        let mut providers: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        let row = |id: &str, source: &str, health: &Health| {
            let rests = health.rests_until > now;
            let mut row = json!({"profileId": id, "type": "api_key", "status": if rests { "cooldown" } else { "static" },
                "source": source, "logoutSupported": source == "saved"});
            if rests {
                row["cooldownUntil"] = json!(health.rests_until);
                row["reason"] = json!(health.reason);
                row["errorCount"] = json!(health.errors);
            }
            row
        };
        for (id, profile) in &table.profiles {
            providers.entry(&profile.provider).or_default().push(row(id, "saved", &profile.health));
        }
        for provider in inline {
            let health = table.inline.get(*provider).cloned().unwrap_or_default();
            providers.entry(provider).or_default().push(row(&format!("{provider}:config"), "config", &health));
        }
        let providers: Vec<_> = providers
            .into_iter()
            .map(|(provider, profiles)| {
                let usable = profiles.iter().any(|profile| profile["status"] != "cooldown");
                let order = self.0.routing.order.get(provider);
                json!({"provider": provider, "displayName": provider, "status": if usable { "static" } else { "cooldown" },
                    "profiles": profiles, "order": order})
            })
            .collect();
        json!({"ts": now, "providers": providers})
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In which order the profiles of a provider are tried: `auth.order` where it names the provider, and then no others;
/// else those of `auth.profiles`, then the others as they came. `stored` are ids with the time they came.
fn order<'a>(routing: &'a Routing, provider: &str, stored: &[(&'a str, UnixMs)]) -> Vec<&'a str> {
    let is_stored = |id: &&str| stored.iter().any(|(known, _)| known == id);
    if let Some(order) = routing.order.get(provider) {
        return order.iter().map(String::as_str).filter(is_stored).collect();
    }
    let named = routing.profiles.iter().filter(|(_, of)| of == provider).map(|(id, _)| id.as_str());
    let mut found: Vec<_> = named.filter(is_stored).collect();
    let mut others: Vec<_> = stored.iter().filter(|(id, _)| !found.contains(id)).copied().collect();
    others.sort_by_key(|(id, created_at)| (*created_at, *id));
    found.extend(others.into_iter().map(|(id, _)| id));
    found
}

/// How long a key rests after its failure number `errors` in a row.
fn rest_after(kind: FailureKind, errors: u32, retry_after: Option<Duration>) -> Duration {
    let step = usize::try_from(errors.max(1) - 1).unwrap_or(usize::MAX).min(RESTS.len() - 1);
    let rest = if kind == FailureKind::Unpaid { UNPAID } else { RESTS[step] };
    rest.max(retry_after.unwrap_or_default().min(LONGEST_REST))
}

const fn reason(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Auth => "auth",
        FailureKind::Unpaid => "billing",
        FailureKind::RateLimit => "rate_limit",
        _ => "unknown",
    }
}

fn load(db: &Connection) -> rusqlite::Result<BTreeMap<String, Profile>> {
    let mut rows =
        db.prepare("SELECT id, provider, key, created_at, errors, rests_until, reason FROM auth_profiles")?;
    let rows = rows.query_map([], |row| {
        let at = |column| row.get::<_, i64>(column).map(|ms| UnixMs(ms.unsigned_abs()));
        let reason: Option<String> = row.get(6)?;
        let known = ["auth", "billing", "rate_limit"].into_iter().find(|known| reason.as_deref() == Some(known));
        let health = Health { errors: row.get(4)?, rests_until: at(5)?, reason: known };
        let key = Secret::new(row.get::<_, String>(2)?);
        Ok((row.get(0)?, Profile { provider: row.get(1)?, key, created_at: at(3)?, health }))
    })?;
    rows.collect()
}

fn time(at: UnixMs) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_795_000_000_000);

    fn ids(credentials: &[Credential]) -> Vec<Option<&str>> {
        credentials.iter().map(|credential| credential.profile.as_deref()).collect()
    }

    fn open(store: &Store, routing: Routing) -> Profiles {
        Profiles::open(store.clone(), routing, tokio::runtime::Handle::current()).unwrap()
    }

    #[tokio::test]
    async fn keys_are_tried_in_order_and_those_that_rest_come_last() {
        let store = Store::open_in_memory(&[SCHEMA]).unwrap();
        let profiles = open(&store, Routing::default());
        let set = async |id: &str, at| profiles.set("p", Some(id), Secret::new(format!("key-of-{id}")), at).await;
        set("p:b", NOW).await.unwrap();
        set("p:a", NOW.plus(1)).await.unwrap();
        profiles.set("other", None, Secret::new("k"), NOW).await.unwrap();
        let inline = Secret::new("inline");
        let all = |at| profiles.credentials("p", Some(&inline), at);
        assert_eq!(ids(&all(NOW)), [Some("p:b"), Some("p:a"), None]);
        profiles.failed("p", &all(NOW)[0], FailureKind::RateLimit, Some(Duration::from_secs(45)), NOW);
        assert_eq!(ids(&all(NOW)), [Some("p:a"), None, Some("p:b")]);
        assert!(all(NOW.plus(44_999))[2].rests && !all(NOW.plus(45_001))[0].rests);
        assert_eq!(profiles.rests_until("p", Some(&inline), NOW), None);
        for credential in all(NOW) {
            profiles.failed("p", &credential, FailureKind::Auth, None, NOW);
        }
        assert_eq!(profiles.rests_until("p", Some(&inline), NOW), Some(NOW.plus(30_000)));
        profiles.served("p", &all(NOW)[1]);
        assert_eq!(profiles.rests_until("p", Some(&inline), NOW), None);
        let report = profiles.report(&["p"], NOW).to_string();
        assert!(report.contains("p:config") && !report.contains("key-of") && !report.contains("inline"), "{report}");
        assert!(!format!("{profiles:?}").contains("key-of"), "not even for a debugger");
    }

    #[tokio::test]
    async fn what_was_set_is_there_after_a_restart_with_its_rest_and_gone_when_removed() {
        let store = Store::open_in_memory(&[SCHEMA]).unwrap();
        let profiles = open(&store, Routing::default());
        assert_eq!(profiles.set("p", None, Secret::new("secret"), NOW).await.unwrap(), "p:default");
        profiles.failed("p", &profiles.credentials("p", None, NOW)[0], FailureKind::Unpaid, None, NOW);
        while !open(&store, Routing::default()).credentials("p", None, NOW)[0].rests {
            tokio::task::yield_now().await;
        }
        let again = open(&store, Routing::default());
        assert_eq!(again.credentials("p", None, NOW)[0].key.as_ref().map(|key| key.expose()), Some("secret"));
        assert_eq!(again.rests_until("p", None, NOW), Some(NOW.plus(600_000)));
        assert!(again.remove("p", Some(vec!["other:default".into()])).await.is_err());
        assert_eq!(again.remove("p", None).await.unwrap(), ["p:default"]);
        assert_eq!(ids(&open(&store, Routing::default()).credentials("p", None, NOW)), [None]);
        for wrong in ["", "two words", "line\nbreak"] {
            assert!(again.set("p", None, Secret::new(wrong), NOW).await.is_err(), "{wrong:?}");
        }
        assert!(again.set("p p", None, Secret::new("k"), NOW).await.is_err());
    }

    #[test]
    fn the_configuration_orders_and_leaves_out() {
        let stored = [("p:a", UnixMs(2)), ("p:b", UnixMs(1)), ("p:c", UnixMs(3))];
        let named =
            Routing { profiles: vec![("p:c".into(), "p".into()), ("q:x".into(), "q".into())], ..Routing::default() };
        assert_eq!(order(&named, "p", &stored), ["p:c", "p:b", "p:a"]);
        let ordered = Routing { order: BTreeMap::from([("p".into(), vec!["p:a".into(), "p:gone".into()])]), ..named };
        assert_eq!(order(&ordered, "p", &stored), ["p:a"]);
    }

    #[test]
    fn a_rest_grows_to_its_limit_and_is_never_shorter_than_asked_for() {
        let seconds =
            |kind, errors, asked: Option<u64>| rest_after(kind, errors, asked.map(Duration::from_secs)).as_secs();
        assert_eq!([1, 2, 3, 9].map(|errors| seconds(FailureKind::Auth, errors, None)), [30, 60, 300, 300]);
        assert_eq!(seconds(FailureKind::RateLimit, 1, Some(90)), 90);
        assert_eq!(seconds(FailureKind::RateLimit, 1, Some(1)), 30);
        assert_eq!(seconds(FailureKind::RateLimit, 1, Some(1 << 40)), 24 * 3600);
        assert_eq!(seconds(FailureKind::Unpaid, 1, None), 600);
    }
}
