//! Assertions on metrics: `metric("hublet_requests_total").label("verb", "get").value(1.0).assert_in(&scrape)`.
use std::fmt;

/// A sample to look for; labels not named may be anything.
#[derive(Clone, Debug)]
pub struct Metric {
    name: String,
    labels: Vec<(String, String)>,
    value: Option<f64>,
}

/// A sample of this name.
#[must_use]
pub fn metric(name: &str) -> Metric {
    Metric {
        name: name.to_owned(),
        labels: Vec::new(),
        value: None,
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<String> = self
            .labels
            .iter()
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect();
        write!(f, "{}{{{}}}", self.name, labels.join(","))?;
        self.value.map_or(Ok(()), |value| write!(f, " {value}"))
    }
}

impl Metric {
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Metric {
        self.labels.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn value(mut self, value: f64) -> Metric {
        self.value = Some(value);
        self
    }

    fn matching_samples<'a>(&'a self, scrape: &'a str) -> impl Iterator<Item = f64> + 'a {
        scrape
            .lines()
            .filter_map(parse_line)
            .filter_map(|(name, labels, value)| {
                let wanted = self.labels.iter().all(|wanted| labels.contains(wanted));
                (name == self.name && wanted).then_some(value)
            })
    }

    /// The sum of the samples that fit, 0 when there is none.
    #[must_use]
    pub fn sum(&self, scrape: &str) -> f64 {
        self.matching_samples(scrape).sum()
    }

    /// Is there a sample of this name, labels and value?
    #[must_use]
    pub fn is_in(&self, scrape: &str) -> bool {
        self.matching_samples(scrape).any(|found| {
            self.value
                .is_none_or(|wanted| (found - wanted).abs() < 1e-9)
        })
    }

    /// Panics unless there is.
    #[track_caller]
    pub fn assert_in(&self, scrape: &str) {
        let same: Vec<&str> = scrape
            .lines()
            .filter(|line| line.starts_with(&self.name))
            .collect();
        assert!(
            self.is_in(scrape),
            "no {self}; of that name there is:\n{}",
            same.join("\n")
        );
    }
}

type Labels = Vec<(String, String)>;

/// A line of the text format: name, labels, value; `None` for comments.
fn parse_line(line: &str) -> Option<(&str, Labels, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while let Some((label, after)) = rest.trim_start_matches(',').split_once("=\"") {
            let (value, after) = unquote_label(after)?;
            labels.push((label.to_owned(), value));
            rest = after;
            if rest.starts_with('}') {
                break;
            }
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

/// A label's value up to its closing quote, and what follows.
fn unquote_label(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPE: &str = "# HELP hublet_requests_total Requests.\n# TYPE hublet_requests_total counter\n\
        hublet_requests_total{verb=\"get\",from=\"cloud\"} 3\nhublet_requests_total{verb=\"get\",from=\"store\"} 4\n\
        hublet_ready 1\nhublet_odd{text=\"a\\\"b,c=\\\"}\\\\\"} 0.5\n";

    #[test]
    fn finds_by_name_labels_and_value() {
        metric("hublet_requests_total")
            .label("verb", "get")
            .label("from", "store")
            .value(4.0)
            .assert_in(SCRAPE);
        metric("hublet_ready").value(1.0).assert_in(SCRAPE);
        metric("hublet_odd")
            .label("text", "a\"b,c=\"}\\")
            .value(0.5)
            .assert_in(SCRAPE);
        assert_eq!(metric("hublet_requests_total").sum(SCRAPE), 7.0);
    }

    #[test]
    fn does_not_find_what_is_not_there() {
        assert!(!metric("hublet_requests").is_in(SCRAPE));
        assert!(!metric("hublet_ready").value(0.0).is_in(SCRAPE));
        assert!(
            !metric("hublet_requests_total")
                .label("verb", "list")
                .is_in(SCRAPE)
        );
    }
}
