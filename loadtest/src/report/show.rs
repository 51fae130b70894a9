//! Numbers for people: three digits and a unit.

use super::{Figure, Unit};

/// A value with its unit.
pub fn value(value: f64, unit: Unit) -> String {
    match unit {
        Unit::PerSecond => format!("{}/s", count(value)),
        Unit::Nanoseconds => duration(value),
        Unit::Bytes => bytes(value),
        Unit::BytesPerHour => format!("{}/h", bytes(value)),
        Unit::Count => count(value),
        Unit::Share => format!("{:.0} %", value * 100.0),
    }
}

/// A column of a figure; a dash where there is nothing.
pub fn column(figure: &Figure, column: usize) -> String {
    figure.values[column].map_or_else(|| "–".to_owned(), |it| value(it, figure.unit))
}

/// The ratio of a figure, and how it varied from round to round.
pub fn ratio(figure: &Figure) -> String {
    match (figure.ratio, figure.ratio_range) {
        (Some(ratio), Some([least, most])) => format!("{ratio:.2} ({least:.2}–{most:.2})"),
        (Some(ratio), None) => format!("{ratio:.2}"),
        (None, _) => String::new(),
    }
}

/// A number, in groups of three digits.
pub fn count(value: f64) -> String {
    if value != 0.0 && value.abs() < 99.95 && value.fract() != 0.0 {
        return three_digits(value);
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

/// A duration from nanoseconds.
pub fn duration(nanoseconds: f64) -> String {
    match nanoseconds.abs() {
        size if size < 999.5 => format!("{} ns", three_digits(nanoseconds)),
        size if size < 999.5e3 => format!("{} us", three_digits(nanoseconds / 1e3)),
        size if size < 999.5e6 => format!("{} ms", three_digits(nanoseconds / 1e6)),
        _ => format!("{} s", three_digits(nanoseconds / 1e9)),
    }
}

/// A size: powers of 1024.
pub fn bytes(bytes: f64) -> String {
    match bytes.abs() {
        size if size < 1024.0 => format!("{} B", three_digits(bytes)),
        size if size < 1024.0 * 1024.0 => format!("{} KiB", three_digits(bytes / 1024.0)),
        size if size < 1024.0 * 1024.0 * 1024.0 => format!("{} MiB", three_digits(bytes / 1024.0 / 1024.0)),
        _ => format!("{} GiB", three_digits(bytes / 1024.0 / 1024.0 / 1024.0)),
    }
}

fn three_digits(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(count(1_234_567.4), "1,234,567");
        assert_eq!(count(0.5), "0.50");
        assert_eq!(count(0.0), "0");
        assert_eq!(duration(450.0), "450 ns");
        assert_eq!(duration(1_234.0), "1.23 us");
        assert_eq!(duration(363e6), "363 ms");
        assert_eq!(bytes(2560.0), "2.50 KiB");
        assert_eq!(value(0.987, Unit::Share), "99 %");
        assert_eq!(value(-3.0 * 1024.0, Unit::BytesPerHour), "-3.00 KiB/h");
    }
}
