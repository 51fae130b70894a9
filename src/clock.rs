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
