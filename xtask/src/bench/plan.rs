//! The tests of the bench by name, and the bars that hublet must meet.

use super::objects::{LARGE, SMALL};
use super::report::Wanted;
use super::server::Load;

/// Names of the other tests.
pub(super) const LIST_ONLINE: &str = "list-online";
pub(super) const LIST_OFFLINE: &str = "list-offline";
pub(super) const IDLE: &str = "idle";
pub(super) const WATCHES: &str = "watches";
pub(super) const START: &str = "start";
/// Fresh calls that are steered, beside direct ones; and the eBPF programs' own time.
pub(super) const CONNECT: &str = "connect";
/// hublet after the stored GETs; measured with them.
pub(super) const AFTER: &str = "after-load";

pub(super) const CPU: &str = "cpu µs";
pub(super) const P50: &str = "p50 µs";
pub(super) const P99: &str = "p99 µs";
pub(super) const FIRST_BYTE: &str = "first byte ms";
pub(super) const TOTAL: &str = "total ms";
pub(super) const RSS: &str = "RSS MiB";
pub(super) const PEAK: &str = "peak RSS MiB";

/// A test of GETs.
#[derive(Debug, Clone)]
pub(super) struct Test {
    pub(super) name: String,
    pub(super) load: Load,
}

/// The bars of this first form. First the ratios that the stored GETs must keep to, then what hublet alone must.
pub(super) const BARS: &[Wanted] = &[
    ratio("fresh-1k-h1", CPU, 0.65),
    ratio("kept16-1k-h1", CPU, 0.95),
    ratio("kept16-20k-h1", CPU, 0.80),
    limit(LIST_OFFLINE, FIRST_BYTE, 2.0),
    limit(LIST_OFFLINE, PEAK, 24.0),
    limit(IDLE, RSS, 14.0),
];

/// hublet's value by nginx's.
pub(super) const fn ratio(test: &'static str, metric: &'static str, at_most: f64) -> Wanted {
    Wanted {
        test,
        metric,
        by: Some("nginx"),
        at_most,
    }
}

pub(super) const fn limit(test: &'static str, metric: &'static str, at_most: f64) -> Wanted {
    Wanted {
        test,
        metric,
        by: None,
        at_most,
    }
}

/// Stored GETs: `MODE-SIZE-PROTOCOL`.
pub(super) fn stored_tests(quick: bool) -> Vec<Test> {
    let shapes = [
        ("fresh", "fresh", 1, 1_000),
        ("kept1", "kept", 1, 6_000),
        ("kept16", "kept", 16, 24_000),
    ];
    let mut tests = Vec::new();
    for h2 in [false, true] {
        for (size, path) in [("1k", SMALL), ("20k", LARGE)] {
            for (name, mode, connections, requests) in shapes {
                let requests = if size == "20k" {
                    requests * 2 / 3
                } else {
                    requests
                };
                let load = Load {
                    mode,
                    path: path.to_owned(),
                    h2,
                    connections,
                    requests,
                    forwarded: false,
                };
                tests.push(named_test(name, size, load, quick));
            }
        }
    }
    tests
}

/// Forwarded GETs of the small object: `forward-MODE-SIZE-PROTOCOL`.
pub(super) fn forwarded_tests(quick: bool) -> Vec<Test> {
    [
        ("forward-fresh", "fresh", 1, 300),
        ("forward-kept1", "kept", 1, 2_000),
        ("forward-kept16", "kept", 16, 6_400),
    ]
    .into_iter()
    .map(|(name, mode, connections, requests)| {
        let load = Load {
            mode,
            path: SMALL.to_owned(),
            h2: false,
            connections,
            requests,
            forwarded: true,
        };
        named_test(name, "1k", load, quick)
    })
    .collect()
}

fn named_test(name: &str, size: &str, mut load: Load, quick: bool) -> Test {
    if quick {
        load.requests /= 4;
    }
    Test {
        name: format!("{name}-{size}-{}", if load.h2 { "h2" } else { "h1" }),
        load,
    }
}

/// Every name that may be asked for.
pub(super) fn test_names() -> Vec<String> {
    let mut names: Vec<String> = stored_tests(false)
        .into_iter()
        .chain(forwarded_tests(false))
        .map(|test| test.name)
        .collect();
    names.extend([LIST_ONLINE, LIST_OFFLINE, IDLE, WATCHES, START, CONNECT].map(str::to_owned));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_belongs_to_a_test_that_exists() {
        let names = test_names();
        for Wanted { test, .. } in BARS {
            assert!(names.iter().any(|name| name == test), "{test}");
        }
    }
}
