//! Times for people, and spans of time from them.

use std::time::Duration;

use crate::clock::UnixMs;

/// How long ago `then` was: `just now`, `42s ago`, `3m ago`, `5h ago`, `2d ago`.
pub(super) fn ago(now: UnixMs, then: UnixMs) -> String {
    let seconds = now.since(then) / 1000;
    match seconds {
        0..=9 => "just now".into(),
        _ => format!("{} ago", span(Duration::from_secs(seconds))),
    }
}

/// A span in its largest unit: `42s`, `3m`, `5h`, `2d`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Reads `90s`, `30m`, `24h`, `7d`, `500ms`; for clap.
pub(super) fn parse_span(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("write a number and a unit: 90s, 30m, 24h, 7d".into()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number and a unit: 90s, 30m, 24h, 7d")?;
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(|| "that is too long".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_long_ago_in_the_largest_unit() {
        let now = UnixMs(1_000_000_000);
        for (seconds, expected) in
            [(0, "just now"), (42, "42s ago"), (61, "1m ago"), (7_300, "2h ago"), (200_000, "2d ago")]
        {
            assert_eq!(ago(now, UnixMs(now.0 - seconds * 1000)), expected);
        }
        assert_eq!(ago(now, now.plus(5_000)), "just now");
    }

    #[test]
    fn reads_spans() {
        assert_eq!(parse_span("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_span("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "h", "12", "1w", "-1h", "99999999999999999999d", "9999999999999999d"] {
            assert!(parse_span(wrong).is_err(), "{wrong}");
        }
    }
}
