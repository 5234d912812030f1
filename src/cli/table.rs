//! Plain text for a terminal: tables, numbers, times.

use std::{fmt::Write, io::IsTerminal, time::Duration};

/// Columns of a terminal when its width is not known.
const WIDTH_DEFAULT: usize = 120;

/// Whether stdout shows colours.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Width of the terminal in columns.
pub fn width() -> usize {
    terminal_size::terminal_size_of(std::io::stdout()).map_or(WIDTH_DEFAULT, |(width, _)| usize::from(width.0))
}

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a heading; each column as wide as its longest cell, the last as wide as `width` leaves.
pub fn render(heading: &[(&str, Align)], rows: &[Vec<String>], width: usize) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|(name, _)| name.chars().count()).collect();
    for row in rows {
        for (place, cell) in widths.iter_mut().zip(row) {
            *place = (*place).max(cell.chars().count());
        }
    }
    let before: usize = widths.iter().rev().skip(1).map(|width| width + 2).sum();
    if let Some(last) = widths.last_mut() {
        *last = (*last).min(width.saturating_sub(before).max(20));
    }
    let mut out = String::new();
    let names: Vec<String> = heading.iter().map(|(name, _)| (*name).to_owned()).collect();
    for row in std::iter::once(&names).chain(rows) {
        let mut line = String::new();
        for ((cell, (_, align)), width) in row.iter().zip(heading).zip(&widths) {
            let cell = shortened(cell, *width);
            let _ = match align {
                Align::Left => write!(line, "{cell:<width$}  "),
                Align::Right => write!(line, "{cell:>width$}  "),
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// At most `width` characters, with a sign where some are missing. Control characters become spaces.
pub fn shortened(text: &str, width: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    if text.chars().count() <= width {
        return text.chars().map(clean).collect();
    }
    text.chars().take(width.saturating_sub(1)).map(clean).chain(['…']).collect()
}

/// A number with separators between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A size for reading.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// A duration for reading: three digits and a unit.
pub fn duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{:.1} µs", nanos as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", nanos as f64 / 1e6),
        1_000_000_000..60_000_000_000 => format!("{:.2} s", nanos as f64 / 1e9),
        _ => skein_engine::clock::format_duration(Duration::from_secs(duration.as_secs())),
    }
}

/// A time in UTC, to the millisecond.
pub fn time(unix_nano: u64) -> String {
    let text = skein_engine::clock::format_rfc3339(unix_nano / 1_000_000 * 1_000_000);
    text.trim_end_matches('Z').replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_and_the_last_fits() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned(), "x".repeat(50)], vec!["long".to_owned(), "12345".to_owned(), "y".to_owned()]];
        let text = render(&[("name", Align::Left), ("n", Align::Right), ("text", Align::Left)], &rows, 40);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "name      n  text");
        assert_eq!(lines[2], "long  12345  y");
        assert_eq!(lines[1].chars().count(), 40, "{}", lines[1]);
        assert!(lines[1].ends_with('…'));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(bytes(12_345), "12.3 kB");
        assert_eq!(duration(Duration::from_micros(1_500)), "1.5 ms");
        assert_eq!(duration(Duration::from_secs(90)), "1m30s");
        assert_eq!(time(1_661_140_300_123_456_789), "2022-08-22 03:51:40.123");
        assert_eq!(shortened("a\nb\tc", 9), "a b c");
    }
}
