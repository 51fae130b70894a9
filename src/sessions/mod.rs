//! Sessions: who talks with the agent about what. Keys, transcripts, search, and who follows them.
//!
//! The handle is [`Sessions`]. A transcript is on disk before anybody hears of it; the list is an index in memory.
//! Other domains write through [`Sessions::append_in`] inside a transaction of their own, so that a message, the run
//! it starts and the place where it came from are stored together or not at all.
//!
//! Where to start reading: [`key`] (how sessions are called), [`message`] (what is said), [`record`] (how it is kept),
//! [`subscribers`] (who hears of it), [`methods`].

pub mod key;
pub mod message;
pub mod methods;
pub mod record;
mod row;
mod subscribers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde_json::{Value, json};

pub use record::SCHEMA;

use crate::clock::UnixMs;
use crate::hub::{Connection, Hub};
use crate::id;
use crate::rpc::catalog::Event;
use crate::rpc::error::RpcError;
use crate::store::{Change, Store, StoreError, Tx};
use key::SessionKey;
use message::Message;
use record::{Entry, Session};
use row::Row;
use subscribers::Subscribers;

/// Sessions that may be kept.
const MAX_SESSIONS: usize = 100_000;
/// Bytes of messages that are read at a time: pictures are large.
const MAX_READ_BYTES: usize = 32 * 1024 * 1024;

/// Where a session came from, for one that is not there yet.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Which channel.
    pub channel: Option<String>,
    /// A name for people.
    pub display_name: Option<String>,
    /// `operator` or `channel`.
    pub via: Option<&'static str>,
}

/// The run of a session that is under way.
#[derive(Clone, Debug, Default)]
pub struct InFlight {
    /// Which.
    pub run_id: String,
    /// What the model has said so far.
    pub text: String,
}

/// Handle to the sessions. Cheap to clone.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    hub: Hub,
    store: Store,
    index: RwLock<HashMap<SessionKey, Arc<Session>>>,
    /// How many there are: `health` says it, on every worker, and takes no lock for it.
    count: AtomicUsize,
    in_flight: Mutex<HashMap<SessionKey, InFlight>>,
    subscribers: Mutex<Subscribers>,
    /// What is asked where a session says nothing.
    default_model: Mutex<Option<DefaultModel>>,
}

/// The model of sessions that have none of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultModel {
    /// `provider/model`.
    pub name: String,
    /// Tokens it takes.
    pub context_window: u32,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("count", &self.len()).finish_non_exhaustive()
    }
}

/// What was appended, to be shown once it is on disk.
#[derive(Debug)]
pub struct Appended {
    key: SessionKey,
    session: Arc<Session>,
    /// In order.
    pub entries: Vec<Entry>,
    is_new: bool,
}

impl Sessions {
    /// Reads what is kept from `store`, which must have been opened with [`SCHEMA`]. Blocks for the reading.
    ///
    /// # Errors
    /// The store can't be read.
    pub fn open(store: Store, hub: Hub) -> Result<Self, StoreError> {
        let sessions = store.load(record::load)?;
        let index: HashMap<_, _> = sessions.into_iter().map(|(key, session)| (key, Arc::new(session))).collect();
        Ok(Self(Arc::new(Inner {
            hub,
            store,
            count: AtomicUsize::new(index.len()),
            index: RwLock::new(index),
            in_flight: Mutex::default(),
            subscribers: Mutex::default(),
            default_model: Mutex::default(),
        })))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A session.
    pub fn get(&self, key: &SessionKey) -> Option<Arc<Session>> {
        self.index().get(key).cloned()
    }

    /// All sessions.
    pub fn all(&self) -> Vec<(SessionKey, Arc<Session>)> {
        self.index().iter().map(|(key, session)| (key.clone(), Arc::clone(session))).collect()
    }

    /// Appends messages to a session inside a transaction, making the session where it is not there.
    /// [`Sessions::show`] the result when that is on disk.
    ///
    /// # Errors
    /// There are as many sessions as there may be, or it can't be written.
    pub fn append_in(
        &self,
        tx: &Tx<'_>,
        key: &SessionKey,
        origin: &Origin,
        messages: &[Message],
        change: impl FnOnce(&mut Session),
        now: UnixMs,
    ) -> Result<Appended, RpcError> {
        self.append_of_run_in(tx, key, origin, (messages, None), change, now)
    }

    /// The same, for messages of a run, which stands beside them.
    ///
    /// # Errors
    /// As [`Sessions::append_in`].
    pub fn append_of_run_in(
        &self,
        tx: &Tx<'_>,
        key: &SessionKey,
        origin: &Origin,
        (messages, run): (&[Message], Option<&str>),
        change: impl FnOnce(&mut Session),
        now: UnixMs,
    ) -> Result<Appended, RpcError> {
        let (mut session, is_new) = match record::get(tx, key)? {
            Some(session) => (session, false),
            None => (self.new_session(origin, now)?, true),
        };
        let mut entries = Vec::with_capacity(messages.len());
        for message in messages {
            entries.push(record::append(tx, &mut session, message, run)?);
        }
        session.updated_at = now;
        change(&mut session);
        record::put(tx, key, &session)?;
        Ok(Appended { key: key.clone(), session: Arc::new(session), entries, is_new })
    }

    fn new_session(&self, origin: &Origin, now: UnixMs) -> Result<Session, RpcError> {
        if self.len() >= MAX_SESSIONS {
            return Err(RpcError::unavailable(format!(
                "there are {MAX_SESSIONS} sessions, the most this gateway keeps; delete some (sessions.delete)"
            )));
        }
        Ok(Session {
            session_id: id::uuid(),
            created_at: now,
            updated_at: now,
            channel: origin.channel.clone(),
            display_name: origin.display_name.clone(),
            created_via: origin.via.map(str::to_owned),
            ..Session::default()
        })
    }

    /// Shows what is on disk now: in the list, and to those who follow it. For [`Change::publish`].
    pub fn show(&self, appended: Appended) {
        let Appended { key, session, entries, is_new } = appended;
        self.set_index(&key, Some(Arc::clone(&session)));
        for entry in &entries {
            self.send_message(&key, &session, entry);
        }
        self.changed(&key, if is_new { "create" } else { "message" });
    }

    /// Appends messages in a transaction of its own.
    ///
    /// # Errors
    /// As [`Sessions::append_in`].
    pub async fn append(&self, key: &SessionKey, messages: Vec<Message>, now: UnixMs) -> Result<Vec<Entry>, RpcError> {
        self.append_of_run(key, messages, None, now).await
    }

    /// The same, for messages of a run.
    ///
    /// # Errors
    /// As [`Sessions::append_in`].
    pub async fn append_of_run(
        &self,
        key: &SessionKey,
        messages: Vec<Message>,
        run: Option<String>,
        now: UnixMs,
    ) -> Result<Vec<Entry>, RpcError> {
        let (sessions, key) = (self.clone(), key.clone());
        self.0
            .store
            .write(move |tx| {
                let of_run = (&messages[..], run.as_deref());
                let appended = sessions.append_of_run_in(tx, &key, &Origin::default(), of_run, |_| (), now)?;
                Ok::<_, RpcError>(Change::of(appended.entries.clone()).publish(move || sessions.show(appended)))
            })
            .await
    }

    /// Changes the row of a session, making it where it is not there.
    ///
    /// # Errors
    /// What `change` refuses; or it can't be written.
    pub async fn update(
        &self,
        key: &SessionKey,
        origin: Origin,
        reason: &'static str,
        change: impl FnOnce(&mut Session) -> Result<(), RpcError> + Send + 'static,
        now: UnixMs,
    ) -> Result<Arc<Session>, RpcError> {
        let (sessions, key) = (self.clone(), key.clone());
        self.0
            .store
            .write(move |tx| {
                let mut session = match record::get(tx, &key)? {
                    Some(session) => session,
                    None => sessions.new_session(&origin, now)?,
                };
                change(&mut session)?;
                session.updated_at = now;
                record::put(tx, &key, &session)?;
                let session = Arc::new(session);
                let shown = Arc::clone(&session);
                Ok::<_, RpcError>(Change::of(session).publish(move || {
                    sessions.set_index(&key, Some(shown));
                    sessions.changed(&key, reason);
                }))
            })
            .await
    }

    /// Begins a session anew under its key: an empty transcript with another id. The old one stays for a while.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn reset(&self, key: &SessionKey, now: UnixMs) -> Result<Arc<Session>, RpcError> {
        let (sessions, key) = (self.clone(), key.clone());
        self.0
            .store
            .write(move |tx| {
                let before = record::get(tx, &key)?;
                let mut session = sessions.new_session(&Origin::default(), now)?;
                if let Some(before) = before {
                    record::retire(tx, &before.session_id, now)?;
                    session.created_at = before.created_at;
                    session.label = before.label;
                    session.display_name = before.display_name;
                    session.channel = before.channel;
                    session.created_via = before.created_via;
                    session.model = before.model;
                    session.settings = before.settings;
                    session.pinned = before.pinned;
                }
                record::put(tx, &key, &session)?;
                let session = Arc::new(session);
                let shown = Arc::clone(&session);
                Ok::<_, RpcError>(Change::of(session).publish(move || {
                    sessions.set_index(&key, Some(shown));
                    sessions.changed(&key, "reset");
                }))
            })
            .await
    }

    /// Deletes a session; with `transcript` also what was said, at once. Says whether it was there.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn delete(&self, key: &SessionKey, transcript: bool, now: UnixMs) -> Result<bool, RpcError> {
        let (sessions, key) = (self.clone(), key.clone());
        self.0
            .store
            .write(move |tx| {
                let Some(session) = record::get(tx, &key)? else { return Ok::<_, RpcError>(Change::of(false)) };
                record::delete(tx, &key, &session, now)?;
                if transcript {
                    record::purge(tx, Some(&session.session_id), now)?;
                }
                Ok(Change::of(true).publish(move || {
                    sessions.set_index(&key, None);
                    let payload = json!({"sessionKey": key.as_str(), "reason": "delete", "sessionId": session.session_id, "ts": now});
                    sessions.subscribers().changed(&payload);
                }))
            })
            .await
    }

    /// Deletes what was retired long ago. To be called now and then.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn tend(&self, now: UnixMs) -> Result<(), StoreError> {
        let before = UnixMs(now.0.saturating_sub(record::KEEP_MS));
        self.0.store.write(move |tx| record::purge(tx, None, before).map(|()| Change::of(()))).await
    }

    /// The last `limit` messages before number `before`, in order; fewer where they have more than 32 MiB together.
    ///
    /// # Errors
    /// They can't be read.
    pub async fn history(&self, session_id: &str, before: u64, limit: usize) -> Result<Vec<Entry>, RpcError> {
        let session_id = session_id.to_owned();
        Ok(self.0.store.read(move |db| record::history(db, &session_id, before, limit, MAX_READ_BYTES)).await?)
    }

    /// Notes what the run of a session has said so far; `None` when there is no run any more.
    pub fn set_in_flight(&self, key: &SessionKey, in_flight: Option<InFlight>) {
        let mut all = self.0.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        match in_flight {
            Some(in_flight) => drop(all.insert(key.clone(), in_flight)),
            None => {
                all.remove(key);
                drop(all);
                self.subscribers().caught_up(key);
            }
        }
    }

    /// The run of a session that is under way.
    pub fn in_flight(&self, key: &SessionKey) -> Option<InFlight> {
        self.0.in_flight.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn all_in_flight(&self) -> MutexGuard<'_, HashMap<SessionKey, InFlight>> {
        self.0.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who follow the list that a session has changed.
    pub fn changed(&self, key: &SessionKey, reason: &str) {
        let subscribers = self.subscribers();
        if !subscribers.anyone_follows_the_list() {
            return;
        }
        let row = self.get(key).map(|session| self.row(key, &session));
        let active: Vec<_> = self.in_flight(key).into_iter().map(|run| run.run_id).collect();
        let payload = json!({
            "sessionKey": key.as_str(), "key": key.as_str(), "agentId": key.agent(), "reason": reason, "session": row,
            "activeRunIds": active, "hasActiveRun": !active.is_empty(), "ancestorSessions": [], "ts": UnixMs::now(),
        });
        subscribers.changed(&payload);
    }

    /// Sends an event about a session to those who follow it, or have it open.
    pub fn send(&self, key: &SessionKey, event: &'static Event, payload: &Value) {
        self.subscribers().send(key, event, payload);
    }

    /// Sends more of what a model says to those who have the session open. Whoever did not keep up has missed some of
    /// it, and gets `whole` instead: everything that was said so far, in one event.
    pub fn send_delta(&self, key: &SessionKey, more: &Value, whole: impl FnOnce() -> Option<Value>) {
        self.subscribers().send_delta(key, more, whole);
    }

    /// Sends an event to those who asked for the messages of a session.
    pub fn send_to_followers(&self, key: &SessionKey, event: &'static Event, payload: &Value) {
        self.subscribers().send_to_followers(key, event, payload);
    }

    /// Notes that a connection has a session open: it gets what the model says, as it comes.
    pub fn opened(&self, key: &SessionKey, connection: &Arc<Connection>) {
        self.subscribers().open(key, connection);
    }

    /// A connection has ended.
    pub fn disconnected(&self, connection: &Connection) {
        self.subscribers().forget(connection.id);
    }

    /// The hub, for what everybody hears.
    pub fn hub(&self) -> &Hub {
        &self.0.hub
    }

    fn send_message(&self, key: &SessionKey, session: &Session, entry: &Entry) {
        let subscribers = self.subscribers();
        if !subscribers.anyone_follows(key) {
            return;
        }
        let mut payload = methods::shown_message(key, session, entry);
        payload["session"] = self.row(key, session);
        subscribers.send_to_followers(key, Event::SESSION_MESSAGE, &payload);
    }

    /// Says which model sessions have that have none of their own.
    pub fn set_default_model(&self, model: Option<DefaultModel>) {
        *self.0.default_model.lock().unwrap_or_else(PoisonError::into_inner) = model;
    }

    /// That model.
    pub fn default_model(&self) -> Option<DefaultModel> {
        self.0.default_model.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A session's row of the list.
    pub fn row(&self, key: &SessionKey, session: &Session) -> Value {
        let run = self.in_flight(key).map(|run| run.run_id);
        let default = self.default_model();
        let row = Row { key, session, run: run.as_deref(), default: default.as_ref(), now: UnixMs::now() };
        serde_json::to_value(row).unwrap_or_default()
    }

    fn index(&self) -> std::sync::RwLockReadGuard<'_, HashMap<SessionKey, Arc<Session>>> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_index(&self, key: &SessionKey, session: Option<Arc<Session>>) {
        let mut index = self.0.index.write().unwrap_or_else(PoisonError::into_inner);
        match session {
            Some(session) => index.insert(key.clone(), session),
            None => index.remove(key),
        };
        self.0.count.store(index.len(), Ordering::Relaxed);
    }

    fn subscribers(&self) -> MutexGuard<'_, Subscribers> {
        self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
