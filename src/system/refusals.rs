//! Who was not let in: a counter for each reason.
//!
//! The names are those of the log and of the wire: `token_mismatch`, `proxy_attribution_required`,
//! `too_many_unauthenticated`. They come from tables in the code, so there are never more than those tables have rows.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Counters by reason, since the start.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<&'static str, u64>>);

impl Refusals {
    /// Counts one.
    pub fn count(&self, reason: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(reason).or_default() += 1;
    }

    /// All counters that have counted.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_of_its_own() {
        let refusals = Refusals::default();
        ["a", "b", "a"].into_iter().for_each(|reason| refusals.count(reason));
        assert_eq!(refusals.counts(), BTreeMap::from([("a", 2), ("b", 1)]));
    }
}
