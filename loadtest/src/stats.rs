//! What was measured: operations, their latencies, and what the server used for them.
//!
//! Two sides are measured in turns, the [`Side::Gateway`] and its [`Side::Floor`]; [`Measured`] is what one side
//! did over all its turns.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;

use crate::client::Nanos;
use crate::procfs::{Process, Usage};

/// Which column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The gateway under test.
    Gateway,
    /// What it is measured against: the server that does nothing, or the gateway itself in better weather.
    Floor,
}

/// Latencies, from a nanosecond to an hour, to three digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, 3_600_000_000_000, 3).context("a histogram")?))
    }

    /// Adds one.
    #[inline]
    pub fn record(&mut self, latency: Nanos) {
        self.0.saturating_record(latency);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that `quantile` (0 to 1) of all do not exceed, in nanoseconds.
    pub fn at(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64
    }

    /// The longest, in nanoseconds.
    pub fn max(&self) -> f64 {
        self.0.max() as f64
    }

    /// The curve: quantiles that close in on 1, each with its latency in nanoseconds.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        // Beyond one in all of them there is only the longest, again and again.
        let last = 1.0 - 1.0 / self.0.len().max(1) as f64;
        let points = self.0.iter_quantiles(5).map(|it| (it.quantile_iterated_to(), it.value_iterated_to() as f64));
        let mut points: Vec<_> = points.take_while(|(quantile, _)| *quantile < last).collect();
        points.push((last, self.max()));
        points
    }
}

/// What a load counts while it runs.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Operations that came to a good end within a measured piece.
    pub operations: u64,
    /// Operations that did not, and the words of the first one.
    pub errors: u64,
    /// What was wrong the first time.
    pub first_error: Option<String>,
    /// Latency of every operation that belongs to a measured piece.
    pub latencies: Latencies,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Result<Self> {
        Ok(Self { operations: 0, errors: 0, first_error: None, latencies: Latencies::new()? })
    }

    /// Counts a failure.
    #[cold]
    pub fn fail(&mut self, what: impl FnOnce() -> String) {
        self.errors += 1;
        self.first_error.get_or_insert_with(what);
    }
}

/// One measured piece of a side.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// How long it was.
    pub seconds: f64,
    /// Operations in it.
    pub operations: u64,
    /// What the server used in it; nothing where its process is not known.
    pub usage: Option<Usage>,
    /// CPU time of this program in it.
    pub load_cpu: Duration,
}

/// A moment of the run.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Seconds since the run began.
    pub at_s: f64,
    /// Operations a second since the last moment.
    pub rate: f64,
    /// Cores that the server kept busy since the last moment.
    pub cores_busy: Option<f64>,
    /// Resident bytes of the server.
    pub resident_bytes: Option<u64>,
}

/// What one side did.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Counts and latencies.
    pub tally: Tally,
    /// Its pieces.
    pub pieces: Vec<Piece>,
    /// Its moments.
    pub moments: Vec<Moment>,
    /// Bytes that a client sent and received for one operation, framing included.
    pub bytes_per_operation: f64,
}

impl Measured {
    /// Seconds of all pieces.
    pub fn seconds(&self) -> f64 {
        self.pieces.iter().map(|piece| piece.seconds).sum()
    }

    /// Operations a second.
    pub fn rate(&self) -> f64 {
        self.tally.operations as f64 / self.seconds()
    }

    /// What the server used in all pieces.
    pub fn usage(&self) -> Option<Usage> {
        self.pieces.iter().try_fold(Usage::default(), |mut sum, piece| {
            sum += piece.usage?;
            Some(sum)
        })
    }

    /// Cores that this program kept busy.
    pub fn load_busy(&self) -> f64 {
        self.pieces.iter().map(|piece| piece.load_cpu.as_secs_f64()).sum::<f64>() / self.seconds()
    }

    /// The most bytes that were resident.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.moments.iter().filter_map(|moment| moment.resident_bytes).max()
    }
}

/// Follows a side through a run: one moment after the other.
#[derive(Debug)]
pub struct Follower {
    process: Option<Process>,
    at: Nanos,
    operations: u64,
    cpu: Duration,
}

impl Follower {
    /// Begins at `now`, when `operations` have been counted.
    pub fn begin(process: Option<Process>, now: Nanos, operations: u64) -> Result<Self> {
        let cpu = process.map(Process::usage).transpose()?.unwrap_or_default().cpu;
        Ok(Self { process, at: now, operations, cpu })
    }

    /// The moment from the last one to `now`.
    pub fn moment(&mut self, now: Nanos, operations: u64) -> Result<Moment> {
        let usage = self.process.map(Process::usage).transpose()?;
        let seconds = now.saturating_sub(self.at).max(1) as f64 / 1e9;
        let moment = Moment {
            at_s: now as f64 / 1e9,
            rate: operations.saturating_sub(self.operations) as f64 / seconds,
            cores_busy: usage.map(|usage| usage.cpu.saturating_sub(self.cpu).as_secs_f64() / seconds),
            resident_bytes: self.process.map(Process::resident_bytes).transpose()?,
        };
        *self = Self { process: self.process, at: now, operations, cpu: usage.unwrap_or_default().cpu };
        Ok(moment)
    }
}

/// The middle one of `values`; `None` when there are none.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len().checked_sub(1)? / 2;
    Some(if values.len() % 2 == 1 { values[middle] } else { (values[middle] + values[middle + 1]) / 2.0 })
}

/// How fast `points` rise: the slope of the straight line that misses them least. `None` for less than two.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
    let joint: f64 = points.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    (points.len() > 1 && spread > 0.0).then(|| joint / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn the_slope_of_a_line_is_its_own() {
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]), Some(2.0));
        assert_eq!(slope(&[(1.0, 1.0)]), None);
    }

    #[test]
    fn the_curve_ends_at_the_longest() {
        let mut latencies = Latencies::new().unwrap();
        (1..=1000).for_each(|latency| latencies.record(latency));
        let curve = latencies.curve();
        assert!(curve.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
        assert_eq!(curve.last().unwrap().1, 1000.0);
    }
}
