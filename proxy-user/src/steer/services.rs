//! The services that are steered: configured addresses, the servers' own, and the ClusterIPs of `default/kubernetes`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use hublet_wire::media::Encoding;
use hublet_wire::protobuf::{Fields, Unknown, Value};
use serde::Deserialize;

use super::pods::bytes_fields;
use crate::cache::feed::{Lookup, ObjectKey, Record, Snapshot, StoreError};
use crate::config::{CloudConfig, Server, Services};

/// The key of the API service, `default/kubernetes`, in the store.
pub(super) const API_SERVICE: &[u8] = b"/services/default/kubernetes";

/// The configured part; the API service's addresses come from the store.
#[derive(Debug, Clone)]
pub(super) struct ServicePolicy {
    named: BTreeSet<SocketAddr>,
    /// Steer the API service (`--steer=kubernetes`).
    pub(super) api_service: bool,
}

impl ServicePolicy {
    pub(super) fn new(services: &Services, cloud: &CloudConfig) -> Self {
        let servers = cloud.servers.iter().filter(|_| services.cloud);
        let servers = servers.filter_map(server_address);
        Self {
            named: services.addresses.iter().copied().chain(servers).collect(),
            api_service: services.kubernetes,
        }
    }

    /// All services, given the API service's addresses.
    pub(super) fn with_api_service(&self, addresses: &[SocketAddr]) -> BTreeSet<SocketAddr> {
        let discovered = addresses.iter().filter(|_| self.api_service);
        self.named.iter().chain(discovered).copied().collect()
    }

    /// True for a service that is configured, not discovered.
    pub(super) fn is_named(&self, service: &SocketAddr) -> bool {
        self.named.contains(service)
    }
}

/// `None` for a server name: clients are steered by address, and a node that is cut off has no DNS.
fn server_address(server: &Server) -> Option<SocketAddr> {
    let ip = server.host.parse().ok()?;
    Some(SocketAddr::new(ip, server.port))
}

/// The ClusterIPs of the API service with its TCP ports; empty while the store doesn't know it.
///
/// # Errors
/// The store's.
pub(super) fn read_api_service(snapshot: &Snapshot) -> Result<Vec<SocketAddr>, StoreError> {
    let found = snapshot.object(ObjectKey::new(API_SERVICE), |record| {
        service_addresses(&record)
    })?;
    Ok(match found {
        Lookup::Found(Some(addresses)) => addresses,
        _ => Vec::new(),
    })
}

#[derive(Deserialize)]
struct Service {
    spec: ServiceSpec,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    ports: Vec<ServicePort>,
}

#[derive(Deserialize)]
struct ServicePort {
    #[serde(default)]
    protocol: String,
    port: u16,
}

/// Field numbers in the generated.proto of core/v1.
mod fields {
    pub(super) const SERVICE_SPEC: u64 = 2;
    pub(super) const SPEC_PORTS: u64 = 1;
    pub(super) const SPEC_CLUSTER_IP: u64 = 3;
    pub(super) const SPEC_CLUSTER_IPS: u64 = 18;
    pub(super) const PORT_PROTOCOL: u64 = 2;
    pub(super) const PORT_PORT: u64 = 3;
}

/// `None` for a Service that can't be read.
fn service_addresses(record: &Record<'_>) -> Option<Vec<SocketAddr>> {
    let spec = match record.encoding {
        Encoding::Json => serde_json::from_slice::<Service>(record.body).ok()?.spec,
        Encoding::Protobuf => ServiceSpec::of_service(record.body)?,
    };
    Some(spec.addresses())
}

impl ServiceSpec {
    /// Of a Service in protobuf.
    fn of_service(body: &[u8]) -> Option<Self> {
        let raw = Unknown::parse(body).ok()?.raw;
        let spec = bytes_fields(raw, fields::SERVICE_SPEC).next()?;
        Some(Self::of_protobuf(spec))
    }

    fn of_protobuf(spec: &[u8]) -> Self {
        Self {
            cluster_ip: text_field(spec, fields::SPEC_CLUSTER_IP),
            cluster_ips: bytes_fields(spec, fields::SPEC_CLUSTER_IPS)
                .map(lossy_text)
                .collect(),
            ports: bytes_fields(spec, fields::SPEC_PORTS)
                .filter_map(ServicePort::of_protobuf)
                .collect(),
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        // A headless Service has the "address" `None`, which doesn't parse.
        let ips: BTreeSet<IpAddr> = self
            .cluster_ips
            .iter()
            .chain([&self.cluster_ip])
            .filter_map(|ip| ip.parse().ok())
            .collect();
        self.ports
            .iter()
            .filter(|port| port.is_tcp() && port.port != 0)
            .flat_map(|port| ips.iter().map(|ip| SocketAddr::new(*ip, port.port)))
            .collect()
    }
}

impl ServicePort {
    fn of_protobuf(port: &[u8]) -> Option<Self> {
        let number = Fields::new(port).flatten().find_map(|field| match field {
            (fields::PORT_PORT, Value::Varint(number)) => u16::try_from(number).ok(),
            _ => None,
        })?;
        Some(Self {
            protocol: text_field(port, fields::PORT_PROTOCOL),
            port: number,
        })
    }

    /// TCP is the default.
    fn is_tcp(&self) -> bool {
        matches!(self.protocol.as_str(), "" | "TCP")
    }
}

/// Empty when absent, as protobuf has it.
fn text_field(message: &[u8], field: u64) -> String {
    let last = bytes_fields(message, field).last();
    last.map(lossy_text).unwrap_or_default()
}

fn lossy_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use hublet_wire::meta::TypeMeta;
    use hublet_wire::protobuf::{encode_envelope, put_bytes, put_varint_field};

    use super::*;
    use crate::cache::feed::testing::store_with;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect()
    }

    fn of_json(json: &str) -> Option<Vec<SocketAddr>> {
        service_addresses(&Record::bare(Encoding::Json, json.as_bytes()))
    }

    #[test]
    fn addresses_are_read_in_both_encodings() {
        let json = r#"{"spec":{"clusterIP":"10.43.0.1","clusterIPs":["10.43.0.1","fd00:43::1"],"ports":[
            {"name":"https","protocol":"TCP","port":443,"targetPort":6443},{"protocol":"UDP","port":53}]}}"#;
        let mut port = Vec::new();
        put_bytes(&mut port, 1, b"https");
        put_bytes(&mut port, 2, b"TCP");
        put_varint_field(&mut port, 3, 443);
        let mut spec = Vec::new();
        put_bytes(&mut spec, 1, &port);
        put_bytes(&mut spec, 3, b"10.43.0.1");
        put_bytes(&mut spec, 18, b"10.43.0.1");
        put_bytes(&mut spec, 18, b"fd00:43::1");
        let mut service = Vec::new();
        put_bytes(&mut service, 2, &spec);
        let protobuf = encode_envelope(
            TypeMeta {
                api_version: "v1",
                kind: "Service",
            },
            &service,
        );
        let both = addresses(&["10.43.0.1:443", "[fd00:43::1]:443"]);
        assert_eq!(of_json(json), Some(both.clone()));
        let record = Record::bare(Encoding::Protobuf, &protobuf);
        assert_eq!(service_addresses(&record), Some(both));
    }

    #[test]
    fn a_headless_service_has_no_address_and_a_broken_one_is_unknown() {
        let headless = r#"{"spec":{"clusterIP":"None","ports":[{"port":443}]}}"#;
        assert_eq!(of_json(headless), Some(vec![]));
        assert_eq!(of_json("{"), None);
    }

    #[test]
    fn the_api_service_is_found_under_its_key() {
        let json = r#"{"kind":"Service","apiVersion":"v1","metadata":{"name":"kubernetes","namespace":"default","uid":"u","resourceVersion":"1"},
            "spec":{"clusterIP":"10.96.0.1","ports":[{"port":443}]}}"#;
        let (_dir, store) = store_with(&[("/services/default/kubernetes".into(), json.into())]);
        let snapshot = store.snapshot().expect("snapshot");
        let found = read_api_service(&snapshot).expect("read");
        assert_eq!(found, addresses(&["10.96.0.1:443"]));
        let (_dir, empty) = store_with(&[]);
        let snapshot = empty.snapshot().expect("snapshot");
        assert_eq!(read_api_service(&snapshot).expect("read"), vec![]);
    }

    #[test]
    fn discovered_addresses_count_only_where_the_api_service_is_steered() {
        let named = addresses(&["192.0.2.1:6443"]);
        let found = addresses(&["10.96.0.1:443"]);
        let policy = |api_service| ServicePolicy {
            named: named.iter().copied().collect(),
            api_service,
        };
        assert_eq!(
            policy(false).with_api_service(&found),
            named.iter().copied().collect()
        );
        assert_eq!(policy(true).with_api_service(&found).len(), 2);
        assert!(policy(true).is_named(&named[0]) && !policy(true).is_named(&found[0]));
    }
}
