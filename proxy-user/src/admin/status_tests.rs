//! The status document's fields, pinned by a golden file, and its version.

use hublet_ebpf::FlowCounts;
use serde_json::Value;
use time::OffsetDateTime;

use super::*;
use crate::cache::status::NotStoredCount;
use crate::caller::{Port, Process};
use crate::cloud::health::CloudState;
use crate::ebpf::status::DecisionCount;
use crate::listen::{AcceptedConnections, ClosedConnections, ListenerState, Purpose};
use crate::telemetry::CallerCounts;

const GOLDEN: &str = include_str!("status.golden.json");
const GUIDE: &str = include_str!("../../../docs/debugging.md");

/// A document in which every part and every list has content.
pub(crate) fn sample_status() -> Status {
    Status {
        type_meta: TypeMeta::default(),
        version: "0.1.0".to_owned(),
        node: "edge-1".to_owned(),
        uptime_seconds: 61,
        unready: vec!["hublet is stopping".to_owned()],
        warnings: vec!["--foo has no effect".to_owned()],
        listeners: vec![ListenerStatus {
            purpose: Purpose::Secure,
            address: ([127, 0, 0, 1], 10268).into(),
            state: ListenerState::Accepting,
            reason: Some("no interface".to_owned()),
        }],
        certificate: Some(CertificateStatus {
            file: "/var/lib/yurthub/pki/serving.crt".to_owned(),
            not_after: at(1_798_848_000),
            development_ca: Some("/var/lib/yurthub/pki/dev-ca.crt".to_owned()),
        }),
        components: vec![Component {
            name: "steering".into(),
            on: false,
            wanted: true,
            detail: "no CAP_BPF".to_owned(),
        }],
        ebpf: Some(sample_ebpf()),
        connections: Some(sample_connections()),
        requests: Some(RequestsStatus {
            in_flight: 5,
            max_in_flight: 1000,
            open_upgrades: 1,
            bytes_under_way: 4096,
            max_bytes_under_way: 67_108_864,
        }),
        cloud: Some(CloudStatus {
            state: CloudState::Silent,
            server: "https://192.168.1.102:6443".to_owned(),
            connections: 2,
            latency_seconds: 0.25,
            fallback_timeout_seconds: 1.5,
        }),
        store: Some(sample_store()),
        callers: vec![sample_caller(Some(sample_process())), sample_caller(None)],
    }
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).expect("a time")
}

fn sample_ebpf() -> EbpfStatus {
    let mut counts = FlowCounts {
        steered: 2,
        off: 1,
        bytes_up: 1312,
        ..FlowCounts::default()
    };
    counts.latency[0] = 2;
    EbpfStatus {
        programs: vec![ProgramStatus {
            name: "hub_connect4".to_owned(),
            id: 7,
            attached: "cgroup connect4".to_owned(),
        }],
        decisions: vec![DecisionCount {
            decision: "not_selected".into(),
            count: 3,
        }],
        flows: vec![FlowStatus {
            cgroup_id: 99,
            cgroup: Some("/kubelet.service".to_owned()),
            service: ([10, 96, 0, 1], 443).into(),
            counts,
        }],
    }
}

fn sample_connections() -> ConnectionsStatus {
    ConnectionsStatus {
        open: 3,
        limit: 4096,
        accepted: AcceptedConnections {
            plain: 1,
            secure: 9,
        },
        closed: ClosedConnections {
            limit: 0,
            tls_handshake: 4,
            plain_on_secure: 1,
            slow_head: 2,
            stalled: 0,
            idle: 5,
        },
        accept_errors: 0,
        self_probe_failures: 1,
    }
}

fn sample_store() -> StoreStatus {
    StoreStatus {
        writable: false,
        problem: Some("no space left".to_owned()),
        bytes: 1 << 20,
        max_bytes: 1 << 30,
        objects: 110,
        absent: 2,
        collections: 12,
        documents: 4,
        grants: 17,
        credentials: 3,
        copies_given_up: 1,
        not_stored: vec![NotStoredCount {
            reason: "too_large".into(),
            count: 6,
        }],
        evicted: 8,
        writes_failed: 1,
        behind: true,
        opened_in_seconds: 0.125,
    }
}

fn sample_process() -> Process {
    Process {
        pid: 42,
        uid: 0,
        gid: 0,
        cgroup_id: 99,
        cgroup: Some("/kubelet.service".to_owned()),
        pod_uid: None,
        container_id: None,
        netns: 4_026_531_840,
        command: "kubelet".to_owned(),
        executable: Some("/usr/bin/kubelet".to_owned()),
        original: Some(([10, 96, 0, 1], 443).into()),
        steered: true,
    }
}

fn sample_caller(process: Option<Process>) -> CallerStatus {
    CallerStatus {
        process,
        address: ([169, 254, 2, 1], 40_000).into(),
        port: Port::Secure,
        last_connect_time: at(1_796_049_300),
        counts: CallerCounts {
            connections: 1,
            requests: 7,
            errors: 1,
            bytes_up: 900,
            bytes_down: 5000,
        },
    }
}

/// Changes of this file are changes of the interface: `hublet status` and scripts of operators read it.
#[test]
fn the_document_is_the_golden_one() {
    let written = sample_status().to_json().expect("JSON");
    assert_eq!(written, GOLDEN, "written now:\n{written}");
    let read: Status = serde_json::from_str(GOLDEN).expect("a status");
    assert_eq!(read, sample_status());
}

#[test]
fn all_names_are_in_camel_case_and_in_the_guide() {
    let golden: Value = serde_json::from_str(GOLDEN).expect("JSON");
    let mut names = Vec::new();
    collect_names(&golden, &mut names);
    assert!(names.len() > 60, "{names:?}");
    for name in names {
        assert!(
            name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.chars().all(|c| c.is_ascii_alphanumeric()),
            "{name}"
        );
        assert!(
            GUIDE.contains(&format!("`{name}`")),
            "docs/debugging.md lacks `{name}`"
        );
    }
}

fn collect_names<'a>(value: &'a Value, names: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                names.push(name);
                collect_names(value, names);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_names(item, names)),
        _ => {}
    }
}
