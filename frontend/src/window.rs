//! Time parameters: which window a request means.

use std::time::Duration;

use skein_engine::{
    clock::{format_duration, nanos, parse_duration, parse_rfc3339},
    error::{Error, Result},
    query::Window,
};

use crate::settings::FrontendSettings;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The window of a search or tag request; 0 is a bound that was not given. `since` replaces both bounds. Errors: `Invalid`, with Tempo's words.
pub(crate) fn search_window(
    start: u32,
    end: u32,
    since: Option<&str>,
    now_unix_nano: u64,
    settings: &FrontendSettings,
    duration_max: Duration,
) -> Result<Window> {
    let cutoff = now_unix_nano.saturating_sub(nanos(settings.query_end_cutoff));
    let before = |length: Duration| seconds(cutoff.saturating_sub(nanos(length)));
    // The second that has begun is part of the window, or a span that was just received would not be.
    let now_seconds = seconds(cutoff.saturating_add(NANOS_PER_SECOND - 1));
    let window = match (since, start, end) {
        (Some(since), ..) => {
            let length = parse_duration(since).ok_or_else(|| {
                Error::invalid(format!("error parsing date range: could not parse 'since' parameter: not a valid duration string: {since:?}"))
            })?;
            Window { start_seconds: before(length), end_seconds: now_seconds }
        }
        (None, 0, 0) => return Ok(Window { start_seconds: before(settings.search.query_backend_after), end_seconds: now_seconds }),
        (None, 0, _) => {
            return Err(Error::invalid("error parsing date range: only one of start and end provided: must provide both or neither"));
        }
        (None, start, end) if start >= end => {
            return Err(Error::invalid(format!("http parameter start must be before end. received start={start} end={end}")));
        }
        (None, start_seconds, end_seconds) => Window { start_seconds, end_seconds },
    };
    let length = u64::from(window.end_seconds.saturating_sub(window.start_seconds));
    if !duration_max.is_zero() && length > duration_max.as_secs() + u64::from(since.is_some()) {
        return Err(Error::invalid(format!(
            "range specified by start and end exceeds {}. received start={} end={}",
            format_duration(duration_max),
            window.start_seconds,
            window.end_seconds
        )));
    }
    Ok(window)
}

fn seconds(unix_nano: u64) -> u32 {
    u32::try_from(unix_nano / NANOS_PER_SECOND).unwrap_or(u32::MAX)
}

/// A time as tag and metrics requests write it: up to ten digits are seconds, more are nanoseconds, a decimal point makes fractional seconds
/// (rounded to milliseconds), else RFC 3339. The result is in Unix nanoseconds. Errors: `Invalid`, naming the parameter.
pub(crate) fn parse_time(name: &str, text: &str) -> Result<u64> {
    let bad = || Error::invalid(format!("could not parse '{name}' parameter: cannot parse {text:?} to a valid timestamp"));
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits {
        let number: u64 = text.parse().map_err(|_| bad())?;
        return if text.len() <= 10 { number.checked_mul(NANOS_PER_SECOND).ok_or_else(bad) } else { Ok(number) };
    }
    if text.contains('.') && !text.contains(':') {
        let number: f64 = text.parse().map_err(|_| bad())?;
        let milliseconds = (number * 1000.0).round();
        return if (0.0..1.8e13).contains(&milliseconds) { Ok(milliseconds as u64 * 1_000_000) } else { Err(bad()) };
    }
    parse_rfc3339(text).ok_or_else(bad)
}

/// A time of [`parse_time`] in whole seconds. Errors: `Invalid`.
pub(crate) fn parse_time_seconds(name: &str, text: &str) -> Result<u32> {
    let seconds = parse_time(name, text).map_err(|e| e.context("error parsing date range"))? / NANOS_PER_SECOND;
    u32::try_from(seconds).map_err(|_| Error::invalid(format!("error parsing date range: '{name}' parameter {text:?} is out of range")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: u64 = 1_700_000_000_500_000_000;
    const WEEK: Duration = Duration::from_secs(168 * 3600);

    fn window(start: u32, end: u32, since: Option<&str>) -> Result<(u32, u32)> {
        let window = search_window(start, end, since, NOW, &FrontendSettings::default(), WEEK)?;
        Ok((window.start_seconds, window.end_seconds))
    }

    #[test]
    fn windows_follow_the_rules() {
        assert_eq!(window(0, 0, None).unwrap(), (1_700_000_000 - 900, 1_700_000_001));
        assert_eq!(window(10, 20, None).unwrap(), (10, 20));
        assert_eq!(window(1, 2_000_000_000, Some("1h")).unwrap(), (1_700_000_000 - 3600, 1_700_000_001));
        assert_eq!(window(0, 0, Some("7d")).unwrap().0, 1_700_000_000 - 7 * 86_400);
        assert_eq!(window(1000, 1000 + 168 * 3600, None).unwrap().0, 1000);
        assert!(search_window(1, u32::MAX, None, NOW, &FrontendSettings::default(), Duration::ZERO).is_ok());
    }

    #[test]
    fn an_explicit_window_is_not_cut_and_a_default_one_can_be() {
        let settings = FrontendSettings { query_end_cutoff: Duration::from_secs(30), ..Default::default() };
        let explicit = search_window(1_699_999_000, 1_700_009_999, None, NOW, &settings, WEEK).unwrap();
        assert_eq!(explicit.end_seconds, 1_700_009_999);
        let default = search_window(0, 0, None, NOW, &settings, WEEK).unwrap();
        assert_eq!(default.end_seconds, 1_699_999_971);
    }

    #[test]
    fn wrong_windows_are_named() {
        let check = |start, end, since, expected: &str| assert_eq!(window(start, end, since).unwrap_err().message(), expected);
        check(20, 10, None, "http parameter start must be before end. received start=20 end=10");
        check(20, 20, None, "http parameter start must be before end. received start=20 end=20");
        check(20, 0, None, "http parameter start must be before end. received start=20 end=0");
        check(0, 20, None, "error parsing date range: only one of start and end provided: must provide both or neither");
        check(1000, 1001 + 168 * 3600, None, "range specified by start and end exceeds 168h0m0s. received start=1000 end=605801");
        assert!(window(0, 0, Some("soon")).unwrap_err().message().starts_with("error parsing date range: could not parse 'since' parameter: "));
    }

    #[test]
    fn times_come_in_four_forms() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(parse_time("start", text).ok(), expected, "{text}");
        check("1700000000", Some(1_700_000_000_000_000_000));
        check("1700000000123456789", Some(1_700_000_000_123_456_789));
        check("1700000000.1234", Some(1_700_000_000_123_000_000));
        check("2023-11-14T22:13:20Z", Some(1_700_000_000_000_000_000));
        check("2023-11-14T22:13:20.5Z", Some(1_700_000_000_500_000_000));
        for bad in ["", "now", "-5", "1e9", "-1.5", "99999999999999999999999"] {
            check(bad, None);
        }
    }
}
