//! Promise: hublet reads each spelling of a request as the API server does, or forwards it and stores nothing.
//!
//! Before, a list filtered by an unusual spelling was stored as the whole collection, a path with an escaped slash as a
//! document, an escaped dry run as a write, and a watch in another form as a list. A caller that could list one Secret
//! read them all.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::time::Duration;

use anyhow::Result;
use hublet_tests::client::{Answer, Client};
use hublet_tests::eventually::eventually;
use hublet_tests::kube::edge::Edge;
use hublet_tests::site::Site;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const SOON: Duration = Duration::from_secs(5);

/// The server filters all of these lists.
const FILTERED: [&str; 7] = [
    "?label%53elector=app%3Dnone",
    "?labelSelector=app%3Dnone&labelSelector=",
    "?labelSelector=app%3Dnone&label%53elector=",
    "?fieldSelector=metadata.name%3Dm1&fieldSelector=",
    "?field%53elector=metadata.name%3Dm1&limit=500",
    "?labelSelector=app%3Dnone&unknown=%zz",
    "?labelSelector=app%3Dnone&a;b",
];

/// All of these are watches to the server.
const WATCHES: [&str; 5] = [
    "?watch=yes",
    "?watch=2",
    "?watch=no",
    "?w%61tch=true",
    "?watch=true&watch=false",
];

fn source(answer: &Answer) -> &str {
    answer.header("x-hublet-source")
}

fn items(list: &Answer) -> usize {
    list.json()["items"].as_array().map_or(0, Vec::len)
}

fn map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default"}})
}

fn secret(name: &str) -> Value {
    json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default"}})
}

/// Asks for each filtered list, after a change of the collection's, so that each is newer than what is stored.
fn ask_filtered(client: &Client, mut change: impl FnMut() -> Result<()>) -> Result<()> {
    for query in FILTERED {
        change()?;
        let list = client.get(&format!("{MAPS}{query}"))?;
        assert_eq!(
            (list.status, source(&list)),
            (200, "cloud"),
            "{query}: {list:?}"
        );
        assert!(items(&list) <= 1, "{query} is filtered: {list:?}");
    }
    Ok(())
}

#[test]
fn a_filtered_list_is_never_kept_as_the_whole_collection() -> Result<()> {
    let Some(site) = Site::start("spelling", |_| {})? else {
        return Ok(());
    };
    for n in 0..4 {
        site.cloud.put(map(&format!("m{n}")))?;
    }
    let admin = site.admin_client()?;
    assert_eq!(admin.get(&format!("{MAPS}/m2"))?.status, 200);
    let whole = admin.get(MAPS)?;
    let mut n = 0;
    ask_filtered(&admin, || {
        let mut changed = map("m0");
        n += 1;
        changed["data"] = json!({"n": n.to_string()});
        site.cloud.put(changed).map(drop)
    })?;
    site.cut_link()?;
    let stored = admin.get(MAPS)?;
    assert_eq!(
        (stored.status, source(&stored), items(&stored)),
        (200, "store", items(&whole)),
        "{stored:?}"
    );
    let one = admin.get(&format!("{MAPS}/m2"))?;
    assert_eq!((one.status, source(&one)), (200, "store"), "{one:?}");
    let understood = admin.get(&format!("{MAPS}{}", FILTERED[0]))?;
    assert_eq!(
        (understood.status, items(&understood)),
        (200, 0),
        "an escape is read: {understood:?}"
    );
    for query in &FILTERED[1..4] {
        let odd = admin.get(&format!("{MAPS}{query}"))?;
        assert_eq!(
            (odd.status, odd.header("retry-after")),
            (503, ""),
            "{query}: {odd:?}"
        );
    }
    Ok(())
}

#[test]
fn every_form_of_a_watch_is_a_watch() -> Result<()> {
    let Some(site) = Site::start("spelling", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    admin.get(MAPS)?;
    for (n, query) in WATCHES.into_iter().enumerate() {
        let path = format!("{MAPS}{query}&resourceVersion={}", site.cloud.version());
        let mut watch = admin.watch(&path)?;
        assert_eq!(watch.headers["x-hublet-source"], "cloud", "{query}");
        site.cloud.put(map(&format!("new-{n}")))?;
        let event = watch.next_event(SOON)?.unwrap();
        assert_eq!(
            (&event["type"], &event["object"]["kind"]),
            (&json!("ADDED"), &json!("ConfigMap")),
            "{query}"
        );
    }
    assert_eq!(
        site.daemon.fetch_status()?["cloud"]["state"],
        "connected",
        "an open watch is no slow list"
    );
    Ok(())
}

/// A token is believed from when the cloud has answered it as it answers nobody without one.
fn prove(client: &Client) -> Result<()> {
    assert_eq!(client.get(MAPS)?.status, 200);
    Ok(())
}

#[test]
fn an_escaped_slash_stores_no_secret_as_a_document() -> Result<()> {
    let Some(site) = Site::start("spelling", |_| {})? else {
        return Ok(());
    };
    let (plain, odd) = (format!("{SECRETS}/s1"), format!("{SECRETS}%2Fs1"));
    site.cloud.put(secret("s1"))?;
    let admin = site.admin_client()?;
    prove(&admin)?;
    let online = admin.get(&odd)?;
    assert_eq!(
        (online.status, source(&online)),
        (200, "cloud"),
        "{online:?}"
    );
    site.cloud.delete(&plain)?;
    assert_eq!(admin.get(&plain)?.status, 404);
    site.cut_link()?;
    assert_eq!(admin.get(&plain)?.status, 404);
    let stored = admin.get(&odd)?;
    assert_eq!(stored.status, 503, "a deleted Secret: {stored:?}");
    Ok(())
}

#[test]
fn an_escaped_dry_run_deletes_nothing() -> Result<()> {
    let Some(site) = Site::start("spelling", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    for (n, query) in [
        "?dry%52un=All",
        "?dryRun=All&dryRun=",
        "?dryRun=%41ll&unknown=1",
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("{MAPS}/kept-{n}");
        site.cloud.put(map(&format!("kept-{n}")))?;
        assert_eq!(admin.get(&path)?.status, 200);
        let answer = admin.send_json("DELETE", &format!("{path}{query}"), &json!({}))?;
        assert_eq!(
            (answer.status, admin.get(&path)?.status),
            (200, 200),
            "{answer:?}"
        );
        admin.send_json("DELETE", &format!("{path}{query}"), &json!({}))?;
    }
    site.cut_link()?;
    for n in 0..3 {
        let stored = admin.get(&format!("{MAPS}/kept-{n}"))?;
        assert_eq!(
            (stored.status, source(&stored)),
            (200, "store"),
            "it is there: {stored:?}"
        );
    }
    Ok(())
}

/// Before, each query was stored as a document of its own: a hundred OpenAPI documents are 400 MiB.
#[test]
fn a_parameter_that_the_server_ignores_stores_no_document() -> Result<()> {
    let Some(site) = Site::start("spelling", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    prove(&admin)?;
    let documents = || -> Result<u64> {
        Ok(site.daemon.fetch_status()?["store"]["documents"]
            .as_u64()
            .unwrap())
    };
    admin.get("/version?timeout=32s")?;
    let before = eventually(Duration::from_secs(5), "the document is stored", || {
        documents().ok().filter(|stored| *stored > 0)
    })?;
    for n in 0..20 {
        let answer = admin.get(&format!("/version?x={n}"))?;
        assert_eq!(
            (answer.status, source(&answer)),
            (200, "cloud"),
            "{answer:?}"
        );
    }
    assert_eq!(documents()?, before);
    site.cut_link()?;
    let version = admin.get("/version")?;
    assert_eq!(
        (version.status, source(&version)),
        (200, "store"),
        "{version:?}"
    );
    assert_eq!(admin.get("/version?x=1")?.status, 503);
    Ok(())
}

/// Before, a pod that was bound to a node, and so left the watch of pods without one, counted as deleted: offline
/// it was "not found".
#[test]
fn a_pod_that_was_bound_to_a_node_is_not_absent() -> Result<()> {
    let Some(site) = Site::start("spelling", |_| {})? else {
        return Ok(());
    };
    let pods = "/api/v1/namespaces/default/pods";
    let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "namespace": "default"}});
    site.cloud.put(pod.clone())?;
    let admin = site.admin_client()?;
    assert_eq!(admin.get(&format!("{pods}/p"))?.status, 200);
    let version = site.cloud.version();
    let path =
        format!("{pods}?fieldSelector=spec.nodeName%3D&watch=true&resourceVersion={version}");
    let mut watch = admin.watch(&path)?;
    pod["spec"] = json!({"nodeName": "edge-1"});
    site.cloud.put(pod)?;
    assert_eq!(
        watch.next_event(SOON)?.unwrap()["type"],
        "DELETED",
        "it left the selector"
    );
    site.cut_link()?;
    let stored = admin.get(&format!("{pods}/p"))?;
    assert_eq!(
        stored.status, 503,
        "whether it is there isn't known: {stored:?}"
    );
    Ok(())
}

fn post(edge: &Edge, path: &str, object: &Value) -> Result<Value> {
    let answer = edge
        .cloud
        .admin()
        .request("POST", path, Some(("application/json", object)))?;
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
    Ok(answer.json())
}

/// The token of an account that may list one Secret, and nothing else.
fn clerk(edge: &Edge) -> Result<String> {
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let meta = json!({"name": "clerk"});
    post(edge, accounts, &json!({"metadata": meta}))?;
    let rule = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"], "resourceNames": ["s1"]});
    post(
        edge,
        &format!("{rbac}/roles"),
        &json!({"metadata": meta, "rules": [rule]}),
    )?;
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "clerk"});
    let subject = json!({"kind": "ServiceAccount", "name": "clerk", "namespace": "default"});
    let binding = json!({"metadata": meta, "roleRef": role, "subjects": [subject]});
    post(edge, &format!("{rbac}/rolebindings"), &binding)?;
    let token = post(
        edge,
        &format!("{accounts}/clerk/token"),
        &json!({"spec": {}}),
    )?;
    Ok(token["status"]["token"].as_str().unwrap().to_owned())
}

/// The real API server uses the first of two field selectors. Before, hublet used the last: a caller that may list
/// one Secret was taken for one that may list all.
#[test]
fn with_the_real_server_a_right_to_one_secret_stays_one() -> Result<()> {
    Edge::run(|edge| {
        for name in ["s1", "s2"] {
            post(edge, SECRETS, &secret(name))?;
            post(edge, MAPS, &map(name))?;
        }
        let admin = edge.daemon.client(Some(edge.cloud.admin_token()))?;
        let clerk = edge.daemon.client(Some(&clerk(edge)?))?;
        let all = admin.get(SECRETS)?;
        assert!(items(&all) >= 2, "{all:?}");
        let one = clerk.get(&format!("{SECRETS}?fieldSelector=metadata.name%3Ds1"))?;
        assert_eq!((one.status, items(&one)), (200, 1), "{one:?}");
        let doubled = clerk.get(&format!(
            "{SECRETS}?fieldSelector=metadata.name%3Ds1&fieldSelector="
        ))?;
        assert_eq!((doubled.status, items(&doubled)), (200, 1), "{doubled:?}");
        assert_eq!(clerk.get(SECRETS)?.status, 403);

        let maps = admin.get(MAPS)?;
        let mut n = 0;
        ask_filtered(&admin, || {
            n += 1;
            post(
                edge,
                "/api/v1/namespaces/kube-system/configmaps",
                &json!({"metadata": {"name": format!("n{n}")}}),
            )
            .map(drop)
        })?;
        watches_are_open(&admin, &maps)?;
        assert_eq!(edge.daemon.fetch_status()?["cloud"]["state"], "connected");

        edge.fault.set(hublet_tests::fault::Fault::Refuse)?;
        let stolen = clerk.get(SECRETS)?;
        assert_eq!(
            stolen.status,
            503,
            "the cloud never allowed it: {}",
            stolen.text()
        );
        let again = clerk.get(&format!(
            "{SECRETS}?fieldSelector=metadata.name%3Ds1&fieldSelector="
        ))?;
        assert_eq!(again.status, 503, "{}", again.text());
        let stored = admin.get(MAPS)?;
        assert_eq!(
            (stored.status, source(&stored), items(&stored)),
            (200, "store", items(&maps)),
            "{stored:?}"
        );
        Ok(())
    })
}

/// Watches in all words are open at once, from a version after which nothing happens.
fn watches_are_open(admin: &Client, maps: &Answer) -> Result<()> {
    let version = maps.json()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let by_path = "/api/v1/watch/namespaces/default/configmaps";
    let mut paths: Vec<String> = WATCHES
        .iter()
        .map(|query| format!("{MAPS}{query}&"))
        .collect();
    paths.extend([
        format!("{by_path}?"),
        format!("{by_path}/s1?"),
        format!("{by_path}?watch=false&"),
    ]);
    for path in paths {
        let watch = admin.watch(&format!("{path}resourceVersion={version}"))?;
        assert_eq!(
            (watch.status, &watch.headers["x-hublet-source"]),
            (200, &"cloud".parse()?),
            "{path}"
        );
    }
    Ok(())
}
