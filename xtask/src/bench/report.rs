//! Values of all rounds, summarized as medians with ranges, ratios per round, and bars; as a table and as JSON.

use serde::Serialize;

use super::facts::Facts;

/// A median and the values around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Range {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// One metric of one server in one test.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    test: String,
    server: &'static str,
    /// With its unit: `cpu µs`, `first byte ms`, `RSS MiB`.
    metric: &'static str,
    #[serde(flatten)]
    range: Range,
    values: Vec<f64>,
}

/// hublet by another server, per round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Ratio {
    test: String,
    metric: &'static str,
    by: &'static str,
    #[serde(flatten)]
    range: Range,
}

/// A bar and how it stands.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Bar {
    what: String,
    measured: f64,
    at_most: f64,
    met: bool,
}

/// A bar to be looked up in the rows or ratios.
pub(super) struct Wanted {
    pub(super) test: &'static str,
    pub(super) metric: &'static str,
    /// `nginx` for a ratio.
    pub(super) by: Option<&'static str>,
    pub(super) at_most: f64,
}

/// All of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) facts: Facts,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
    bars: Vec<Bar>,
    /// Tests that were not run, with reasons, so that a hole in the figures is visible.
    pub(super) left_out: Vec<String>,
}

impl Report {
    pub(super) fn new(facts: Facts) -> Self {
        Self {
            facts,
            rows: Vec::new(),
            ratios: Vec::new(),
            bars: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Adds one round's value.
    pub(super) fn add_value(
        &mut self,
        test: &str,
        server: &'static str,
        metric: &'static str,
        value: f64,
    ) {
        let known = self
            .rows
            .iter_mut()
            .find(|row| (row.test.as_str(), row.server, row.metric) == (test, server, metric));
        if let Some(row) = known {
            row.values.push(value);
            return;
        }
        let range = Range {
            median: value,
            min: value,
            max: value,
        };
        self.rows.push(Row {
            test: test.to_owned(),
            server,
            metric,
            range,
            values: vec![value],
        });
    }

    /// Sums up: ranges, ratios, bars.
    pub(super) fn summarize(&mut self, bars: &[Wanted]) {
        for row in &mut self.rows {
            row.range = range_of(&row.values);
        }
        let hublet: Vec<&Row> = self
            .rows
            .iter()
            .filter(|row| row.server == "hublet")
            .collect();
        for row in hublet {
            let others = self.rows.iter().filter(|other| {
                other.server != "hublet"
                    && other.test == row.test
                    && other.metric == row.metric
                    && other.values.len() == row.values.len()
            });
            for other in others {
                let each: Vec<f64> = row
                    .values
                    .iter()
                    .zip(&other.values)
                    .map(|(ours, theirs)| ours / theirs)
                    .collect();
                self.ratios.push(Ratio {
                    test: row.test.clone(),
                    metric: row.metric,
                    by: other.server,
                    range: range_of(&each),
                });
            }
        }
        self.bars = bars
            .iter()
            .filter_map(|wanted| self.check_bar(wanted))
            .collect();
    }

    fn check_bar(&self, wanted: &Wanted) -> Option<Bar> {
        let Wanted {
            test,
            metric,
            by,
            at_most,
        } = *wanted;
        let (what, measured) = match by {
            Some(by) => (
                format!("{test} {metric}, by {by}"),
                self.ratio(test, metric, by)?,
            ),
            None => (format!("{test} {metric}"), self.own_value(test, metric)?),
        };
        Some(Bar {
            what,
            measured,
            at_most,
            met: measured <= at_most,
        })
    }

    fn ratio(&self, test: &str, metric: &str, by: &str) -> Option<f64> {
        let mut ratios = self.ratios.iter();
        let found =
            ratios.find(|row| (row.test.as_str(), row.metric, row.by) == (test, metric, by));
        Some(found?.range.median)
    }

    /// hublet's own.
    fn own_value(&self, test: &str, metric: &str) -> Option<f64> {
        let mut rows = self.rows.iter().filter(|row| row.server == "hublet");
        let found = rows.find(|row| (row.test.as_str(), row.metric) == (test, metric));
        Some(found?.range.median)
    }

    /// The report as text.
    pub(super) fn text(&self) -> String {
        let mut text = self.facts.text_lines().join("\n");
        let mut test = "";
        for row in &self.rows {
            if row.test != test {
                test = &row.test;
                text.push_str(&format!("\n\n{test}"));
            }
            text.push_str(&format!(
                "\n  {:<14} {:<14} {}",
                row.server,
                row.metric,
                format_range(&row.range)
            ));
            let ratios = self.ratios.iter().filter(|ratio| {
                row.server == "hublet" && ratio.test == row.test && ratio.metric == row.metric
            });
            for ratio in ratios {
                text.push_str(&format!("   {}× {}", format_range(&ratio.range), ratio.by));
            }
        }
        text.push_str("\n\nbars");
        for bar in &self.bars {
            let verdict = if bar.met { "pass" } else { "MISS" };
            text.push_str(&format!(
                "\n  {verdict}  {:<36} {:.2} (at most {})",
                bar.what, bar.measured, bar.at_most
            ));
        }
        for left_out in &self.left_out {
            text.push_str(&format!("\nnot run: {left_out}"));
        }
        text
    }
}

fn format_range(range: &Range) -> String {
    let Range { median, min, max } = range;
    if (max - min).abs() < f64::EPSILON {
        format_number(*median)
    } else {
        format!(
            "{} [{}–{}]",
            format_number(*median),
            format_number(*min),
            format_number(*max)
        )
    }
}

fn format_number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn range_of(values: &[f64]) -> Range {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Range {
        median: median_of(&sorted),
        min: sorted.first().copied().unwrap_or(f64::NAN),
        max: sorted.last().copied().unwrap_or(f64::NAN),
    }
}

fn median_of(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        count if count.is_multiple_of(2) => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{limit, ratio};
    use super::*;

    fn report() -> Report {
        let project = crate::project::Project {
            root: "/".into(),
            target: "/".into(),
        };
        Report::new(Facts::gather(&project, 3, "dynamic"))
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut report = report();
        for (ours, theirs) in [(10.0, 20.0), (30.0, 40.0), (12.0, 60.0)] {
            report.add_value("fresh", "hublet", "cpu µs", ours);
            report.add_value("fresh", "nginx", "cpu µs", theirs);
        }
        report.summarize(&[
            ratio("fresh", "cpu µs", 0.65),
            limit("fresh", "cpu µs", 11.0),
        ]);
        // 0.5, 0.75, 0.2: not 12 / 40.
        assert_eq!(
            report.ratios[0].range,
            Range {
                median: 0.5,
                min: 0.2,
                max: 0.75
            }
        );
        assert_eq!(
            report.bars.iter().map(|bar| bar.met).collect::<Vec<_>>(),
            [true, false]
        );
        assert!(
            report.text().contains("MISS  fresh cpu µs "),
            "{}",
            report.text()
        );
    }

    #[test]
    fn a_bar_without_figures_is_not_called_met() {
        let mut report = report();
        report.summarize(&[ratio("fresh", "cpu µs", 0.65)]);
        assert!(report.bars.is_empty());
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert!((range_of(&[4.0, 1.0, 3.0, 2.0]).median - 2.5).abs() < 1e-9);
    }
}
