//! The command line as tables: accepted values, refused ones, and the text of each refusal.

use std::ffi::OsString;
use std::net::IpAddr;

use super::*;
use crate::cli::{Command, parse};

/// YurtHub's command line in its static pod manifest.
fn seed() -> Vec<&'static str> {
    include_str!("../../../tests/data/yurthub/command-line")
        .lines()
        .collect()
}

const LEAST: &[&str] = &[
    "--node-name=edge-1",
    "--server-addr=https://a:6443",
    "--bootstrap-file=/b",
];

/// Exit code and message, or the configuration and its warnings.
fn parse_line(
    program: &str,
    arguments: &[&str],
    node_name: Option<&str>,
) -> Result<Checked, (i32, String)> {
    let line = std::iter::once(program)
        .chain(arguments.iter().copied())
        .map(OsString::from);
    let flags = match parse(line) {
        Ok(Command::Run(flags) | Command::Config(flags)) => flags,
        Ok(other) => panic!("not a run: {other:?}"),
        Err(error) => return Err((error.exit_code(), error.to_string())),
    };
    let env = |name: &str| {
        (name == "NODE_NAME")
            .then_some(node_name)
            .flatten()
            .map(str::to_owned)
    };
    check(flags, &env).map_err(|error| (2, error.to_string()))
}

fn with(extra: &[&str]) -> Result<Checked, (i32, String)> {
    parse_line("hublet", &[LEAST, extra].concat(), None)
}

fn config(extra: &[&str]) -> Config {
    with(extra)
        .unwrap_or_else(|(_, error)| panic!("{extra:?}: {error}"))
        .config
}

#[test]
fn the_seed_command_line_is_taken_as_it_stands() {
    for (program, first) in [
        ("hublet", &[][..]),
        ("hublet", &["run"][..]),
        ("/usr/local/bin/yurthub", &[][..]),
    ] {
        let checked = parse_line(program, &[first, &seed()].concat(), Some("edge-7"))
            .expect("the seed's flags");
        let config = checked.config;
        assert_eq!(config.node_name, "edge-7");
        assert_eq!(config.verbosity, 2);
        assert_eq!(
            config.cloud.servers,
            [Server {
                host: "192.168.1.102".into(),
                port: 6443
            }]
        );
        assert_eq!(config.certs.mode, BootstrapMode::Token);
        assert_eq!(config.admin, "127.0.0.1:10267".parse().expect("address"));
        assert_eq!(
            config.listen.plain,
            ["127.0.0.1:10261", "169.254.2.1:10261"]
                .map(|a| a.parse::<SocketAddr>().expect("address"))
        );
        assert_eq!(
            config.listen.secure,
            "169.254.2.1:10268".parse().expect("address")
        );
        let sans = ["10.96.0.1", "169.254.2.1", "127.0.0.1"]
            .map(|a| a.parse::<IpAddr>().expect("address"));
        assert_eq!(config.certs.ip_sans, sans);
        assert_eq!(
            checked.warnings.len(),
            1,
            "only the one on certificates: {:?}",
            checked.warnings
        );
        assert!(
            checked.warnings[0].contains("certificates from the cluster are not implemented yet")
        );
    }
}

#[test]
fn an_unexpanded_node_name_is_refused_with_the_reason() {
    let (code, error) = parse_line("hublet", &seed(), None).expect_err("no NODE_NAME");
    assert_eq!(code, 2);
    assert!(
        error.contains("$(NODE_NAME)") && error.contains("spec.nodeName"),
        "{error}"
    );
}

#[test]
fn invalid_values_are_refused_with_a_valid_one() {
    for (arguments, says) in [
        (&["--node-name=Edge_1"][..], "lower-case letters"),
        (&["--node-name="], "NODE_NAME"),
        (&["--server-addr=10.0.0.1:6443"], "https://10.0.0.1:6443"),
        (&["--bootstrap-file="], "--bootstrap-file is required"),
        (&["--working-mode=local"], "not implemented"),
        (&["--working-mode=egde"], "use edge"),
        (
            &["--bootstrap-mode=tokens"],
            "token, kubeletcertificate or development",
        ),
        (&["--lb-mode=round-robin"], "rr or priority"),
        (&["--dummy-if-ip=10.0.0.1"], "169.254.0.0/16"),
        (&["--dummy-if-ip=169.254.1.1"], "Calico"),
        (&["--dummy-if-ip=169.254.31.9"], "169.254.31.0/24"),
        (&["--dummy-if-ip=169.254.0.0"], "169.254.2.1"),
        (&["--dummy-if-ip=169.254.2"], "must be an IP address"),
        (&["--dummy-if-ip=2001:db8::1"], "fc00::/7"),
        (&["--dummy-if-name=a-name-of-16-chr"], "15 characters"),
        (&["--dummy-if-name="], "hub-dummy0"),
        (&["--dummy-if-name=a/b"], "hub-dummy0"),
        (&["--bind-address=localhost"], "127.0.0.1"),
        (&["--bind-proxy-address=224.0.0.1"], "127.0.0.1"),
        (&["--proxy-port=0"], "between 1 and 65535"),
        (&["--proxy-port=70000"], "70000"),
        (&["--proxy-port=10268"], "use different ports"),
        (&["--serve-port=10261"], "use different ports"),
        (&["--serve-port=10268"], "use different ports"),
        (&["--heartbeat-interval-seconds=0"], "greater than zero"),
        (&["--heartbeat-timeout-seconds=0"], "greater than zero"),
        (&["--heartbeat-healthy-threshold=0"], "at least 1"),
        (&["--min-request-timeout=0s"], "greater than zero"),
        (&["--min-request-timeout=30"], "1h30m"),
        (&["--grant-max-age=0"], "greater than zero"),
        (&["--steer=10.96.0.1"], "10.96.0.1:443"),
        (&["--max-connections=0"], "at least 1"),
        (&["--max-connections=-1"], "-1"),
        (&["--max-requests=0"], "at least 1"),
        (&["--max-bytes-under-way=64Ki"], "at least 1Mi"),
        (&["--reader-timeout=500ms"], "at least 1s"),
        (&["--store-page-cache=1Ki"], "at least 64Ki"),
        (&["--cache-max-bytes=1Mi"], "at least 64Mi"),
        (&["--enable-dummy-if=maybe"], "use true or false"),
        (&["--gc-frequency=often"], "must be an integer"),
        (&["--kubelet-health-grace-period=40"], "1h30m"),
        (&["--node-ip=edge"], "--node-ip"),
        (&["--bind-addres=127.0.0.1"], "--bind-address"),
        (&["serve"], "serve"),
    ] {
        let (code, error) = with(arguments)
            .map(|c| c.config)
            .expect_err(&arguments.join(" "));
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error.contains(says), "{arguments:?}: {error}");
    }
}

#[test]
fn a_missing_flag_is_named() {
    for (arguments, flag) in [
        (
            &["--server-addr=https://a:1", "--bootstrap-file=/b"][..],
            "--node-name",
        ),
        (&["--node-name=a", "--bootstrap-file=/b"], "--server-addr"),
        (
            &["--node-name=a", "--server-addr=https://a:1"],
            "--bootstrap-file",
        ),
        (
            &[
                "--node-name=a",
                "--server-addr=https://a:1",
                "--bootstrap-mode=development",
            ],
            "--bootstrap-file",
        ),
    ] {
        let (code, error) = parse_line("hublet", arguments, None)
            .map(|c| c.config)
            .expect_err(flag);
        assert_eq!(code, 2);
        assert!(error.contains(&format!("{flag} is required")), "{error}");
    }
    let kubelet = [
        "--node-name=a",
        "--server-addr=https://a:1",
        "--bootstrap-mode=kubeletcertificate",
    ];
    assert!(
        parse_line("hublet", &kubelet, None).is_ok(),
        "today's installer passes no bootstrap file"
    );
}

#[test]
fn booleans_are_read_as_go_reads_them() {
    assert!(config(&[]).setup.dummy.is_some());
    for (flag, on) in [
        ("--enable-dummy-if", true),
        ("--enable-dummy-if=true", true),
        ("--enable-dummy-if=1", true),
        ("--enable-dummy-if=T", true),
        ("--enable-dummy-if=false", false),
        ("--enable-dummy-if=F", false),
        ("--enable-dummy-if=0", false),
        ("--enable_dummy_if=false", false),
    ] {
        assert_eq!(config(&[flag]).setup.dummy.is_some(), on, "{flag}");
    }
    assert!(
        config(&["--enable-dummy-if", "--dummy-if-name=hub0"])
            .setup
            .dummy
            .is_some(),
        "takes no next argument"
    );
}

#[test]
fn the_last_of_a_repeated_flag_counts_and_lists_add_up() {
    let config = config(&[
        "--lb-mode=rr",
        "--lb-mode=priority",
        "--server-addr=https://b:1,https://c:1",
        "-v=4",
    ]);
    assert_eq!(config.cloud.lb_mode, LbMode::Priority);
    assert_eq!(config.cloud.servers.len(), 3);
    assert_eq!(config.verbosity, 4);
}

#[test]
fn listeners_follow_the_interface() {
    let off = config(&["--enable-dummy-if=false"]);
    assert_eq!(off.listen.plain.len(), 1);
    assert_eq!(
        off.listen.secure,
        "127.0.0.1:10268".parse().expect("address")
    );
    let every = config(&["--bind-proxy-address=0.0.0.0"]);
    assert_eq!(
        every.listen.plain.len(),
        1,
        "0.0.0.0 already holds the dummy address"
    );
    assert!(!every.certs.ip_sans.iter().any(IpAddr::is_unspecified));
    let v6 = config(&["--node-ip=2001:db8::7"]);
    assert_eq!(
        v6.setup.dummy.map(|d| d.ip),
        Some("fd00::2:1".parse().expect("address"))
    );
    assert!(
        v6.certs
            .ip_sans
            .contains(&"2001:db8::7".parse().expect("address"))
    );
    assert!(config(&["--steer=none"]).setup.steer.is_empty());
}

#[test]
fn every_ignored_flag_gives_one_warning_and_no_secret() {
    let quiet = with(&["--bootstrap-mode=development"])
        .expect("least")
        .warnings;
    assert_eq!(quiet, Vec::<String>::new());
    for (flag, value) in [
        ("nodepool-name", "pool-1"),
        ("max-requests-in-flight", "250"),
        ("enable-iptables", "true"),
        ("kubelet-health-grace-period", "40s"),
        ("gc-frequency", "120"),
        ("multiplexer-port", "10269"),
        ("heartbeat-failed-retry", "3"),
        ("profiling", "true"),
        ("disabled-resource-filters", "masterservice,servicetopology"),
        ("discovery-token-ca-cert-hash", "sha256:00"),
        ("join-token", "abcdef.0123456789abcdef"),
        ("vmodule", "proxy=5"),
        ("log-dir", "/var/log"),
        ("namespace", "openyurt"),
    ] {
        let argument = format!("--{flag}={value}");
        let warnings = with(&["--bootstrap-mode=development", &argument])
            .expect("taken")
            .warnings;
        assert_eq!(warnings.len(), 1, "{argument}: {warnings:?}");
        assert!(
            warnings[0].starts_with(&format!("--{flag}=")),
            "{warnings:?}"
        );
        assert!(
            !warnings[0].contains("0123456789abcdef"),
            "a token in a log: {warnings:?}"
        );
    }
    for silent in [
        "--logtostderr",
        "--logtostderr=true",
        "--namespace=kube-system",
        "--enable-iptables=false",
    ] {
        assert_eq!(
            with(&["--bootstrap-mode=development", silent])
                .expect("taken")
                .warnings,
            Vec::<String>::new()
        );
    }
    let reachable = with(&["--bootstrap-mode=development", "--bind-address=0.0.0.0"])
        .expect("taken")
        .warnings;
    assert!(reachable[0].contains("outside this node"), "{reachable:?}");
}

#[test]
fn every_yurthub_flag_is_known() {
    let help =
        <flags::Flags as clap::Args>::augment_args(clap::Command::new("t")).render_long_help();
    let help = help.to_string();
    for flag in [
        "node-name",
        "server-addr",
        "nodepool-name",
        "working-mode",
        "bootstrap-mode",
        "bootstrap-file",
        "join-token",
        "discovery-token-ca-cert-hash",
        "discovery-token-unsafe-skip-ca-verification",
        "hub-cert-organizations",
        "root-dir",
        "disk-cache-path",
        "bind-address",
        "serve-port",
        "bind-proxy-address",
        "proxy-port",
        "proxy-secure-port",
        "multiplexer-port",
        "node-ip",
        "enable-dummy-if",
        "dummy-if-name",
        "dummy-if-ip",
        "heartbeat-interval-seconds",
        "heartbeat-timeout-seconds",
        "heartbeat-failed-retry",
        "heartbeat-healthy-threshold",
        "kubelet-health-grace-period",
        "lb-mode",
        "min-request-timeout",
        "enable-resource-filter",
        "disabled-resource-filters",
        "enable-node-pool",
        "enable-pool-service-topology",
        "pool-scope-resources",
        "gc-frequency",
        "namespace",
        "profiling",
        "max-requests-in-flight",
        "enable-iptables",
        "host-control-plane-address",
        "vmodule",
        "logtostderr",
        "alsologtostderr",
        "log-dir",
        "stderrthreshold",
    ] {
        assert!(help.contains(&format!("--{flag}")), "--{flag}");
    }
}

#[test]
fn the_effective_configuration_prints_as_json() {
    let json = serde_json::to_value(config(&["--min-request-timeout=1h30m"])).expect("JSON");
    assert_eq!(json["local"]["min_request_timeout"], 5400.0);
    assert_eq!(json["listen"]["secure"], "169.254.2.1:10268");
    assert_eq!(json["certs"]["mode"], "token");
    assert_eq!(json["cache"]["max_bytes"], 512 << 20);
}
