//! Time: the wall clock as a component, a stopwatch, and time as text (RFC 3339 and Go's durations, as Tempo's configuration has them).
//! The only module that asks the operating system for the time.

#![allow(clippy::disallowed_methods, reason = "this is the module that the ban points to")]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// The wall clock that a component is given, so that tests can set it.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since the Unix epoch.
    fn now_unix_nano(&self) -> u64;
}

/// The clock of the machine.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_unix_nano(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos().min(u64::MAX as u128) as u64)
    }
}

/// A clock that stands still until it is told to move.
#[derive(Debug, Default)]
pub struct TestClock(AtomicU64);

impl TestClock {
    /// A clock that shows `unix_nano`.
    pub fn new(unix_nano: u64) -> Self {
        Self(AtomicU64::new(unix_nano))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(nanos(by), Ordering::SeqCst);
    }

    /// Sets the clock, also backwards.
    pub fn set(&self, unix_nano: u64) {
        self.0.store(unix_nano, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_unix_nano(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Measures how long something takes; never goes backwards.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts to measure.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Seconds since the start, as histograms take them.
    pub fn seconds(&self) -> f64 {
        self.elapsed().as_secs_f64()
    }
}

/// A duration in whole nanoseconds; at most `u64::MAX`, which is 584 years.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes a time as RFC 3339 in UTC, with as many digits of the fraction as it needs, as Go does.
pub fn format_rfc3339(unix_nano: u64) -> String {
    let (seconds, fraction) = ((unix_nano / NANOS_PER_SECOND) as i64, unix_nano % NANOS_PER_SECOND);
    let (days, of_day) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
    let (year, month, day) = date_of(days);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60);
    if fraction > 0 {
        text.push('.');
        text.push_str(format!("{fraction:09}").trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Reads an RFC 3339 time with `Z` or a numeric offset. None for anything else, for times before 1970 and after 2554. Digits of the
/// fraction beyond the ninth are dropped.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let number = |at: usize, digits: usize| -> Option<i64> {
        let part = bytes.get(at..at + digits)?;
        part.iter().try_fold(0i64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
    };
    let separated = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|byte| allowed.contains(byte));
    let well_separated = separated(4, b"-") && separated(7, b"-") && separated(10, b"Tt ") && separated(13, b":") && separated(16, b":");
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let days = days_of(year, month, day);
    if !well_separated || date_of(days) != (year, month, day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }

    let mut at = 19;
    let mut fraction = 0;
    if separated(at, b".,") {
        let digits = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let used = digits.min(9);
        fraction = number(at + 1, used).filter(|_| digits > 0)? * 10i64.pow(9 - used as u32);
        at += 1 + digits;
    }
    let offset_seconds = match bytes.get(at)? {
        b'Z' | b'z' if bytes.len() == at + 1 => 0,
        sign @ (b'+' | b'-') if bytes.len() == at + 6 && separated(at + 3, b":") => {
            let (hours, minutes) = (number(at + 1, 2)?, number(at + 4, 2)?);
            let offset = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)?;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    let seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second - offset_seconds;
    u64::try_from(seconds).ok()?.checked_mul(NANOS_PER_SECOND)?.checked_add(fraction as u64)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Counts in eras of 400 years that begin on the first of March.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The date that is `days` after 1970-01-01; the inverse of [`days_of`].
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted_month + 2) / 5 + 1)
}

/// Reads a duration in Go's notation (`1h30m`, `1.5s`, `100ms`, `0`), and also days and weeks (`14d`, `2w`). None for anything else,
/// a negative one included.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0f64;
    let mut whole_nanos = 0u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number_bytes = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|&end| end > 0)?;
        let (number, tail) = rest.split_at(number_bytes);
        let unit_bytes = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_bytes);
        let unit_nanos: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => NANOS_PER_SECOND,
            "m" => 60 * NANOS_PER_SECOND,
            "h" => 3_600 * NANOS_PER_SECOND,
            "d" => 24 * 3_600 * NANOS_PER_SECOND,
            "w" => 7 * 24 * 3_600 * NANOS_PER_SECOND,
            _ => return None,
        };
        match number.parse::<u64>() {
            Ok(number) => whole_nanos = whole_nanos.checked_add(number.checked_mul(unit_nanos)?)?,
            Err(_) => total += number.parse::<f64>().ok()? * unit_nanos as f64,
        }
        rest = tail;
    }
    whole_nanos.checked_add(total.round() as u64).map(Duration::from_nanos)
}

/// Writes a duration as Go does: `5m0s`, `1.5s`, `250ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = nanos(duration);
    let decimal = |unit: u64| {
        let text = format!("{}.{:0width$}", nanos / unit, nanos % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0s".into(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(1_000)),
        1_000_000..NANOS_PER_SECOND => format!("{}ms", decimal(1_000_000)),
        _ => {
            let (hours, minutes) = (nanos / (3_600 * NANOS_PER_SECOND), nanos / (60 * NANOS_PER_SECOND) % 60);
            let seconds = Duration::from_nanos(nanos % (60 * NANOS_PER_SECOND)).as_nanos() as u64;
            let fraction = format!("{}.{:09}", seconds / NANOS_PER_SECOND, seconds % NANOS_PER_SECOND);
            let seconds = fraction.trim_end_matches('0').trim_end_matches('.');
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, _) => format!("{minutes}m{seconds}s"),
                _ => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// For `#[serde(with = "go_duration")]`: durations in settings. Reads [`parse_duration`]'s notation, or a whole number of nanoseconds.
pub mod go_duration {
    use std::{fmt, time::Duration};

    use serde::{Deserializer, Serializer, de};

    /// Writes Go's notation.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format_duration(*duration))
    }

    /// Reads Go's notation, or nanoseconds.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_any(DurationVisitor)
    }

    struct DurationVisitor;

    impl de::Visitor<'_> for DurationVisitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as 30s, 5m or 1h30m")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            super::parse_duration(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
        }

        fn visit_u64<E: de::Error>(self, nanos: u64) -> Result<Duration, E> {
            Ok(Duration::from_nanos(nanos))
        }

        fn visit_i64<E: de::Error>(self, nanos: i64) -> Result<Duration, E> {
            u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| E::invalid_value(de::Unexpected::Signed(nanos), &self))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rfc3339_is_written_and_read_back() {
        for (unix_nano, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00Z"),
            (1_646_092_799_500_000_000, "2022-02-28T23:59:59.5Z"),
            (1_709_164_800_000_000_001, "2024-02-29T00:00:00.000000001Z"),
            (4_107_542_399_999_999_999, "2100-02-28T23:59:59.999999999Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(format_rfc3339(unix_nano), text);
            assert_eq!(parse_rfc3339(text), Some(unix_nano), "{text}");
        }
    }

    #[test]
    fn rfc3339_knows_offsets_and_refuses_nonsense() {
        assert_eq!(parse_rfc3339("1970-01-01T01:30:00+01:30"), Some(0));
        assert_eq!(parse_rfc3339("1969-12-31T23:00:00.25-01:00"), Some(250_000_000));
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00.1234567899Z"), Some(123_456_789));
        for bad in ["", "1970-01-01", "1970-02-30T00:00:00Z", "1970-13-01T00:00:00Z", "1970-01-01T24:00:00Z", "1970-01-01T00:00:00"] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
        for bad in ["1970-01-01T00:00:00.Z", "1970-01-01T00:00:00Zx", "1969-12-31T23:59:59Z", "9999-12-31T00:00:00Z", "é970-01-01T00:00:00Z"] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(parse_duration(text), expected.map(Duration::from_nanos), "{text}");
        check("0", Some(0));
        check("336h", Some(336 * 3_600 * NANOS_PER_SECOND));
        check("1h30m", Some(5_400 * NANOS_PER_SECOND));
        check("1.5s", Some(1_500_000_000));
        check("250ms", Some(250_000_000));
        check("3µs", Some(3_000));
        check("14d", Some(14 * 24 * 3_600 * NANOS_PER_SECOND));
        for bad in ["", "5", "h", "-1s", "1x", "1..2s", "1s2", "99999999999999h"] {
            check(bad, None);
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (text, written) in [("0", "0s"), ("5m", "5m0s"), ("336h", "336h0m0s"), ("90.25s", "1m30.25s"), ("1.5ms", "1.5ms"), ("7ns", "7ns")] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(format_duration(duration), written);
            assert_eq!(parse_duration(written), Some(duration));
        }
    }
}
