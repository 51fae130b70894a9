//! The settings in force, and the time in which others take their place.
//!
//! They are swapped at once, but looking at every connection takes a moment. Until that is over each request is judged by
//! itself, so that nobody gets anything done under settings that have gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Guard};

use crate::auth::Policy;
use crate::auth::standing::stands;
use crate::hub::{Connection, Hub};
use crate::ws::close::CloseCode;

/// Settings that were put in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Their generation.
    pub generation: u64,
    /// Connections that lost their right.
    pub closed: usize,
}

/// The settings in force.
#[derive(Debug)]
pub(super) struct InForce {
    policy: ArcSwap<Policy>,
    /// Others have just taken their place, and not every connection has been looked at yet.
    changing: AtomicBool,
}

/// Others have taken their place; ends with the look at every connection.
#[derive(Debug)]
pub(super) struct Change<'a> {
    in_force: &'a InForce,
    policy: Arc<Policy>,
}

impl InForce {
    /// The settings of the start.
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy: ArcSwap::from_pointee(policy), changing: AtomicBool::new(false) }
    }

    /// What is in force now, for one decision.
    pub(super) fn load(&self) -> Guard<Arc<Policy>> {
        self.policy.load()
    }

    /// The same, to keep across an await.
    pub(super) fn load_full(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Puts `policy` in force; `None` when it is what is in force already. One caller at a time.
    pub(super) fn replace(&self, policy: Policy) -> Option<Change<'_>> {
        let policy = Arc::new(policy.succeeding(&self.load())?);
        // Before the swap: whoever sees the new settings sees that connections are still being looked at.
        self.changing.store(true, Ordering::Release);
        self.policy.store(Arc::clone(&policy));
        Some(Change { in_force: self, policy })
    }

    /// Whether a connection may have its request carried out; closes it if not. Costs the reading of one flag.
    pub(super) fn lets_on(&self, connection: &Connection) -> bool {
        !self.changing.load(Ordering::Acquire) || look_at(connection, &self.load())
    }
}

impl Change<'_> {
    /// Looks at every connection of `hub`, and closes those whose right has gone with the old settings.
    pub(super) fn look_at_all(self, hub: &Hub) -> Applied {
        let closed = hub.connections().iter().filter(|connection| !look_at(connection, &self.policy)).count();
        Applied { generation: self.policy.generation, closed }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.in_force.changing.store(false, Ordering::Release);
    }
}

#[cold]
fn look_at(connection: &Connection, policy: &Policy) -> bool {
    match stands(&connection.grant, policy) {
        Ok(()) => true,
        Err(lost) => {
            connection.close(CloseCode::AUTH_CHANGED, lost.reason());
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{AuthMode, Grant, Method};
    use crate::clock::UnixMs;
    use crate::hub::Client;
    use crate::rpc::scope::{Role, ScopeSet};
    use crate::secret::SecretHash;

    fn policy(token: &str) -> Policy {
        Policy::new(1, AuthMode::Token(Some(SecretHash::of(token))))
    }

    /// Between the swap and the look at a connection lies every request that it sends meanwhile (S-59).
    #[test]
    fn s_59_nothing_is_carried_out_under_settings_that_have_gone() {
        let hub = Hub::new(1 << 20, 1 << 24);
        let connect = |method| {
            let grant = Grant::for_test(Role::Operator, ScopeSet::EMPTY, None).by(method);
            hub.register(hub.next_id(), grant, Client::default(), None, UnixMs(1))
        };
        let (by_token, by_device, idle) =
            (connect(Method::Token), connect(Method::DeviceToken), connect(Method::Token));
        let in_force = InForce::new(policy("old"));
        assert!(in_force.lets_on(&by_token) && in_force.lets_on(&by_device));
        let change = in_force.replace(policy("new")).unwrap();
        assert!(!in_force.lets_on(&by_token), "its secret is another now");
        assert!(by_token.outbox.is_closing() && !idle.outbox.is_closing(), "the one that asked, so far");
        assert!(in_force.lets_on(&by_device), "it came by a token of its own");
        assert_eq!(change.look_at_all(&hub), Applied { generation: 2, closed: 2 });
        assert!(idle.outbox.is_closing() && !by_device.outbox.is_closing());
        assert!(in_force.lets_on(&by_device), "and it costs a flag again");
        assert!(!in_force.changing.load(Ordering::Acquire));
        assert!(in_force.replace(policy("new")).is_none(), "the same is no change");
        assert!(!in_force.changing.load(Ordering::Acquire));
    }
}
