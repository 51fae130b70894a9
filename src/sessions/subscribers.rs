//! Who follows what: the list of sessions, the messages of one, or just has one open.
//!
//! A connection that has a session open (it asked for its history, or spoke in it) hears what the model says as it
//! comes; everybody who may read hears how it ended. So a hundred sessions that stream cost those who look, and no one
//! else. Bounded for each connection.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::key::SessionKey;
use crate::hub::Connection;
use crate::hub::outbox::{EncodedEvent, Pushed};
use crate::hub::registry::encode;
use crate::id::ConnId;
use crate::rpc::catalog::Event;

/// Sessions that one connection may follow or have open; beyond it the one it opened first is forgotten.
const MAX_SESSIONS: usize = 256;

#[derive(Debug)]
struct Follower {
    connection: Arc<Connection>,
    list: bool,
    /// In the order in which they were opened.
    open: Vec<SessionKey>,
    messages: HashSet<SessionKey>,
    /// Where it has missed something of what the model says.
    behind: HashSet<SessionKey>,
}

/// Connections by what they follow.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    followers: HashMap<ConnId, Follower>,
    by_session: HashMap<SessionKey, HashSet<ConnId>>,
    lists: usize,
}

impl Subscribers {
    fn follower(&mut self, connection: &Arc<Connection>) -> &mut Follower {
        self.followers.entry(connection.id).or_insert_with(|| Follower {
            connection: Arc::clone(connection),
            list: false,
            open: Vec::new(),
            messages: HashSet::new(),
            behind: HashSet::new(),
        })
    }

    /// Follows the list, or not any more.
    pub(super) fn follow_list(&mut self, connection: &Arc<Connection>, follow: bool) {
        let was = std::mem::replace(&mut self.follower(connection).list, follow);
        self.lists = self.lists + usize::from(follow) - usize::from(was);
    }

    /// Has a session open.
    pub(super) fn open(&mut self, key: &SessionKey, connection: &Arc<Connection>) {
        let follower = self.follower(connection);
        if follower.open.contains(key) {
            return;
        }
        follower.open.push(key.clone());
        let oldest = (follower.open.len() > MAX_SESSIONS).then(|| follower.open.remove(0));
        self.by_session.entry(key.clone()).or_default().insert(connection.id);
        if let Some(oldest) = oldest {
            self.leave(connection.id, &oldest);
        }
    }

    fn leave(&mut self, id: ConnId, key: &SessionKey) {
        if let Some(follower) = self.followers.get_mut(&id) {
            follower.messages.remove(key);
            follower.behind.remove(key);
        }
        if let Some(connections) = self.by_session.get_mut(key) {
            connections.remove(&id);
            if connections.is_empty() {
                self.by_session.remove(key);
            }
        }
    }

    /// Follows the messages of a session, or not any more.
    pub(super) fn follow(&mut self, key: &SessionKey, connection: &Arc<Connection>, follow: bool) {
        if follow {
            self.open(key, connection);
            self.follower(connection).messages.insert(key.clone());
        } else if let Some(follower) = self.followers.get_mut(&connection.id) {
            follower.messages.remove(key);
        }
    }

    /// A connection has ended.
    pub(super) fn forget(&mut self, id: ConnId) {
        let Some(follower) = self.followers.remove(&id) else { return };
        self.lists -= usize::from(follower.list);
        for key in follower.open {
            self.leave(id, &key);
        }
    }

    pub(super) fn anyone_follows_the_list(&self) -> bool {
        self.lists > 0
    }

    pub(super) fn anyone_follows(&self, key: &SessionKey) -> bool {
        self.of(key).any(|follower| follower.messages.contains(key))
    }

    fn of(&self, key: &SessionKey) -> impl Iterator<Item = &Follower> {
        self.by_session.get(key).into_iter().flatten().filter_map(|id| self.followers.get(id))
    }

    /// To those who follow the list.
    pub(super) fn changed(&self, payload: &Value) {
        let event = Arc::new(EncodedEvent::new(Event::SESSIONS_CHANGED, &encode(payload), None));
        for follower in self.followers.values().filter(|follower| follower.list) {
            follower.connection.outbox.push_event(&event);
        }
    }

    /// To those who have the session open.
    pub(super) fn send(&self, key: &SessionKey, event: &'static Event, payload: &Value) {
        self.push(self.of(key), event, payload);
    }

    /// More of what the model says, to those who have the session open; to those who have missed some of it, the whole.
    pub(super) fn send_delta(&mut self, key: &SessionKey, more: &Value, whole: impl FnOnce() -> Option<Value>) {
        let event = |payload: &Value| Arc::new(EncodedEvent::new(Event::CHAT_DELTA, &encode(payload), None));
        let (mut more_event, mut whole_event, mut whole) = (None, None, Some(whole));
        let Some(connections) = self.by_session.get(key) else { return };
        for id in connections {
            let Some(follower) = self.followers.get_mut(id) else { continue };
            let outbox = &follower.connection.outbox;
            if follower.behind.contains(key) {
                let whole =
                    whole_event.get_or_insert_with(|| whole.take().and_then(|whole| whole()).as_ref().map(event));
                // Longer than is shown as a whole: the end of the run says it all.
                let Some(whole) = whole else { continue };
                if outbox.push_event(whole) == Pushed::Queued {
                    follower.behind.remove(key);
                }
            } else if outbox.push_event(more_event.get_or_insert_with(|| event(more))) == Pushed::Dropped {
                follower.behind.insert(key.clone());
            }
        }
    }

    /// Nobody has missed anything of a run that has not begun.
    pub(super) fn caught_up(&mut self, key: &SessionKey) {
        for id in self.by_session.get(key).into_iter().flatten() {
            if let Some(follower) = self.followers.get_mut(id) {
                follower.behind.remove(key);
            }
        }
    }

    /// To those who follow its messages.
    pub(super) fn send_to_followers(&self, key: &SessionKey, event: &'static Event, payload: &Value) {
        self.push(self.of(key).filter(|follower| follower.messages.contains(key)), event, payload);
    }

    fn push<'a>(&self, to: impl Iterator<Item = &'a Follower>, event: &'static Event, payload: &Value) {
        let mut encoded = None;
        for follower in to {
            let event = encoded.get_or_insert_with(|| Arc::new(EncodedEvent::new(event, &encode(payload), None)));
            follower.connection.outbox.push_event(event);
        }
    }
}
