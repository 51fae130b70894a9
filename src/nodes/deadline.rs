//! One clock for all calls: no timer a call, no scan a call.
//!
//! Deadlines are counted in ticks of [`TICK`]. [`Deadlines`] remembers the earliest that anyone has set; one task
//! sleeps until then and asks each session for its overdue calls. A call that is answered in time, as nearly
//! all are, leaves its tick behind: at worst the task wakes once for nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How exact a deadline is: it passes up to this much late, never early.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// Now, on the clock that deadlines are kept by: the runtime's, which tests can stop.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A point in time, in ticks since the gateway started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(pub u64);

impl Tick {
    /// Later than all.
    pub(super) const NEVER: Self = Self(u64::MAX);
}

/// The earliest deadline, and whom to wake for it.
#[derive(Debug)]
pub(super) struct Deadlines {
    start: Instant,
    earliest: AtomicU64,
    sooner: Notify,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { start: now(), earliest: AtomicU64::new(Tick::NEVER.0), sooner: Notify::new() }
    }
}

impl Deadlines {
    /// The first tick at or after `at`.
    pub(super) fn tick_after(&self, at: Instant) -> Tick {
        let since = at.saturating_duration_since(self.start).as_nanos();
        Tick(u64::try_from(since.div_ceil(TICK.as_nanos())).unwrap_or(Tick::NEVER.0 - 1))
    }

    /// The last tick at or before `at`.
    pub(super) fn tick_before(&self, at: Instant) -> Tick {
        let since = at.saturating_duration_since(self.start).as_nanos();
        Tick(u64::try_from(since / TICK.as_nanos()).unwrap_or(Tick::NEVER.0 - 1))
    }

    /// Notes a deadline.
    pub(super) fn note(&self, tick: Tick) {
        // As nearly always: another deadline comes first.
        if self.earliest.load(Ordering::SeqCst) > tick.0 && self.earliest.fetch_min(tick.0, Ordering::SeqCst) > tick.0 {
            self.sooner.notify_one();
        }
    }

    /// Forgets the earliest deadline; those that ask from now on note theirs anew.
    pub(super) fn reset(&self) {
        self.earliest.store(Tick::NEVER.0, Ordering::SeqCst);
    }

    /// Waits until the earliest deadline has passed.
    pub(super) async fn due(&self) {
        loop {
            let sooner = self.sooner.notified();
            let earliest = Tick(self.earliest.load(Ordering::SeqCst));
            let wait = u32::try_from(earliest.0).ok().map(|ticks| self.start + TICK * ticks);
            match wait {
                // Ticks beyond 497 days are looked at again then.
                None if earliest == Tick::NEVER => sooner.await,
                at => {
                    let at = at.unwrap_or(self.start + TICK * u32::MAX);
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => return,
                        () = sooner => {}
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_early() {
        let deadlines = Deadlines::default();
        let at = |us| deadlines.start + Duration::from_micros(us);
        assert_eq!(deadlines.tick_after(at(0)), Tick(0));
        assert_eq!(deadlines.tick_after(at(1)), Tick(1));
        assert_eq!(deadlines.tick_after(at(10_000)), Tick(1));
        assert_eq!(deadlines.tick_before(at(19_999)), Tick(1));
    }

    #[tokio::test(start_paused = true)]
    async fn wakes_for_the_earliest() {
        let deadlines = std::sync::Arc::new(Deadlines::default());
        let start = tokio::time::Instant::now();
        deadlines.note(Tick(500));
        let waiting = {
            let deadlines = std::sync::Arc::clone(&deadlines);
            async move { deadlines.due().await }
        };
        let sooner = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            deadlines.note(Tick(20));
            deadlines.note(Tick(900));
        };
        tokio::join!(waiting, sooner);
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(150) && waited < Duration::from_millis(300), "{waited:?}");
    }
}
