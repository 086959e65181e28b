//! The stages of proxy-user/src and the ones that each may use. ARCHITECTURE.md says the same in prose.

/// Used by every stage; they use each other at most.
pub(super) const LEAVES: [&str; 6] = ["budget", "caller", "clock", "config", "drain", "text"];

/// The composition root uses everything, and nothing but `main` uses it.
pub(super) const ROOT: &str = "app";

/// The stages that each stage may use besides [`LEAVES`], and the reasons; the highest layer first. `cache::feed` allows
/// one module of a stage and what it re-exports.
#[rustfmt::skip]
pub(super) const STAGES: [Stage; 13] = [
    stage("cli", &["admin::status", "certs", "ebpf", "node"], "prints the status document; other commands need no daemon"),
    stage("admin", &["listen", "proxy", "steer", "ebpf", "certs", "telemetry"], "reports the state of every stage"),
    stage("listen", &["proxy", "steer", "telemetry"], "has steer attest who connects, and hands requests to proxy"),
    stage("proxy", &["authz", "cloud", "local", "cache", "telemetry"], "decides where a request is answered"),
    stage("steer", &["node", "ebpf", "cache::feed"], "follows Pods and Services as the store commits them"),
    // Not all of `cache`: `Cache` gives a snapshot to whoever asks, authz gives it for the proof of a decision.
    stage("local", &["authz", "cache::exchange", "cache::grant_rows", "cache::keys", "cache::record", "cache::selector", "cache::store", "cache::variants"], "answers from the store what authz allows"),
    stage("cloud", &["telemetry"], "forwards; knows neither the store nor rights"),
    stage("authz", &["cache"], "keeps grants in the store"),
    stage("cache", &[], "knows nothing of its readers and their rights"),
    stage("ebpf", &["node"], "attaches programs to the node's cgroups and interfaces"),
    stage("node", &[], "the kernel's side of the node"),
    stage("certs", &[], "keys and trust, from files"),
    stage("telemetry", &[], "is told, and asks nobody"),
];

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    /// Stages, or single modules of them.
    pub(super) may_use: &'static [&'static str],
    pub(super) reason: &'static str,
}

const fn stage(
    name: &'static str,
    may_use: &'static [&'static str],
    reason: &'static str,
) -> Stage {
    Stage {
        name,
        may_use,
        reason,
    }
}

/// A use of one stage by another that [`STAGES`] does not allow.
#[derive(Debug)]
pub(super) struct Exception {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) reason: &'static str,
}

pub(super) const EXCEPTIONS: &[Exception] = &[];

/// Files that use each other on purpose.
#[derive(Debug)]
pub(super) struct Circle {
    pub(super) modules: &'static [&'static str],
    pub(super) reason: &'static str,
}

pub(super) const CIRCLES: &[Circle] = &[];

/// May `from` use `to` (modules as `cache::store`)?
pub(super) fn allows(from: &str, to: &str) -> bool {
    let (stage, target) = (stage_of(from), stage_of(to));
    // The crate's root declares the stages and holds the version.
    let is_free = stage == target || stage == ROOT || stage.is_empty() || target.is_empty();
    if is_free || LEAVES.contains(&target) {
        return true;
    }
    let row = STAGES.iter().find(|row| row.name == stage);
    row.is_some_and(|row| row.may_use.iter().any(|allowed| is_within(to, allowed)))
}

/// The exception that allows `from` to use `to`.
pub(super) fn is_exception(row: &Exception, from: &str, to: &str) -> bool {
    is_within(from, row.from) && is_within(to, row.to)
}

/// The reason of the stage's row.
pub(super) fn reason_of(module: &str) -> &'static str {
    let stage = stage_of(module);
    if LEAVES.contains(&stage) {
        return "a leaf uses no stage";
    }
    let row = STAGES.iter().find(|row| row.name == stage);
    row.map_or("the table has no such stage", |row| row.reason)
}

pub(super) fn stage_of(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

pub(super) fn is_within(module: &str, allowed: &str) -> bool {
    let rest = module.strip_prefix(allowed);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::super::circles::{Graph, find_circles};
    use super::*;

    #[test]
    fn the_table_has_no_circle() {
        let mut graph = Graph::new();
        for row in &STAGES {
            let targets = row.may_use.iter().map(|target| stage_of(target));
            graph.insert(row.name, targets.collect());
        }
        assert_eq!(find_circles(&graph), Vec::<Vec<&str>>::new());
    }

    #[test]
    fn a_row_uses_only_rows_below_it() {
        let place = |stage: &str| STAGES.iter().position(|row| row.name == stage);
        for row in &STAGES {
            for target in row.may_use {
                assert!(
                    place(stage_of(target)) > place(row.name),
                    "{} may use {target}",
                    row.name
                );
            }
        }
    }

    #[test]
    fn a_row_allows_what_it_names_and_what_lies_within() {
        assert!(allows("local::get", "cache::store"));
        assert!(!allows("local::get", "cache"), "reads without a proof");
        assert!(allows("steer::pods", "cache::feed::changes"));
        assert!(allows("cache::store", "clock"));
        assert!(allows("budget", "caller"));
        assert!(!allows("budget", "telemetry"));
        assert!(!allows("steer::pods", "cache::store"));
        assert!(!allows("steer::pods", "cache::feeder"));
        assert!(!allows("cache", "local"));
        assert!(!allows("proxy", "app"));
    }

    #[test]
    fn every_row_says_why_and_names_rows() {
        for row in &STAGES {
            assert!(!row.reason.is_empty(), "{}", row.name);
            for target in row.may_use {
                let known = STAGES.iter().any(|other| other.name == stage_of(target));
                assert!(known, "{} may use {target}", row.name);
            }
        }
    }
}
