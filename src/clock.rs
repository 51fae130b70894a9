//! Time as the rules see it: values, handed in by the edges.
//!
//! Decisions never read a clock; they get [`UnixMs`] (what the wire and the store speak) and
//! [`std::time::Instant`] (what deadlines need) as arguments. This is the one place that reads the
//! system clock.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch: the wire's unit for every timestamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// The current time. For the edges only: a rule takes `now` as an argument.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// The current time as of the kernel's last tick: up to 10 ms old, at a fifth of the cost. For the frame path.
    pub fn coarse() -> Self {
        #[cfg(target_os = "linux")]
        {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
            let ms = u64::try_from(now.tv_sec).unwrap_or(0).saturating_mul(1000);
            Self(ms.saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000))
        }
        #[cfg(not(target_os = "linux"))]
        Self::now()
    }

    /// Milliseconds from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This time moved `ms` into the future, saturating.
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// As UTC, with milliseconds: `2026-11-22T12:41:17.012Z` (RFC 3339).
    pub fn to_rfc3339(self) -> String {
        let (days, in_day) = (self.0 / 86_400_000, self.0 % 86_400_000);
        // Days to a civil date, counted in eras of 400 years that begin on 1 March.
        let z = days + 719_468;
        let (era, day_of_era) = (z / 146_097, z % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (h, m, s, ms) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1000 % 60, in_day % 1000);
        format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
    }
}

/// Seconds on a clock that never jumps, since about the start of the process; never zero. For signs of life.
pub fn monotonic_s() -> u32 {
    static START: LazyLock<u64> = LazyLock::new(monotonic);
    u32::try_from(monotonic().saturating_sub(*START)).unwrap_or(u32::MAX).saturating_add(1)
}

#[cfg(target_os = "linux")]
fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(now.tv_sec).unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
fn monotonic() -> u64 {
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    START.elapsed().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_dates_as_the_rfc_does() {
        assert_eq!(UnixMs(0).to_rfc3339(), "1970-01-01T00:00:00.000Z");
        assert_eq!(UnixMs(951_782_400_123).to_rfc3339(), "2000-02-29T00:00:00.123Z");
        assert_eq!(UnixMs(1_795_351_277_012).to_rfc3339(), "2026-11-22T12:41:17.012Z");
    }
}
