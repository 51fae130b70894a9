//! Lines of the log that strangers can bring about: a few of each kind in a while, then how many were left out.
//!
//! A line for each knock would let whoever knocks fill the disk, and nobody reads the ten-thousandth. Counters count
//! every one of them all the same.

use std::sync::{Mutex, PoisonError};

/// One kind of line.
#[derive(Debug)]
pub struct Sparing {
    most: u32,
    /// Seconds that are looked at as one.
    window_s: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since_s: u32,
    said: u32,
    left_out: u64,
}

impl Sparing {
    /// At most `most` lines a minute; at least one.
    pub const fn a_minute(most: u32) -> Self {
        Self::within(60, most)
    }

    /// At most `most` lines a second; at least one.
    pub const fn a_second(most: u32) -> Self {
        Self::within(1, most)
    }

    const fn within(window_s: u32, most: u32) -> Self {
        Self { most, window_s, state: Mutex::new(State { since_s: 0, said: 0, left_out: 0 }) }
    }

    /// Whether to write the line at `now_s` ([`crate::clock::monotonic_s`]); with it, how many were left out before it
    /// since the last such number, which belongs in the line.
    pub fn say(&self, now_s: u32) -> Option<LeftOut> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.said == 0 || now_s.saturating_sub(state.since_s) >= self.window_s {
            (state.since_s, state.said) = (now_s, 1);
            return Some(LeftOut((state.left_out > 0).then(|| std::mem::take(&mut state.left_out))));
        }
        if state.said >= self.most {
            state.left_out += 1;
            return None;
        }
        state.said += 1;
        Some(LeftOut(None))
    }
}

/// How many lines were left out; `None` when none was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut(pub Option<u64>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lines_are_written_and_the_rest_are_counted_until_the_window_is_over() {
        let sparing = Sparing::a_minute(3);
        let said = |now_s| (0..10).filter_map(|_| sparing.say(now_s)).collect::<Vec<_>>();
        assert_eq!(said(5), [LeftOut(None); 3]);
        assert_eq!(said(64), []);
        assert_eq!(said(65), [LeftOut(Some(17)), LeftOut(None), LeftOut(None)]);
        assert_eq!(said(1000)[0], LeftOut(Some(7)));
    }

    #[test]
    fn one_line_is_the_least() {
        let sparing = Sparing::a_second(0);
        assert!(sparing.say(1).is_some() && sparing.say(1).is_none() && sparing.say(2).is_some());
    }
}
