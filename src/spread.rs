//! Values that many threads write, one for each of a few: what a thread writes alone stays in its own cache. A value that
//! two threads write in turns moves to and fro between theirs, at the price of a hundred instructions each time.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Values there are; threads beyond as many share.
const PLACES: usize = 16;

/// On cache lines of its own: two, because processors fetch them in pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Apart<T>(T);

/// One `T` for each of a few threads.
#[derive(Debug, Default)]
pub struct Spread<T>([Apart<T>; PLACES]);

impl<T> Spread<T> {
    /// That of the present thread.
    #[inline]
    pub fn here(&self) -> &T {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static PLACE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % PLACES;
        }
        // A thread that is ending takes any.
        &self.0[PLACE.try_with(|place| *place).unwrap_or(0)].0
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|apart| &apart.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_writes_to_one_place_and_another_to_another() {
        let counts = Spread::<AtomicUsize>::default();
        let count = || {
            for _ in 0..3 {
                counts.here().fetch_add(1, Ordering::Relaxed);
            }
            std::ptr::from_ref(counts.here()) as usize
        };
        let (mine, other) = (count(), std::thread::scope(|scope| scope.spawn(count).join().unwrap()));
        assert_eq!(counts.all().map(|count| count.load(Ordering::Relaxed)).sum::<usize>(), 6);
        assert!(mine.abs_diff(other) == 0 || mine.abs_diff(other) >= 128, "never on one cache line");
    }
}
