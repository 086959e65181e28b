//! Flags in, [`Config`] out: every value judged, a wrong one refused with the reason and the way out. Pure: the
//! environment comes in as a function, no file is opened.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::flags::{Flags, OwnFlags, YurthubFlags};
use super::{
    BootstrapMode, CacheConfig, CertsConfig, CloudConfig, Config, ConfigError, DummyConfig,
    GuardConfig, LbMode, ListenConfig, LocalConfig, SelectConfig, Server, Services, SetupConfig,
    WorkingMode, server, steer,
};

/// SO_MARK of our own upstream sockets ("hubl"), which the eBPF programs let pass.
pub const UPSTREAM_MARK: u32 = 0x6875_626c;

const DUMMY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);
const DUMMY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, 1);

/// Limits that a typing error would cross, and that no sensible setting does.
const MAX_CONNECTIONS: usize = 1 << 20;
const MAX_PAGE_CACHE: usize = 1 << 30;
const MAX_UNDER_WAY: usize = 1 << 34;
/// The shortest time in which a slow reader can show progress.
const MIN_READER_TIMEOUT: Duration = Duration::from_secs(1);
/// Several documents and a batch must find room in the store.
const MIN_STORE: usize = 64 << 20;

/// A checked configuration and what the operator should know about it.
#[derive(Debug)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// One sentence for each setting without effect, or with one that may surprise.
    pub warnings: Vec<String>,
}

/// Judges the flags. `env` looks up an environment variable.
///
/// # Errors
/// The first wrong or missing value.
pub fn checked(flags: Flags, env: &dyn Fn(&str) -> Option<String>) -> Result<Checked, ConfigError> {
    let Flags {
        yurthub,
        own,
        ignored,
    } = flags;
    let mut warnings = ignored.warnings;
    let working_mode = working_mode(&yurthub.working_mode)?;
    let node_name = node_name(yurthub.node_name.as_deref(), env)?;
    let setup = setup(&yurthub, &own)?;
    warnings.extend(without_ebpf(&own));
    let dummy = &setup.dummy;
    let (admin, listen) = listeners(&yurthub, &own, dummy.as_ref())?;
    let cloud = cloud(&yurthub)?;
    warnings.extend(unused(&cloud.servers));
    warnings.extend(exposed("bind-address", admin.ip()));
    warnings.extend(exposed("bind-proxy-address", listen.plain[0].ip()));
    let certs = certs(&yurthub, &mut warnings)?;
    let (dns_sans, servers) = servers_as_services(&setup.steer, &cloud.servers);
    let steered = setup
        .steer
        .addresses
        .iter()
        .map(SocketAddr::ip)
        .chain(servers);
    let ip_sans = ip_sans(
        steered,
        dummy.as_ref(),
        [admin.ip(), listen.plain[0].ip()],
        yurthub.node_ip,
    );
    let config = Config {
        node_name,
        working_mode,
        cloud,
        cache: CacheConfig {
            dir: yurthub.disk_cache_path,
            page_cache: page_cache(own.store_page_cache)?,
            max_bytes: max_bytes(own.cache_max_bytes)?,
        },
        local: LocalConfig {
            grant_max_age: positive("grant-max-age", own.grant_max_age)?,
            min_request_timeout: positive("min-request-timeout", yurthub.min_request_timeout)?,
        },
        setup,
        certs: CertsConfig {
            ip_sans,
            dns_sans,
            ..certs
        },
        listen,
        admin,
        take_over: own.take_over,
        verbosity: yurthub.v,
    };
    Ok(Checked { config, warnings })
}

fn setup(yurthub: &YurthubFlags, own: &OwnFlags) -> Result<SetupConfig, ConfigError> {
    for (flag, names) in [("uplink", &own.uplink), ("xdp-uplink", &own.xdp_uplink)] {
        for name in names {
            interface_name(flag, name)?;
        }
    }
    Ok(SetupConfig {
        ebpf: own.ebpf,
        dummy: dummy(yurthub)?,
        steer: steer::services(&own.steer)?,
        select: SelectConfig {
            only: steer::selections("steer-only", &own.steer_only)?,
            except: steer::selections("steer-except", &own.steer_except)?,
            pods: steer::selections("steer-pods", &own.steer_pods)?,
        },
        guard: GuardConfig {
            on: own.guard,
            uplinks: own.uplink.clone(),
            xdp: own.xdp_uplink.clone(),
        },
        getpeername: own.steer_getpeername,
        cgroup: own.cgroup.clone(),
        bpffs: own.bpffs.clone(),
        bpf_log: own.bpf_log,
    })
}

/// Flags that `--ebpf=false` leaves without effect.
fn without_ebpf(own: &OwnFlags) -> Option<String> {
    let set = [
        ("steer-only", !own.steer_only.is_empty()),
        ("steer-except", !own.steer_except.is_empty()),
        ("steer-getpeername", own.steer_getpeername),
        ("uplink", !own.uplink.is_empty()),
        ("xdp-uplink", !own.xdp_uplink.is_empty()),
        ("cgroup", own.cgroup.is_some()),
        ("bpf-log", own.bpf_log),
    ];
    let set: Vec<_> = set
        .iter()
        .filter(|(_, set)| *set && !own.ebpf)
        .map(|(flag, _)| format!("--{flag}"))
        .collect();
    (!set.is_empty()).then(|| format!("{}: no effect with --ebpf=false", set.join(", ")))
}

/// Servers that nobody is sent to.
fn unused(servers: &[Server]) -> Option<String> {
    let name = |server: &Server| format!("{}:{}", server.host, server.port);
    let (first, rest) = servers.split_first().filter(|(_, rest)| !rest.is_empty())?;
    let rest: Vec<_> = rest.iter().map(name).collect();
    Some(format!(
        "--server-addr: every request goes to {}; {} not used yet, whatever --lb-mode says, also when the first one is \
         away",
        name(first),
        match rest.as_slice() {
            [one] => format!("{one} is"),
            more => format!("{} are", more.join(", ")),
        }
    ))
}

/// With `--steer=cloud` clients verify the API servers' own names against our certificate.
fn servers_as_services(steer: &Services, servers: &[Server]) -> (Vec<String>, Vec<IpAddr>) {
    let hosts = servers
        .iter()
        .filter(|_| steer.cloud)
        .map(|server| &server.host);
    let (ips, names): (Vec<_>, Vec<_>) = hosts.partition(|host| host.parse::<IpAddr>().is_ok());
    (
        names.into_iter().cloned().collect(),
        ips.into_iter().filter_map(|ip| ip.parse().ok()).collect(),
    )
}

fn working_mode(mode: &str) -> Result<WorkingMode, ConfigError> {
    let reason = match mode {
        "edge" => return Ok(WorkingMode::Edge),
        "cloud" => return Ok(WorkingMode::Cloud),
        "local" => {
            "is not implemented: it is YurtHub's iptables load balancer and no proxy; use edge"
        }
        _ => "is no working mode: use edge or cloud",
    };
    Err(ConfigError::value("working-mode", mode, reason))
}

fn node_name(
    flag: Option<&str>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ConfigError> {
    const FLAG: &str = "node-name";
    let from_env = || env("NODE_NAME").filter(|name| !name.is_empty());
    let name = match flag {
        None | Some("") => from_env().ok_or_else(|| {
            ConfigError::missing(
                FLAG,
                "say which node this is, as in --node-name=edge-1, or set NODE_NAME",
            )
        })?,
        // The kubelet expands $(NODE_NAME) only when the container's env has it; systemd and shells never do.
        Some(literal @ ("$(NODE_NAME)" | "${NODE_NAME}" | "$NODE_NAME")) => {
            from_env().ok_or_else(|| {
                ConfigError::value(
                    FLAG,
                    literal,
                    "was not expanded and the environment has no NODE_NAME: in a pod, \
                set env NODE_NAME from spec.nodeName; elsewhere write the name itself",
                )
            })?
        }
        Some(name) => name.to_owned(),
    };
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(ConfigError::value(
            FLAG,
            name,
            "is no node name: Kubernetes allows small letters, digits, - \
            and . (see `kubectl get nodes`)",
        ));
    }
    Ok(name)
}

fn dummy(flags: &YurthubFlags) -> Result<Option<DummyConfig>, ConfigError> {
    if !flags.enable_dummy_if {
        return Ok(None);
    }
    let name = &flags.dummy_if_name;
    interface_name("dummy-if-name", name)?;
    let default = match flags.node_ip {
        Some(IpAddr::V6(_)) => IpAddr::V6(DUMMY_V6),
        _ => IpAddr::V4(DUMMY_V4),
    };
    let ip = match &flags.dummy_if_ip {
        Some(text) => dummy_ip(text)?,
        None => default,
    };
    Ok(Some(DummyConfig {
        name: name.clone(),
        ip,
    }))
}

fn interface_name(flag: &'static str, name: &str) -> Result<(), ConfigError> {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    if name.len() > 15 {
        return Err(ConfigError::value(
            flag,
            name,
            "is longer than the 15 characters of an interface name",
        ));
    }
    if name.is_empty() || name == "." || name == ".." || !name.bytes().all(allowed) {
        return Err(ConfigError::value(
            flag,
            name,
            "is no interface name: write one like hub-dummy0",
        ));
    }
    Ok(())
}

fn dummy_ip(text: &str) -> Result<IpAddr, ConfigError> {
    let wrong = |reason: &str| Err(ConfigError::value("dummy-if-ip", text, reason));
    match text.parse::<IpAddr>() {
        Err(_) => wrong("is no IP address: write one like 169.254.2.1"),
        Ok(IpAddr::V4(ip)) => match ip.octets() {
            [169, 254, 31, _] => wrong("is in 169.254.31.0/24, which is reserved: use 169.254.2.1"),
            [169, 254, 1, 1] => wrong("is the gateway that Calico gives its pods: use 169.254.2.1"),
            [169, 254, 0, 0] | [169, 254, 255, 255] => {
                wrong("is no host's address: use 169.254.2.1")
            }
            [169, 254, ..] => Ok(IpAddr::V4(ip)),
            _ => wrong("is outside 169.254.0.0/16, so other nodes might use it: use 169.254.2.1"),
        },
        Ok(IpAddr::V6(ip)) if ip.is_unique_local() => Ok(IpAddr::V6(ip)),
        Ok(IpAddr::V6(_)) => {
            wrong("is outside fc00::/7, so other nodes might use it: use fd00::2:1")
        }
    }
}

fn address(flag: &'static str, text: &str) -> Result<IpAddr, ConfigError> {
    match text.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) if !ip.is_multicast() => Ok(ip),
        _ => Err(ConfigError::value(
            flag,
            text,
            "is no IP address to listen on: write one like 127.0.0.1",
        )),
    }
}

fn port(flag: &'static str, port: u16) -> Result<u16, ConfigError> {
    match port {
        0 => Err(ConfigError::value(
            flag,
            port,
            "is no port: ports are 1 to 65535",
        )),
        _ => Ok(port),
    }
}

/// The admin address, and the listeners of clients: the host's plain one first.
fn listeners(
    flags: &YurthubFlags,
    own: &OwnFlags,
    dummy: Option<&DummyConfig>,
) -> Result<(SocketAddr, ListenConfig), ConfigError> {
    let host = address("bind-proxy-address", &flags.bind_proxy_address)?;
    let plain_port = port("proxy-port", flags.proxy_port)?;
    let secure_port = port("proxy-secure-port", flags.proxy_secure_port)?;
    let serve_port = port("serve-port", flags.serve_port)?;
    let same = |a, b| {
        let reason = "are the same port: give each listener its own".to_owned();
        Err(ConfigError::Clash(a, b, reason))
    };
    if plain_port == secure_port {
        return same("proxy-port", "proxy-secure-port");
    }
    if serve_port == plain_port {
        return same("serve-port", "proxy-port");
    }
    if serve_port == secure_port {
        return same("serve-port", "proxy-secure-port");
    }
    let admin = SocketAddr::new(address("bind-address", &flags.bind_address)?, serve_port);
    let mut plain = vec![SocketAddr::new(host, plain_port)];
    // A listener on every address already has the dummy one.
    if let Some(dummy) = dummy.filter(|dummy| dummy.ip != host && !host.is_unspecified()) {
        plain.push(SocketAddr::new(dummy.ip, plain_port));
    }
    let listen = ListenConfig {
        plain,
        secure: SocketAddr::new(dummy.map_or(host, |dummy| dummy.ip), secure_port),
        max_connections: count("max-connections", own.max_connections)?,
        max_requests: count("max-requests", own.max_requests)?,
        max_bytes_under_way: under_way(own.max_bytes_under_way)?,
        reader_timeout: reader_timeout(own.reader_timeout)?,
        drain: own.drain_timeout,
    };
    Ok((admin, listen))
}

fn count(flag: &'static str, value: usize) -> Result<usize, ConfigError> {
    match value {
        0 => Err(ConfigError::value(
            flag,
            value,
            "would serve nobody: write 1 or more",
        )),
        n if n > MAX_CONNECTIONS => Err(ConfigError::value(
            flag,
            value,
            format!("is too many: at most {MAX_CONNECTIONS}"),
        )),
        n => Ok(n),
    }
}

/// A warning when an address is reachable from other machines.
fn exposed(flag: &str, ip: IpAddr) -> Option<String> {
    (!ip.is_loopback() && !matches!(ip, IpAddr::V4(v4) if v4.is_link_local())).then(|| {
        format!(
            "--{flag}={ip} can be reached from outside this node: use 127.0.0.1 unless a firewall guards it"
        )
    })
}

fn certs(flags: &YurthubFlags, warnings: &mut Vec<String>) -> Result<CertsConfig, ConfigError> {
    let mode = match flags.bootstrap_mode.as_str() {
        "development" => BootstrapMode::Development,
        "token" => BootstrapMode::Token,
        "kubeletcertificate" => BootstrapMode::KubeletCertificate,
        other => {
            return Err(ConfigError::value(
                "bootstrap-mode",
                other,
                "is no bootstrap mode: write token, kubeletcertificate or development",
            ));
        }
    };
    let bootstrap_file = flags
        .bootstrap_file
        .clone()
        .filter(|file| !file.as_os_str().is_empty());
    if bootstrap_file.is_none() && mode != BootstrapMode::KubeletCertificate {
        return Err(ConfigError::missing(
            "bootstrap-file",
            "name a kubeconfig with the cluster's CA, as in \
            --bootstrap-file=/var/lib/yurthub/bootstrap-hub.conf; the cloud is trusted by it",
        ));
    }
    if mode != BootstrapMode::Development {
        warnings.push(format!("--bootstrap-mode={}: certificates from the cluster are not implemented yet; unless \
            a valid certificate is found in --root-dir, hublet serves with its development CA, which clients must \
            be told to trust", flags.bootstrap_mode));
    }
    let organizations: Vec<String> = flags
        .hub_cert_organizations
        .iter()
        .filter(|o| !o.is_empty() && *o != "system:nodes")
        .cloned()
        .collect();
    if !organizations.is_empty() {
        warnings.push(format!(
            "--hub-cert-organizations={} is for the client certificate, which comes with \
            certificates from the cluster: no effect yet",
            organizations.join(",")
        ));
    }
    Ok(CertsConfig {
        mode,
        bootstrap_file,
        root_dir: flags.root_dir.clone(),
        organizations,
        ip_sans: Vec::new(),
        dns_sans: Vec::new(),
        node_ip: flags.node_ip,
    })
}

/// What the serving certificate is valid for, each once: `0.0.0.0` is nobody's address.
fn ip_sans(
    steered: impl Iterator<Item = IpAddr>,
    dummy: Option<&DummyConfig>,
    bound: [IpAddr; 2],
    node: Option<IpAddr>,
) -> Vec<IpAddr> {
    let mut sans = Vec::new();
    let all = steered
        .chain(dummy.map(|dummy| dummy.ip))
        .chain(bound)
        .chain(node);
    for ip in all.filter(|ip| !ip.is_unspecified()) {
        if !sans.contains(&ip) {
            sans.push(ip);
        }
    }
    sans
}

fn cloud(flags: &YurthubFlags) -> Result<CloudConfig, ConfigError> {
    let seconds = |n: u32| Duration::from_secs(n.into());
    let lb_mode = match flags.lb_mode.as_str() {
        "rr" => LbMode::Rr,
        "priority" => LbMode::Priority,
        other => {
            return Err(ConfigError::value(
                "lb-mode",
                other,
                "is no load balancing mode: write rr or priority",
            ));
        }
    };
    if flags.heartbeat_healthy_threshold == 0 {
        return Err(ConfigError::value(
            "heartbeat-healthy-threshold",
            0,
            "would never find the cloud back: write 1 or more",
        ));
    }
    Ok(CloudConfig {
        servers: server::servers(&flags.server_addr)?,
        lb_mode,
        probe_interval: positive(
            "heartbeat-interval-seconds",
            seconds(flags.heartbeat_interval_seconds),
        )?,
        probe_timeout: positive(
            "heartbeat-timeout-seconds",
            seconds(flags.heartbeat_timeout_seconds),
        )?,
        healthy_threshold: flags.heartbeat_healthy_threshold,
        mark: UPSTREAM_MARK,
    })
}

fn positive(flag: &'static str, duration: Duration) -> Result<Duration, ConfigError> {
    if duration.is_zero() {
        return Err(ConfigError::value(
            flag,
            0,
            "is no time at all: write more than zero",
        ));
    }
    Ok(duration)
}

fn page_cache(bytes: usize) -> Result<usize, ConfigError> {
    match bytes {
        0..65_536 => Err(ConfigError::value(
            "store-page-cache",
            bytes,
            "is too small: write 64Ki or more",
        )),
        n if n > MAX_PAGE_CACHE => Err(ConfigError::value(
            "store-page-cache",
            bytes,
            "is too large: at most 1Gi",
        )),
        n => Ok(n),
    }
}

/// One client gets at most half: less than a MiB would make every list a walk in steps.
fn under_way(bytes: usize) -> Result<usize, ConfigError> {
    const FLAG: &str = "max-bytes-under-way";
    match bytes {
        0..1_048_576 => Err(ConfigError::value(
            FLAG,
            bytes,
            "is too small: write 1Mi or more",
        )),
        n if n > MAX_UNDER_WAY => Err(ConfigError::value(
            FLAG,
            bytes,
            "is too large: at most 16Gi",
        )),
        n => Ok(n),
    }
}

fn reader_timeout(duration: Duration) -> Result<Duration, ConfigError> {
    if duration < MIN_READER_TIMEOUT {
        let reason = "would cut readers that are merely slow: write 1s or more";
        return Err(ConfigError::value(
            "reader-timeout",
            format!("{duration:?}"),
            reason,
        ));
    }
    Ok(duration)
}

fn max_bytes(bytes: usize) -> Result<u64, ConfigError> {
    match bytes {
        0..MIN_STORE => Err(ConfigError::value(
            "cache-max-bytes",
            bytes,
            "is too small for one large list and its documents: write 64Mi or more",
        )),
        n => Ok(n as u64),
    }
}
