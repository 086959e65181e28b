//! The stages of proxy-user/src and the ones that each may use. ARCHITECTURE.md says the same in prose.

/// One row: a stage and what it may use beside [`EVERYWHERE`].
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    /// Stages, or single modules of them (`cache::feed`).
    pub(super) may_use: &'static [&'static str],
    pub(super) reason: &'static str,
}

/// Leaves that every stage may use; they use each other at most.
pub(super) const EVERYWHERE: [&str; 3] = ["clock", "config", "text"];

/// The composition root uses everything, and nothing but `main` uses it.
pub(super) const ROOT: &str = "app";

/// In the order of the layers, the highest first.
pub(super) const STAGES: [Stage; 15] = [
    Stage {
        name: "cli",
        may_use: &[
            "admin",
            "listen",
            "proxy",
            "steer",
            "local",
            "cloud",
            "authz",
            "cache",
            "certs",
            "telemetry",
            "budget",
            "node",
            "ebpf",
        ],
        reason: "verbs of the program; `run` starts app in main",
    },
    Stage {
        name: "admin",
        may_use: &[
            "listen",
            "proxy",
            "steer",
            "local",
            "cloud",
            "authz",
            "cache",
            "certs",
            "telemetry",
            "budget",
            "node",
            "ebpf",
        ],
        reason: "reports the state of every stage",
    },
    Stage {
        name: "listen",
        may_use: &[
            "proxy",
            "authz",
            "telemetry",
            "budget",
            "certs",
            "steer::attest",
        ],
        reason: "attests the process at the other end of a connection, then hands requests to proxy",
    },
    Stage {
        name: "proxy",
        may_use: &["authz", "cloud", "local", "cache", "telemetry", "budget"],
        reason: "decides where a request is answered",
    },
    Stage {
        name: "steer",
        may_use: &["node", "ebpf", "cache::feed", "authz::caller", "telemetry"],
        reason: "follows Pods and Services as the store commits them",
    },
    Stage {
        name: "local",
        may_use: &["authz", "cache", "telemetry", "budget"],
        reason: "answers from the store what authz allows",
    },
    Stage {
        name: "cloud",
        may_use: &["authz::caller", "telemetry", "budget", "certs"],
        reason: "chooses the connection by the caller's credential",
    },
    Stage {
        name: "authz",
        may_use: &["cache"],
        reason: "grants are persisted in the store",
    },
    Stage {
        name: "cache",
        may_use: &["telemetry", "budget"],
        reason: "the store knows nothing of who reads it",
    },
    Stage {
        name: "ebpf",
        may_use: &["node"],
        reason: "programs are attached to cgroups and links of the node",
    },
    Stage {
        name: "node",
        may_use: &[],
        reason: "the kernel's side of the node",
    },
    Stage {
        name: "certs",
        may_use: &[],
        reason: "keys and trust, from files",
    },
    Stage {
        name: "telemetry",
        may_use: &["budget"],
        reason: "counts; asks nobody",
    },
    Stage {
        name: "budget",
        may_use: &[],
        reason: "memory permits",
    },
    Stage {
        name: "config",
        may_use: &["text"],
        reason: "flags, checked",
    },
];

/// Files that use each other on purpose.
#[derive(Debug)]
pub(super) struct Circle {
    pub(super) modules: &'static [&'static str],
    pub(super) reason: &'static str,
}

pub(super) const CIRCLES: [Circle; 0] = [];

/// May `from` use `to` (modules as `cache::store`)?
pub(super) fn allows(from: &str, to: &str) -> bool {
    let (stage, target) = (stage_of(from), stage_of(to));
    if stage == target || stage == ROOT || stage.is_empty() || EVERYWHERE.contains(&target) {
        return true;
    }
    let row = STAGES.iter().find(|row| row.name == stage);
    row.is_some_and(|row| row.may_use.iter().any(|allowed| is_within(to, allowed)))
}

/// The reason of the stage's row.
pub(super) fn reason_of(module: &str) -> &'static str {
    let row = STAGES.iter().find(|row| row.name == stage_of(module));
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
    fn a_row_allows_what_it_names_and_what_lies_within() {
        assert!(allows("local::get", "cache::store"));
        assert!(allows("steer::pods", "cache::feed::changes"));
        assert!(allows("cache::store", "clock"));
        assert!(!allows("steer::pods", "cache::store"));
        assert!(!allows("steer::pods", "cache::feeder"));
        assert!(!allows("cache", "local"));
        assert!(!allows("proxy", "app"));
    }

    #[test]
    fn every_row_says_why_and_names_rows() {
        let known =
            |name: &str| STAGES.iter().any(|row| row.name == name) || EVERYWHERE.contains(&name);
        for row in &STAGES {
            assert!(!row.reason.is_empty(), "{}", row.name);
            for target in row.may_use {
                assert!(known(stage_of(target)), "{} may use {target}", row.name);
            }
        }
    }
}
