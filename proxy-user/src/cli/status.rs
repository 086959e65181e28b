//! `hublet status`: reads `/v1/status` of a running daemon and prints it as tables or as JSON.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use ureq::Agent;

use super::table::{
    or_dash, print_field_section, print_fields, print_line_section, print_table, yes_no,
};
use super::{Output, StatusArgs};
use crate::admin::status::{
    API_VERSION, CallerStatus, CertificateStatus, CloudStatus, Component, ConnectionsStatus,
    EbpfStatus, FlowStatus, ListenerStatus, ProgramStatus, RequestsStatus, Status, StoreStatus,
    TypeMeta,
};
use crate::text::printable_json;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A status is some tens of kilobytes.
const MAX_RESPONSE: u64 = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error(
        "hublet does not answer on {0}: {1}; is it running? If its --serve-port differs, use --admin=ADDR:PORT"
    )]
    Connect(SocketAddr, io::Error),
    #[error("the server on {0} is not hublet: {1}")]
    Answer(SocketAddr, String),
    #[error(
        "hublet on {admin} reports its status as {found}, but this binary reads only {API_VERSION}: use the binary of the running version"
    )]
    ApiVersion { admin: SocketAddr, found: String },
    /// The output is closed.
    #[error("can't write the output: {0}")]
    Write(#[from] io::Error),
}

/// Fetches and prints the status.
///
/// # Errors
/// Nothing answers, another program answers, or `out` is closed.
pub fn status(args: &StatusArgs, out: &mut dyn Write) -> Result<(), StatusError> {
    let json = fetch_status(args.admin)?;
    let status = parse_status(args.admin, &json)?;
    match args.output {
        Output::Json => writeln!(out, "{}", printable_json(json.trim_end()))?,
        Output::Table => print_status(&status, out)?,
    }
    Ok(())
}

fn fetch_status(admin: SocketAddr) -> Result<String, StatusError> {
    let response = http_agent()
        .get(format!("http://{admin}/v1/status"))
        .call()
        .map_err(|error| StatusError::Connect(admin, error.into_io()))?;
    if response.status() != StatusCode::OK {
        let problem = format!("it answered {}", response.status());
        return Err(StatusError::Answer(admin, problem));
    }
    read_body(response).map_err(|error| StatusError::Connect(admin, error.into_io()))
}

fn read_body(mut response: http::Response<ureq::Body>) -> Result<String, ureq::Error> {
    let body = response.body_mut().with_config().limit(MAX_RESPONSE);
    body.read_to_string()
}

/// Asks the address itself, whatever proxy the environment names.
fn http_agent() -> Agent {
    let config = Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false);
    config.build().into()
}

/// Reads the version first: the rest of another version's document may not be readable.
fn parse_status(admin: SocketAddr, json: &str) -> Result<Status, StatusError> {
    let type_meta: TypeMeta = parse_json(admin, json)?;
    if !type_meta.is_current() {
        let found = type_meta.api_version.into_owned();
        return Err(StatusError::ApiVersion { admin, found });
    }
    parse_json(admin, json)
}

fn parse_json<'a, T: Deserialize<'a>>(admin: SocketAddr, json: &'a str) -> Result<T, StatusError> {
    serde_json::from_str(json).map_err(|error| StatusError::Answer(admin, error.to_string()))
}

fn print_status(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    print_daemon(status, out)?;
    print_line_section("unready", &status.unready, out)?;
    print_line_section("warnings", &status.warnings, out)?;
    print_listeners(&status.listeners, out)?;
    print_optional(status.certificate.as_ref(), print_certificate, out)?;
    print_components(&status.components, out)?;
    print_optional(status.ebpf.as_ref(), print_ebpf, out)?;
    print_optional(status.connections.as_ref(), print_connections, out)?;
    print_optional(status.requests.as_ref(), print_requests, out)?;
    print_optional(status.cloud.as_ref(), print_cloud, out)?;
    print_optional(status.store.as_ref(), print_store, out)?;
    print_callers(&status.callers, out)
}

fn print_optional<T>(
    part: Option<&T>,
    print: fn(&T, &mut dyn Write) -> io::Result<()>,
    out: &mut dyn Write,
) -> io::Result<()> {
    part.map_or(Ok(()), |part| print(part, out))
}

fn print_daemon(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let fields = [
        ("version", status.version.clone()),
        ("node", status.node.clone()),
        ("uptime", format!("{} s", status.uptime_seconds)),
    ];
    print_fields(fields, "", out)
}

fn print_listeners(listeners: &[ListenerStatus], out: &mut dyn Write) -> io::Result<()> {
    let columns = ["address", "protocols", "state", "reason"];
    print_table(
        "listeners",
        &columns,
        listeners.iter().map(listener_row),
        out,
    )
}

fn listener_row(listener: &ListenerStatus) -> Vec<String> {
    vec![
        listener.address.to_string(),
        listener.purpose.protocols().to_owned(),
        listener.state.as_str().to_owned(),
        or_dash(listener.reason.as_ref()),
    ]
}

fn print_certificate(certificate: &CertificateStatus, out: &mut dyn Write) -> io::Result<()> {
    let fields = [
        ("file", certificate.file.clone()),
        ("valid until", certificate.not_after.date().to_string()),
        (
            "development CA",
            or_dash(certificate.development_ca.as_ref()),
        ),
    ];
    print_field_section("certificate", fields, out)
}

fn print_components(components: &[Component], out: &mut dyn Write) -> io::Result<()> {
    let rows = components.iter().map(component_row);
    print_table("components", &["name", "on", "detail"], rows, out)
}

fn component_row(component: &Component) -> Vec<String> {
    vec![
        component.name.to_string(),
        yes_no(component.on),
        component.detail.clone(),
    ]
}

fn print_ebpf(ebpf: &EbpfStatus, out: &mut dyn Write) -> io::Result<()> {
    let programs = ebpf.programs.iter().map(program_row);
    print_table("ebpf programs", &["name", "id", "attached"], programs, out)?;
    let decisions = ebpf.decisions.iter();
    let decisions = decisions.map(|count| (&*count.decision, count.count.to_string()));
    print_field_section("ebpf decisions", decisions, out)?;
    print_flows(&ebpf.flows, out)
}

fn program_row(program: &ProgramStatus) -> Vec<String> {
    vec![
        program.name.clone(),
        program.id.to_string(),
        program.attached.clone(),
    ]
}

fn print_flows(flows: &[FlowStatus], out: &mut dyn Write) -> io::Result<()> {
    let columns = [
        "cgroup",
        "service",
        "steered",
        "direct",
        "passed through",
        "established",
        "closed",
        "bytes up",
        "bytes down",
        "retransmits",
    ];
    print_table("ebpf flows", &columns, flows.iter().map(flow_row), out)
}

fn flow_row(flow: &FlowStatus) -> Vec<String> {
    let counts = &flow.counts;
    let passed_through =
        counts.off + counts.own + counts.not_selected + counts.stale + counts.no_listener;
    let cgroup = flow.cgroup.clone();
    let mut row = vec![
        cgroup.unwrap_or_else(|| flow.cgroup_id.to_string()),
        flow.service.to_string(),
    ];
    let numbers = [
        counts.steered,
        counts.direct,
        passed_through,
        counts.established,
        counts.closed,
        counts.bytes_up,
        counts.bytes_down,
        counts.retransmits,
    ];
    row.extend(numbers.map(|number| number.to_string()));
    row
}

fn print_connections(connections: &ConnectionsStatus, out: &mut dyn Write) -> io::Result<()> {
    let (accepted, closed) = (&connections.accepted, &connections.closed);
    let fields = [
        ("open", connections.open.to_string()),
        ("limit", connections.limit.to_string()),
        ("accepted on plain ports", accepted.plain.to_string()),
        ("accepted on secure ports", accepted.secure.to_string()),
        ("accept errors", connections.accept_errors.to_string()),
        ("closed: limit", closed.limit.to_string()),
        ("closed: TLS handshake", closed.tls_handshake.to_string()),
        (
            "closed: HTTP on a TLS port",
            closed.plain_on_secure.to_string(),
        ),
        ("closed: slow head", closed.slow_head.to_string()),
        ("closed: stalled", closed.stalled.to_string()),
        ("closed: idle", closed.idle.to_string()),
        (
            "self-probe failures",
            connections.self_probe_failures.to_string(),
        ),
    ];
    print_field_section("connections", fields, out)
}

fn print_requests(requests: &RequestsStatus, out: &mut dyn Write) -> io::Result<()> {
    let fields = [
        ("in flight", requests.in_flight.to_string()),
        ("limit", requests.max_in_flight.to_string()),
        ("open upgrades", requests.open_upgrades.to_string()),
        ("bytes under way", requests.bytes_under_way.to_string()),
        ("limit of bytes", requests.max_bytes_under_way.to_string()),
    ];
    print_field_section("requests", fields, out)
}

fn print_cloud(cloud: &CloudStatus, out: &mut dyn Write) -> io::Result<()> {
    let fields = [
        ("state", cloud.state.as_str().to_owned()),
        ("server", cloud.server.clone()),
        ("connections", cloud.connections.to_string()),
        ("latency", format!("{:.3} s", cloud.latency_seconds)),
        (
            "fallback timeout",
            format!("{:.3} s", cloud.fallback_timeout_seconds),
        ),
    ];
    print_field_section("cloud", fields, out)
}

fn print_store(store: &StoreStatus, out: &mut dyn Write) -> io::Result<()> {
    let fields = [
        ("writable", yes_no(store.writable)),
        ("problem", or_dash(store.problem.as_ref())),
        ("bytes", store.bytes.to_string()),
        ("limit", store.max_bytes.to_string()),
        ("objects", store.objects.to_string()),
        ("absent names", store.absent.to_string()),
        ("collections", store.collections.to_string()),
        ("documents", store.documents.to_string()),
        ("grants", store.grants.to_string()),
        ("credentials", store.credentials.to_string()),
        ("behind", yes_no(store.behind)),
        ("evicted", store.evicted.to_string()),
        ("copies given up", store.copies_given_up.to_string()),
        ("failed writes", store.writes_failed.to_string()),
        ("opened in", format!("{:.3} s", store.opened_in_seconds)),
    ];
    print_field_section("store", fields, out)?;
    let not_stored = store.not_stored.iter().filter(|count| count.count > 0);
    let not_stored = not_stored.map(|count| (&*count.reason, count.count.to_string()));
    print_field_section("not stored", not_stored, out)
}

fn print_callers(callers: &[CallerStatus], out: &mut dyn Write) -> io::Result<()> {
    let columns = [
        "pid",
        "uid",
        "command",
        "executable",
        "cgroup",
        "pod",
        "dialled",
        "address",
        "port",
        "connections",
        "requests",
        "errors",
        "bytes up",
        "bytes down",
        "last connect",
    ];
    print_table("callers", &columns, callers.iter().map(caller_row), out)
}

fn caller_row(caller: &CallerStatus) -> Vec<String> {
    let process = caller.process.as_ref();
    let counts = &caller.counts;
    vec![
        or_dash(process.map(|process| process.pid)),
        or_dash(process.map(|process| process.uid)),
        or_dash(process.map(|process| &process.command)),
        or_dash(process.and_then(|process| process.executable.as_ref())),
        or_dash(process.and_then(|process| process.cgroup.as_ref())),
        or_dash(process.and_then(|process| process.pod_uid.as_ref())),
        or_dash(process.and_then(|process| process.original)),
        caller.address.to_string(),
        caller.port.as_str().to_owned(),
        counts.connections.to_string(),
        counts.requests.to_string(),
        counts.errors.to_string(),
        counts.bytes_up.to_string(),
        counts.bytes_down.to_string(),
        caller.last_connect_time.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::admin::status::tests::sample_status;

    const ADMIN: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10267);

    fn printed(status: &Status) -> String {
        let mut out = Vec::new();
        print_status(status, &mut out).expect("written");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn the_table_shows_every_part() {
        let text = printed(&sample_status());
        for line in [
            "version  0.1.0\n",
            "UNREADY\n  hublet is stopping\n",
            "  127.0.0.1:10268  HTTPS      accepting  no interface\n",
            "  valid until     2027-01-02\n",
            "  steering  no  no CAP_BPF\n",
            "  hub_connect4  7   cgroup connect4\n",
            "EBPF DECISIONS\n  not_selected  3\n",
            "  /kubelet.service  10.96.0.1:443  2",
            "  closed: TLS handshake       4\n",
            "  in flight        5\n",
            "  state             silent\n",
            "  problem          no space left\n",
            "NOT STORED\n  too_large  6\n",
            "  42   0    kubelet  /usr/bin/kubelet",
            "  -    -    -  ",
            "2026-11-30 14:35:00",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
    }

    #[test]
    fn a_daemon_that_starts_has_no_empty_sections() {
        let status = Status {
            unready: vec!["the store isn't open yet".to_owned()],
            ..Status::default()
        };
        let text = printed(&status);
        let headings = text
            .lines()
            .filter(|line| line.starts_with(char::is_uppercase));
        assert_eq!(headings.collect::<Vec<_>>(), ["UNREADY"]);
    }

    #[test]
    fn another_version_is_named_and_not_read() {
        let json =
            r#"{"apiVersion": "hublet/v2", "kind": "HubletStatus", "node": {"name": "edge-1"}}"#;
        let error = parse_status(ADMIN, json)
            .expect_err("version 2")
            .to_string();
        assert!(
            error.contains("hublet/v2") && error.contains("only hublet/v1"),
            "{error}"
        );
    }

    #[test]
    fn a_document_of_another_program_is_no_status() {
        for json in [
            "{}",
            "<html>",
            r#"{"apiVersion": "hublet/v1", "kind": "HubletStatus"}"#,
        ] {
            let error = parse_status(ADMIN, json).expect_err(json);
            assert!(matches!(error, StatusError::Answer(..)), "{error}");
        }
    }

    /// Answers one connection with `answer`.
    fn serve_once(answer: &'static [u8]) -> (SocketAddr, std::thread::JoinHandle<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let admin = listener.local_addr().expect("an address");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            let _ = stream.read(&mut [0; 512]);
            stream.write_all(answer).expect("written");
        });
        (admin, server)
    }

    fn failure(admin: SocketAddr) -> String {
        let args = StatusArgs {
            output: Output::Json,
            admin,
        };
        let error = status(&args, &mut Vec::new()).expect_err("no hublet");
        error.to_string()
    }

    #[test]
    fn a_closed_port_and_another_server_are_told_apart() {
        let (admin, server) = serve_once(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        let error = failure(admin);
        assert!(
            error.contains("not hublet") && error.contains("404"),
            "{error}"
        );
        server.join().expect("joined");
        let error = failure(admin);
        assert!(error.contains("is it running"), "{error}");
        assert!(
            error.contains("--admin") && error.contains(&admin.to_string()),
            "{error}"
        );
    }

    #[test]
    fn a_server_without_http_does_not_answer() {
        let (admin, server) = serve_once(b"SSH-2.0-OpenSSH_9.2\r\n");
        let error = failure(admin);
        assert!(error.contains("does not answer"), "{error}");
        server.join().expect("joined");
    }
}
