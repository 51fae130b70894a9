//! A bound on what all connections hold together, which each worker takes from in pieces: what it gives back is there
//! for it to take again without a word to the others.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::spread::Spread;

/// The largest piece that a thread takes or keeps beyond what it needs.
const PIECE: usize = 64 * 1024;

/// How much may be held by all together. What threads have taken and not used is part of it, and is called in before
/// anything is refused: the limit is exact but for what is on its way between threads.
#[derive(Debug)]
pub struct Budget {
    /// Taken, by whom ever, kept pieces included.
    taken: AtomicUsize,
    /// Taken by a thread and not used.
    kept: Spread<AtomicUsize>,
    limit: usize,
    piece: usize,
}

impl Budget {
    /// A budget of `limit`.
    pub fn new(limit: usize) -> Self {
        // All threads together keep an eighth of it at most, whatever it is.
        Self { taken: AtomicUsize::new(0), kept: Spread::default(), limit, piece: PIECE.min(limit / 256) }
    }

    /// How much there is.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// How much is in use now.
    pub fn used(&self) -> usize {
        // In this order: what is used in between is not counted as less than none.
        let kept: usize = self.kept.all().map(|kept| kept.load(Ordering::Relaxed)).sum();
        self.taken.load(Ordering::Relaxed).saturating_sub(kept)
    }

    /// Takes `amount`, if there is as much.
    #[inline]
    pub fn take(&self, amount: usize) -> bool {
        let kept = self.kept.here();
        kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |kept| kept.checked_sub(amount)).is_ok()
            || self.take_more(amount)
    }

    #[cold]
    fn take_more(&self, amount: usize) -> bool {
        if self.piece > 0 && self.reserve(amount.saturating_add(self.piece)) {
            self.kept.here().fetch_add(self.piece, Ordering::Relaxed);
            return true;
        }
        if self.reserve(amount) {
            return true;
        }
        for kept in self.kept.all() {
            self.taken.fetch_sub(kept.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
        self.reserve(amount)
    }

    fn reserve(&self, amount: usize) -> bool {
        let more = |taken: usize| taken.checked_add(amount).filter(|sum| *sum <= self.limit);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Gives back what was taken.
    #[inline]
    pub fn give_back(&self, amount: usize) {
        let kept = self.kept.here();
        let now = kept.fetch_add(amount, Ordering::Relaxed) + amount;
        if now > 2 * self.piece {
            self.give_up(kept, now);
        }
    }

    #[cold]
    fn give_up(&self, kept: &AtomicUsize, now: usize) {
        // Where another has just called it in, or shares the place, the next to give back sees to it.
        if kept.compare_exchange(now, self.piece, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.taken.fetch_sub(now - self.piece, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_thread_keeps_is_called_in_before_another_is_refused() {
        let budget = Budget::new(256 * 1024);
        assert!(budget.take(100));
        assert_eq!((budget.used(), budget.taken.load(Ordering::Relaxed)), (100, 100 + 1024));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(!budget.take(256 * 1024 - 99));
                assert!(budget.take(256 * 1024 - 100), "to the last one");
                assert!(!budget.take(1));
                budget.give_back(256 * 1024 - 100);
            });
        });
        budget.give_back(100);
        assert_eq!(budget.used(), 0);
        assert!(budget.taken.load(Ordering::Relaxed) <= 4 * 1024);
    }

    #[test]
    fn threads_that_take_and_give_for_each_other_lose_nothing() {
        let budget = Budget::new(64 * 1024);
        let (give, take) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let budget = &budget;
            scope.spawn(move || {
                for amount in (1..300).cycle().take(20_000) {
                    while !budget.take(amount) {
                        std::thread::yield_now();
                    }
                    assert!(budget.taken.load(Ordering::Relaxed) <= 64 * 1024);
                    give.send(amount).unwrap();
                }
            });
            scope.spawn(move || take.iter().for_each(|amount| budget.give_back(amount)));
        });
        assert_eq!(budget.used(), 0);
    }
}
