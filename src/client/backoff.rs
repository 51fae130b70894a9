//! How long to wait before the next attempt: full jitter over a doubling ceiling.
//!
//! Ten thousand clients that lost the same gateway come back spread over the whole time, not in waves. What the
//! gateway itself asks for is the least that is waited.

use std::time::Duration;

/// The growth of waiting times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Ceiling of the first wait. Default 1 s.
    pub first: Duration,
    /// The highest ceiling. Default 30 s.
    pub last: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), last: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The wait before attempt number `failures + 1`, anywhere from nothing to the ceiling, as `random` says; `floor`
    /// more than that, when the other side asked for it.
    pub fn wait(self, failures: u32, random: u32, floor: Option<Duration>) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let ceiling = self.first.saturating_mul(1 << doublings).min(self.last);
        floor.unwrap_or_default() + ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_spread_from_nothing_to_a_doubling_ceiling() {
        let backoff = Backoff::default();
        let ceiling = |failures| backoff.wait(failures, u32::MAX, None).as_secs();
        assert_eq!([0, 1, 2, 3, 5, 6, 100].map(ceiling), [1, 1, 2, 4, 16, 30, 30]);
        assert_eq!(backoff.wait(9, 0, None), Duration::ZERO);
        assert_eq!(backoff.wait(2, u32::MAX / 2, None).as_secs_f32().round(), 1.0);
        assert_eq!(backoff.wait(9, 0, Some(Duration::from_millis(700))).as_millis(), 700);
    }
}
