//! What stored objects say about steering. In: a snapshot. Out: the API service's addresses, and the pods that want to
//! be steered.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use crate::cache::change::Change;
use crate::cache::keys;
use crate::cache::record::Record;
use crate::cache::store::{Lookup, Snapshot, StoreError};
use hublet_wire::media::Encoding;
use hublet_wire::protobuf::{Fields, Unknown, Value};

/// The annotation or label of pods and namespaces that want to be steered: `"true"`.
pub(crate) const STEER: &str = "hublet.io/steer";

const API_SERVICE: &[u8] = b"/services/default/kubernetes";

/// The addresses of the Service `default/kubernetes`: its ClusterIPs with its TCP ports. Empty while it is unknown.
///
/// # Errors
/// The store's.
pub(crate) fn api_service(snapshot: &Snapshot) -> Result<Vec<SocketAddr>, StoreError> {
    match snapshot.object(API_SERVICE, |record| {
        service_addresses(&record).unwrap_or_default()
    })? {
        Lookup::Found(addresses) => Ok(addresses),
        _ => Ok(Vec::new()),
    }
}

/// UIDs of the pods that want to be steered: by themselves, or because their namespace does. What a pod says itself
/// wins.
///
/// # Errors
/// The store's.
pub(crate) fn opted_in(snapshot: &Snapshot) -> Result<BTreeSet<String>, StoreError> {
    // To walk over all pods takes time and pushes everything else out of the page cache.
    if !snapshot.has_wishes()? {
        return Ok(BTreeSet::new());
    }
    let mut namespaces = BTreeSet::new();
    let mut walk = snapshot.walk(&resource("namespaces"))?;
    while let Some(wish) = walk.next(|record| Wish::of(&record))? {
        namespaces.extend(
            wish.filter(|wish| wish.steer == Some(true))
                .map(|wish| wish.name),
        );
    }
    let mut pods = BTreeSet::new();
    let mut walk = snapshot.walk(&resource("pods"))?;
    // Only what mentions the wish is read, unless a whole namespace wants it.
    let look = |record: Record<'_>| {
        let says = memchr::memmem::find(record.body, STEER.as_bytes()).is_some();
        (says || !namespaces.is_empty())
            .then(|| Wish::of(&record))
            .flatten()
    };
    while let Some(wish) = walk.next(look)? {
        let steered = |wish: &Wish| {
            wish.steer
                .unwrap_or_else(|| namespaces.contains(&wish.namespace))
        };
        pods.extend(wish.filter(steered).map(|wish| wish.uid));
    }
    Ok(pods)
}

/// Does a pod's or a namespace's record mention [`STEER`]?
pub(super) fn mentions(key: &[u8], value: &[u8]) -> bool {
    (key.starts_with(b"/pods/") || key.starts_with(b"/namespaces/"))
        && memchr::memmem::find(value, STEER.as_bytes()).is_some()
}

/// May it change what the functions above find?
pub(super) fn concerns(op: &Change) -> bool {
    let (Change::Upsert { key, .. }
    | Change::Delete { key, .. }
    | Change::ReplaceCollection {
        collection: key, ..
    }) = op
    else {
        return false;
    };
    key.starts_with(b"/pods/") || key.starts_with(b"/namespaces/") || key == API_SERVICE
}

/// The UID of a pod that wants to be steered by itself.
pub(super) fn wants(op: &Change) -> Option<String> {
    let Change::Upsert { key, record, .. } = op else {
        return None;
    };
    if !key.starts_with(b"/pods/") || !mentions(key, &record.value) {
        return None;
    }
    let wish = Wish::of(&Record::read(&record.value)?)?;
    (wish.steer == Some(true)).then_some(wish.uid)
}

fn resource(plural: &str) -> Vec<u8> {
    let mut key = Vec::new();
    keys::push_resource(&mut key, "", plural);
    key
}

/// What an object's metadata says.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    name: String,
    namespace: String,
    uid: String,
    /// `None`: it says nothing.
    steer: Option<bool>,
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(borrow)]
    labels: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(borrow)]
    annotations: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

impl Wish {
    /// `None` where the object can't be read: then it wants nothing.
    fn of(record: &Record<'_>) -> Option<Self> {
        match record.encoding {
            Encoding::Json => {
                let Object { metadata } = serde_json::from_slice(record.body).ok()?;
                let says = [&metadata.annotations, &metadata.labels]
                    .into_iter()
                    .find_map(|map| map.get(STEER));
                Some(Self {
                    steer: says.map(|says| says == "true"),
                    name: metadata.name.into_owned(),
                    namespace: metadata.namespace.into_owned(),
                    uid: metadata.uid.into_owned(),
                })
            }
            Encoding::Protobuf => {
                Self::of_protobuf(bytes(Unknown::parse(record.body).ok()?.raw, 1).next()?)
            }
        }
    }

    fn of_protobuf(meta: &[u8]) -> Option<Self> {
        let text = |field| {
            bytes(meta, field)
                .last()
                .map_or(Ok(String::new()), |v| String::from_utf8(v.to_vec()))
        };
        let (labels, annotations) = (11, 12);
        let says = |field| {
            let mut entries = bytes(meta, field);
            entries
                .find(|entry| bytes(entry, 1).last() == Some(STEER.as_bytes()))
                .and_then(|e| bytes(e, 2).last())
        };
        Some(Self {
            name: text(1).ok()?,
            namespace: text(3).ok()?,
            uid: text(5).ok()?,
            steer: says(annotations)
                .or_else(|| says(labels))
                .map(|says| says == b"true"),
        })
    }
}

/// The values of one field of a message, as far as it can be read.
fn bytes(message: &[u8], field: u64) -> impl Iterator<Item = &[u8]> {
    Fields::new(message)
        .flatten()
        .filter_map(move |found| match found {
            (number, Value::Bytes(bytes)) if number == field => Some(bytes),
            _ => None,
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

fn service_addresses(record: &Record<'_>) -> Option<Vec<SocketAddr>> {
    let spec = match record.encoding {
        Encoding::Json => serde_json::from_slice::<Service>(record.body).ok()?.spec,
        Encoding::Protobuf => {
            let raw = Unknown::parse(record.body).ok()?.raw;
            ServiceSpec::of_protobuf(bytes(raw, 2).next()?)
        }
    };
    let ips: BTreeSet<IpAddr> = spec
        .cluster_ips
        .iter()
        .chain([&spec.cluster_ip])
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let ports = spec
        .ports
        .iter()
        .filter(|port| matches!(port.protocol.as_str(), "" | "TCP") && port.port != 0);
    Some(
        ports
            .flat_map(|port| ips.iter().map(|ip| SocketAddr::new(*ip, port.port)))
            .collect(),
    )
}

impl ServiceSpec {
    fn of_protobuf(spec: &[u8]) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let port = |message| {
            let number = Fields::new(message)
                .flatten()
                .find_map(|field| match field {
                    (3, Value::Varint(number)) => u16::try_from(number).ok(),
                    _ => None,
                });
            let protocol = bytes(message, 2).last().map(text).unwrap_or_default();
            number.map(|port| ServicePort { protocol, port })
        };
        Self {
            cluster_ip: bytes(spec, 3).last().map(text).unwrap_or_default(),
            cluster_ips: bytes(spec, 18).map(text).collect(),
            ports: bytes(spec, 1).filter_map(port).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::apply::apply;
    use crate::cache::change::{Change, Observation};
    use crate::cache::continuity::Continuity;
    use crate::cache::record::{NewRecord, TypeHint};
    use crate::cache::store::Store;
    use crate::clock::Clock;
    use hublet_wire::protobuf::{envelope, put_bytes, put_varint_field};

    fn record(encoding: Encoding, body: &[u8]) -> Record<'_> {
        Record::bare(encoding, body)
    }

    fn message(fields: &[(u64, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        fields
            .iter()
            .for_each(|(field, bytes)| put_bytes(&mut out, *field, bytes));
        out
    }

    #[test]
    fn the_api_services_key_is_the_stores() {
        let mut key = resource("services");
        keys::push_object(&mut key, "default", "kubernetes");
        assert_eq!(key, API_SERVICE);
        assert!(concerns(&Change::Delete {
            key,
            version: 1,
            observed: Observation::watch_event(1)
        }));
        let other = Change::Delete {
            key: b"/services/default/other".to_vec(),
            version: 1,
            observed: Observation::watch_event(1),
        };
        assert!(!concerns(&other));
    }

    #[test]
    fn a_pods_wish_is_read_in_both_encodings() {
        let json = br#"{"kind":"Pod","metadata":{"name":"a","namespace":"n","uid":"u","annotations":{"hublet.io/steer":"true"}}}"#;
        let says = message(&[(1, STEER.as_bytes()), (2, b"true")]);
        let meta = message(&[(1, b"a"), (3, b"n"), (5, b"u"), (12, &says)]);
        let protobuf = envelope("v1", "Pod", &message(&[(1, &meta)]));
        let wish = Wish {
            name: "a".into(),
            namespace: "n".into(),
            uid: "u".into(),
            steer: Some(true),
        };
        assert_eq!(
            Wish::of(&record(Encoding::Json, json)).as_ref(),
            Some(&wish)
        );
        assert_eq!(
            Wish::of(&record(Encoding::Protobuf, &protobuf)).as_ref(),
            Some(&wish)
        );
        let no = br#"{"metadata":{"name":"a","labels":{"hublet.io/steer":"false"}}}"#;
        assert_eq!(
            Wish::of(&record(Encoding::Json, no)).and_then(|wish| wish.steer),
            Some(false)
        );
        let silent = br#"{"metadata":{"name":"a","labels":{"x":"hublet.io/steer"}}}"#;
        assert_eq!(
            Wish::of(&record(Encoding::Json, silent)).and_then(|wish| wish.steer),
            None
        );
        assert_eq!(Wish::of(&record(Encoding::Json, b"{")), None);
    }

    #[test]
    fn pods_opt_in_by_themselves_and_by_their_namespace() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path(), 1 << 20).expect("store");
        let put = |key: &str, json: &str| {
            let record =
                NewRecord::json(json.as_bytes(), TypeHint::default(), 1).expect("an object");
            let ops = [Change::Upsert {
                key: key.as_bytes().to_vec(),
                record,
                observed: Observation::watch_event(1),
            }];
            apply(&store, &ops, &mut Continuity::new(Clock::default())).expect("applied");
            assert!(concerns(&ops[0]));
            wants(&ops[0])
        };
        let wishes = || {
            let snapshot = store.snapshot().expect("snapshot");
            (
                snapshot.has_wishes().expect("read"),
                opted_in(&snapshot).expect("read"),
            )
        };
        let pod = |namespace: &str, name: &str, more: &str| {
            let json = format!(
                r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"{namespace}","uid":"{name}","resourceVersion":"5"{more}}}}}"#
            );
            put(&format!("/pods/{namespace}/{name}"), &json)
        };
        assert_eq!(pod("a", "silent", ""), None);
        assert_eq!(
            wishes(),
            (false, BTreeSet::new()),
            "nobody has observed a word: nobody is looked for"
        );
        let wanted = pod("a", "wants", r#","annotations":{"hublet.io/steer":"true"}"#);
        assert_eq!(
            wanted.as_deref(),
            Some("wants"),
            "known before it is written"
        );
        assert_eq!(wishes(), (true, BTreeSet::from(["wants".to_owned()])));
        let namespace = r#"{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"b","uid":"n","resourceVersion":"6","labels":{"hublet.io/steer":"true"}}}"#;
        assert_eq!(put("/namespaces/b", namespace), None);
        assert_eq!(pod("b", "follows", ""), None);
        assert_eq!(
            pod("b", "refuses", r#","labels":{"hublet.io/steer":"false"}"#),
            None
        );
        assert_eq!(
            wishes().1,
            BTreeSet::from(["follows".to_owned(), "wants".to_owned()])
        );
    }

    #[test]
    fn the_api_services_addresses_are_read_in_both_encodings() {
        let json = br#"{"spec":{"clusterIP":"10.43.0.1","clusterIPs":["10.43.0.1","fd00:43::1"],"ports":[
            {"name":"https","protocol":"TCP","port":443,"targetPort":6443},{"protocol":"UDP","port":53}]}}"#;
        let mut port = message(&[(1, b"https"), (2, b"TCP")]);
        put_varint_field(&mut port, 3, 443);
        let spec = message(&[
            (1, &port),
            (3, b"10.43.0.1"),
            (18, b"10.43.0.1"),
            (18, b"fd00:43::1"),
        ]);
        let protobuf = envelope("v1", "Service", &message(&[(2, &spec)]));
        let both = ["10.43.0.1:443", "[fd00:43::1]:443"]
            .map(|a| a.parse().expect("address"))
            .to_vec();
        assert_eq!(
            service_addresses(&record(Encoding::Json, json)),
            Some(both.clone())
        );
        assert_eq!(
            service_addresses(&record(Encoding::Protobuf, &protobuf)),
            Some(both)
        );
        let headless = br#"{"spec":{"clusterIP":"None","ports":[{"port":443}]}}"#;
        assert_eq!(
            service_addresses(&record(Encoding::Json, headless)),
            Some(vec![])
        );
    }
}
