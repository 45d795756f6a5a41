//! Durations as people write them: `10s`, `5m`, `1h30m`.

use std::time::Duration;

use humantime::DurationError;
use serde::Serializer;

use super::Refusal;
use crate::policy::prefix::excerpt;

/// The longest duration that is accepted: ten years of 365 days. It can be added to any clock.
pub const LONGEST: Duration = Duration::from_hours(24 * 3650);

/// The units of [`format_duration`], longest first, in nanoseconds.
const UNITS: [(u128, &str); 7] = [
    (86_400_000_000_000, "d"),
    (3_600_000_000_000, "h"),
    (60_000_000_000, "m"),
    (1_000_000_000, "s"),
    (1_000_000, "ms"),
    (1_000, "us"),
    (1, "ns"),
];

/// Reads a duration of one or more numbers with units: `300ms`, `10s`, `5m`, `2h`, `1d`, `1h30m`.
///
/// # Errors
/// When it is none, has no unit, or is longer than [`LONGEST`]. Zero is a duration; where it makes
/// no sense the caller refuses it.
///
/// ```
/// use std::time::Duration;
/// use tproxy_userspace::config::parse_duration;
///
/// assert_eq!(parse_duration("1h30m").unwrap(), Duration::from_secs(5400));
/// assert_eq!(
///     parse_duration("10").unwrap_err().to_string(),
///     "`10` has no unit; write a number and a unit, like 10s, 5m, 2h, 1d or 1h30m"
/// );
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, Refusal> {
    const FORM: &str = "write a number and a unit, like 10s, 5m, 2h, 1d or 1h30m";
    let shown = excerpt(text);
    // The library reads it as months, the person hardly meant them.
    if text.contains('M') {
        return Err(Refusal::new(
            format!("`M` in `{shown}` is not a unit of time"),
            "write `m` for minutes",
        ));
    }
    match humantime::parse_duration(text.trim()) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) | Err(DurationError::NumberOverflow) => Err(Refusal::new(
            format!("`{shown}` is too long"),
            format!("write at most {}", format_duration(LONGEST)),
        )),
        Err(DurationError::Empty) => Err(Refusal::new("there is no duration", FORM)),
        Err(DurationError::UnknownUnit { unit, .. }) if unit.is_empty() => {
            Err(Refusal::new(format!("`{shown}` has no unit"), FORM))
        }
        Err(DurationError::UnknownUnit { unit, .. }) => Err(Refusal::new(
            format!("`{}` in `{shown}` is not a unit of time", excerpt(&unit)),
            FORM,
        )),
        Err(_) => Err(Refusal::new(format!("`{shown}` is not a duration"), FORM)),
    }
}

/// A duration as [`parse_duration`] reads it: `1h30m`, `0s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    let mut text = String::new();
    for (length, unit) in UNITS {
        if rest >= length {
            text.push_str(&format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

pub(super) fn serialize<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_duration(*duration))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_usual_forms() {
        for (text, seconds) in [
            ("0s", 0),
            ("10s", 10),
            ("5m", 300),
            ("2h", 7200),
            ("1d", 86_400),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("90min", 5400),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
    }

    #[test]
    fn says_why_not() {
        let form = "write a number and a unit, like 10s, 5m, 2h, 1d or 1h30m";
        for (text, message, help) in [
            ("", "there is no duration", form),
            ("10", "`10` has no unit", form),
            ("10x", "`x` in `10x` is not a unit of time", form),
            ("soon", "`soon` is not a duration", form),
            ("-1s", "`-1s` is not a duration", form),
            (
                "5M",
                "`M` in `5M` is not a unit of time",
                "write `m` for minutes",
            ),
            ("3651d", "`3651d` is too long", "write at most 3650d"),
            (
                "99999999999999999999s",
                "`99999999999999999999s` is too long",
                "write at most 3650d",
            ),
        ] {
            assert_eq!(
                parse_duration(text),
                Err(Refusal::new(message, help)),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(seconds in 0..LONGEST.as_secs(), nanos in 0..1_000_000_000_u32) {
            for duration in [Duration::new(seconds, nanos), Duration::from_secs(seconds)] {
                prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*|[0-9dhms. ]{0,40}") {
            if let Ok(duration) = parse_duration(&text) {
                prop_assert!(duration <= LONGEST);
            }
        }
    }
}
