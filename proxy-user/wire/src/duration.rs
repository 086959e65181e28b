//! Durations as Go writes them (`30m`, `40s`, `1h30m`, `1.5s`, `300ms`): in goes a flag's text, out comes a
//! [`Duration`]. Negative ones are refused: no flag of ours has a use for them.

use std::time::Duration;

/// Go's units, longest name first where one begins another.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// The longest duration taken: a century, far from any overflow.
const LONGEST: f64 = 100.0 * 365.0 * 24.0 * 3600.0;

/// Reads a duration in Go's syntax.
///
/// # Errors
/// The text is not a duration; the message shows what one looks like.
pub fn parse(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let wrong = || {
        format!("{text:?} is not a duration: write a number and a unit, as in 40s, 30m or 1h30m")
    };
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let after = &rest[digits..];
        let unit = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (_, scale) = UNITS
            .iter()
            .find(|(name, _)| *name == &after[..unit])
            .ok_or_else(wrong)?;
        seconds += number * scale;
        rest = &after[unit..];
    }
    if seconds > LONGEST {
        return Err(format!("{text} is more than a century"));
    }
    Ok(Duration::from_secs_f64(seconds))
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
    fn what_is_no_duration_is_refused_with_an_example() {
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
}
