//! Durations in Go's syntax: `30m`, `40s`, `1h30m`, `1.5s`, `300ms`. Negative ones are rejected: no
//! flag of hublet's takes one.

use std::time::Duration;

/// Go's units in seconds.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// A century in seconds, far from any overflow.
const MAX_SECONDS: f64 = 100.0 * 365.0 * 24.0 * 3600.0;

/// Parses a duration as Go's `time.ParseDuration`.
///
/// # Errors
/// The text is not a duration; the message has an example.
pub fn parse(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let seconds = parse_seconds(unsigned).ok_or_else(|| {
        format!("invalid duration {text:?}; use a number and a unit, as in 40s, 30m or 1h30m")
    })?;
    if seconds > MAX_SECONDS {
        return Err(format!(
            "invalid duration {text:?}; use less than a century"
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn is_part_of_number(c: char) -> bool {
    c.is_ascii_digit() || c == '.'
}

/// The sum of one or more numbers with units.
fn parse_seconds(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut seconds = 0.0;
    loop {
        let (number, after) = rest.split_at(rest.find(|c| !is_part_of_number(c))?);
        let (unit, next) = after.split_at(after.find(is_part_of_number).unwrap_or(after.len()));
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number.parse::<f64>().ok()? * scale;
        if next.is_empty() {
            return Some(seconds);
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("40s", 40_000),
            ("30m", 1_800_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            ("300ms", 300),
            ("2h45m10s", 9_910_000),
            ("+5s", 5_000),
            ("1000us", 1),
            ("1000µs", 1),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn an_invalid_duration_is_refused_with_an_example() {
        for text in [
            "", "+", "5", "s", "-5s", "5 s", "1h30", "5sec", "1..5s", "five", "5µ", "∞s",
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains("1h30m"), "{text}: {error}");
        }
        assert!(
            parse("9999999999h")
                .expect_err("too long")
                .contains("century")
        );
    }

    #[test]
    fn a_century_is_the_longest_duration() {
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        assert_eq!(parse("876000h"), Ok(century));
        assert!(parse("876001h").is_err());
    }
}
