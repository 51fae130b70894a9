//! The addresses of this host, as they are: leases end and interfaces come while a gateway runs.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::clock::monotonic_s;

/// Seconds for which a list is believed.
const FRESH_S: u32 = 5;

/// The list, looked up again when it is old and somebody asks.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses(ArcSwapOption<Listed>);

/// What the interfaces had.
#[derive(Debug)]
pub(super) struct Listed {
    at_s: u32,
    /// `None` when they could not be listed.
    pub(super) list: Option<Vec<IpAddr>>,
}

impl OwnAddresses {
    /// The list of at most some seconds ago.
    pub(super) fn current(&self) -> Arc<Listed> {
        let now_s = monotonic_s();
        if let Some(listed) = self.0.load_full().filter(|listed| now_s.saturating_sub(listed.at_s) < FRESH_S) {
            return listed;
        }
        let list = if_addrs::get_if_addrs().ok().map(|all| all.iter().map(if_addrs::Interface::ip).collect());
        let listed = Arc::new(Listed { at_s: now_s, list });
        self.0.store(Some(Arc::clone(&listed)));
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_ours_and_a_list_serves_for_a_while() {
        let own = OwnAddresses::default();
        let first = own.current();
        assert!(first.list.as_ref().unwrap().contains(&IpAddr::from([127, 0, 0, 1])));
        assert!(Arc::ptr_eq(&first, &own.current()));
    }
}
