//! Promise (I2, I4, I5): offline, a node reports what the API server sent last, and nothing else. API servers that lag,
//! a cluster that was restored or replaced, answers in another form than requested, and short-lived events don't make
//! the store serve wrong data, or hide what it has.
//!
//! Each test describes what went wrong: an object that existed was 404, a deleted one came back, or a Pod of another
//! node was listed as this node's.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::time::Duration;

use anyhow::Result;
use http::Request;
use hublet_tests::client::{Answer, Client, Stream};
use hublet_tests::cloud::{ServerFault, ServerFaultRule};
use hublet_tests::eventually::eventually;
use hublet_tests::fault::Fault;
use hublet_tests::kube::edge::Edge;
use hublet_tests::site::Site;
use serde_json::{Value, json};

const NODES: &str = "/api/v1/nodes";
const NODE: &str = "/api/v1/nodes/edge-1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
const SOON: Duration = Duration::from_secs(5);

fn source(answer: &Answer) -> &str {
    answer.header("x-hublet-source")
}

#[track_caller]
fn assert_answer(answer: &Answer, status: u16, from: &str) {
    assert_eq!(
        (answer.status, source(answer)),
        (status, from),
        "{answer:?}"
    );
}

/// One GET of this path is answered so.
fn answer_once(site: &Site, path: &str, code: u16, body: &Value) {
    answer_in(
        site,
        path,
        (code, "application/json"),
        serde_json::to_vec(body).unwrap(),
    );
}

fn answer_in(site: &Site, path: &str, (code, content_type): (u16, &str), body: Vec<u8>) {
    let fault = ServerFault::Exactly {
        code,
        content_type: content_type.to_owned(),
        body,
    };
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("GET", path, fault).times(1));
}

fn get_as(client: &Client, accept: &str, path: &str) -> Result<Answer> {
    client.send(
        Request::get(path)
            .header("accept", accept)
            .body(Vec::new())?,
    )
}

fn not_found() -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound", "code": 404,
        "message": "nodes \"edge-1\" not found", "details": {"name": "edge-1", "kind": "nodes"},
    })
}

fn map(name: &str, labels: &Value, data: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": data},
        "metadata": {"name": name, "namespace": "default", "labels": labels},
    })
}

fn version(answer: &Value) -> String {
    answer["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Before, when a lagging API server answered a GET from its watch cache with 404, later responses with the same
/// resourceVersion were ignored, and offline the node was "not found".
#[test]
fn a_404_from_a_lagging_api_server_gives_way_to_later_answers() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let cached = format!("{NODE}?resourceVersion=0");
    let node = admin.get(NODE)?;
    answer_once(&site, NODE, 404, &not_found());
    assert_eq!(admin.get(&cached)?.status, 404);
    for _ in 0..3 {
        assert_eq!(admin.get(&cached)?.body, node.body);
    }
    site.cut_link()?;
    let stored = admin.get(NODE)?;
    assert_eq!(
        (stored.status, source(&stored), &stored.body),
        (200, "store", &node.body),
        "{stored:?}"
    );
    Ok(())
}

/// Before, the 201 for an object created by server-side apply or PUT was not stored, and offline the object was
/// still "not found", as before its creation.
#[test]
fn objects_created_by_patch_or_put_are_stored() -> Result<()> {
    let Some(site) = Site::start("made", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODE)?.status, 200);
    for method in ["PATCH", "PUT"] {
        let name = method.to_lowercase();
        let (path, mut made) = (format!("{MAPS}/{name}"), map(&name, &json!({}), "1"));
        assert_eq!(admin.get(&path)?.status, 404);
        made["metadata"]["resourceVersion"] = json!("900000");
        made["metadata"]["uid"] = json!(name);
        let body = serde_json::to_vec(&made)?;
        let fault = ServerFault::Exactly {
            code: 201,
            content_type: "application/json".into(),
            body: body.clone(),
        };
        site.cloud
            .server_faults()
            .add_rule(ServerFaultRule::new(method, &path, fault));
        let request = Request::builder()
            .method(method)
            .uri(format!("{path}?fieldManager=a"));
        let answer = admin.send(
            request
                .header("content-type", "application/apply-patch+yaml")
                .body(body)?,
        )?;
        assert_answer(&answer, 201, "cloud");
    }
    site.cut_link()?;
    for name in ["patch", "put"] {
        let stored = admin.get(&format!("{MAPS}/{name}"))?;
        assert_answer(&stored, 200, "store");
        assert_eq!(stored.json()["data"]["a"], "1", "{stored:?}");
    }
    Ok(())
}

/// Before, a write whose response is in a form that isn't stored left an earlier 404 in place.
#[test]
fn i2_a_created_object_is_not_absent_whatever_the_form_of_the_answer() -> Result<()> {
    let Some(site) = Site::start("pretty", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODE)?.status, 200);
    for name in ["made", "other"] {
        assert_eq!(admin.get(&format!("{MAPS}/{name}"))?.status, 404);
    }
    let made = admin.send_json(
        "POST",
        &format!("{MAPS}?pretty=true"),
        &map("made", &json!({}), "1"),
    )?;
    assert_eq!(made.status, 201, "{made:?}");
    site.cut_link()?;
    let unknown = admin.get(&format!("{MAPS}/made"))?;
    assert_answer(&unknown, 503, "hublet");
    Ok(())
}

/// Before, an earlier 404 stayed in place where the write's response could not be read: with a parameter that hublet does
/// not understand, with a body that broke off, or without any response.
#[test]
fn i2_a_perhaps_created_object_is_not_absent() -> Result<()> {
    let Some(site) = Site::start("perhaps", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let mut options = site.daemon.client_options(Some(&site.cloud.admin_token))?;
    options.timeout = Duration::from_secs(2);
    let writer = Client::new(options)?;
    assert_eq!(admin.get(NODE)?.status, 200);
    let writes = [
        ("odd", "?fieldManager=a&fieldManager=b", None),
        ("short", "", Some(ServerFault::Truncate(20))),
        ("cut", "", Some(ServerFault::CutAfter(20))),
        ("lost", "", Some(ServerFault::Break)),
        // Its client leaves before the response comes.
        ("left", "", Some(ServerFault::Hang)),
    ];
    let maps = |namespace: &str| format!("/api/v1/namespaces/{namespace}/configmaps");
    for (name, query, fault) in writes.clone() {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        site.cloud.put(namespace)?;
        assert_eq!(admin.get(&format!("{}/{name}", maps(name)))?.status, 404);
        if let Some(fault) = fault {
            let rule = ServerFaultRule::new("POST", &maps(name), fault);
            site.cloud.server_faults().add_rule(rule.times(1));
        }
        let mut object = map(name, &json!({}), "1");
        object["metadata"]["namespace"] = json!(name);
        let created = writer.send_json("POST", &format!("{}{query}", maps(name)), &object);
        // The others' responses are incomplete or missing.
        if name == "odd" {
            assert_eq!(created?.status, 201);
        }
    }
    site.cut_link()?;
    for (name, ..) in writes {
        let unknown = admin.get(&format!("{}/{name}", maps(name)))?;
        assert_eq!(
            (unknown.status, source(&unknown)),
            (503, "hublet"),
            "{name}: {unknown:?}"
        );
    }
    Ok(())
}

/// Before, the copy from before a change was served if the change's request was not understood.
#[test]
fn i2_after_a_change_whose_response_cant_be_stored_the_former_copy_is_unknown() -> Result<()> {
    let Some(site) = Site::start("changed", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let odd = "?fieldManager=a&fieldManager=b";
    for name in ["put", "patch", "delete", "other"] {
        site.cloud.put(map(name, &json!({"k": "old"}), "1"))?;
        assert_eq!(admin.get(&format!("{MAPS}/{name}"))?.status, 200);
    }
    assert_eq!(admin.get(MAPS)?.status, 200);
    for (method, name) in [("PUT", "put"), ("PATCH", "patch"), ("DELETE", "delete")] {
        let mut new = map(name, &json!({"k": "new"}), "1");
        new["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("resourceVersion");
        let answer = admin.send_json(method, &format!("{MAPS}/{name}{odd}"), &new)?;
        assert_eq!(answer.status, 200, "{method}: {answer:?}");
    }
    site.cut_link()?;
    for (path, expected) in [
        ("/put", (503, "hublet")),
        ("/patch", (503, "hublet")),
        ("/delete", (404, "store")),
        ("", (503, "hublet")),
        ("/other", (200, "store")),
    ] {
        let answer = admin.get(&format!("{MAPS}{path}"))?;
        assert_eq!((answer.status, source(&answer)), expected, "{path}");
    }
    Ok(())
}

/// Before, a list stayed unknown after such a write until it was listed again, although its watch had reported the change.
#[test]
fn a_watched_list_is_whole_again_after_a_write_that_is_not_understood() -> Result<()> {
    let Some(site) = Site::start("watched", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let odd = "?fieldManager=a&fieldManager=b";
    assert_eq!(admin.get(NODE)?.status, 200);
    site.cloud.put(map("changed", &json!({}), "1"))?;
    let listed = version(&admin.get(MAPS)?.json());
    let mut watch = admin.watch(&format!("{MAPS}?watch=true&resourceVersion={listed}"))?;
    let made = admin.send_json(
        "POST",
        &format!("{MAPS}{odd}"),
        &map("made", &json!({}), "1"),
    )?;
    assert_eq!(made.status, 201, "{made:?}");
    let mut new = map("changed", &json!({}), "2");
    let metadata = new["metadata"].as_object_mut().unwrap();
    metadata.remove("resourceVersion");
    let changed = admin.send_json("PUT", &format!("{MAPS}/changed{odd}"), &new)?;
    assert_eq!(changed.status, 200, "{changed:?}");
    see(&mut watch, 2)?;
    site.cut_link()?;
    let list = admin.get(MAPS)?;
    assert_answer(&list, 200, "store");
    let items = list.json()["items"].as_array().unwrap().clone();
    let data = |name: &str| {
        let item = items.iter().find(|item| item["metadata"]["name"] == name);
        item.map(|item| item["data"]["a"].clone())
    };
    assert_eq!(data("made"), Some(json!("1")));
    assert_eq!(data("changed"), Some(json!("2")));
    Ok(())
}

/// Before, the object in the answer to the update that removed its last finalizer was served as if it existed.
#[test]
fn i2_an_object_whose_last_finalizer_was_removed_is_gone() -> Result<()> {
    let Some(site) = Site::start("finalizer", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODE)?.status, 200);
    let path = format!("{MAPS}/held");
    let mut held = map("held", &json!({}), "1");
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    site.cloud.put(held)?;
    assert_eq!(admin.get(&path)?.status, 200);
    let marked = admin.send_json("DELETE", &path, &json!({}))?.json();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let mut freed = admin.get(&path)?.json();
    freed["metadata"]["finalizers"] = json!([]);
    let answer = admin.send_json("PUT", &path, &freed)?;
    assert_eq!(answer.status, 200, "{answer:?}");
    site.cut_link()?;
    assert_answer(&admin.get(&path)?, 404, "store");
    Ok(())
}

/// The same at the real API server, and a `Scale`, which has its Deployment's resourceVersion.
#[test]
fn i2_the_real_api_servers_answers_to_writes_are_understood() -> Result<()> {
    Edge::run(|edge| {
        let (admin, client) = (
            edge.cloud.admin(),
            edge.daemon.client(Some(edge.cloud.admin_token()))?,
        );
        let held = format!("{MAPS}/held");
        let mut object = map("held", &json!({}), "1");
        object["metadata"] = json!({"name": "held", "finalizers": ["example.com/held"]});
        admin.create(MAPS, &object)?;
        client.send_json("DELETE", &held, &json!({}))?;
        let mut freed = client.get(&held)?.json();
        assert!(freed["metadata"]["deletionTimestamp"].is_string());
        freed["metadata"]["finalizers"] = json!([]);
        let answer = client.send_json("PUT", &held, &freed)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(admin.request("GET", &held, None)?.status, 404);

        let deployments = "/apis/apps/v1/namespaces/default/deployments";
        admin.create(deployments, &deployment("web"))?;
        let listed = version(&client.get(deployments)?.json());
        let mut watch = client.watch(&format!(
            "{deployments}?watch=true&resourceVersion={listed}"
        ))?;
        let patch = json!({"spec": {"replicas": 3}});
        let scaled = client.send_json("PATCH", &format!("{deployments}/web/scale"), &patch)?;
        assert_eq!(scaled.status, 200, "{scaled:?}");
        // Controllers change it too.
        let written = version(&scaled.json());
        loop {
            let event = watch.next_event(SOON)?.expect("the write is shown");
            if version(&event["object"]) == written {
                break;
            }
        }
        edge.fault.set(Fault::Refuse)?;
        assert_answer(&client.get(&held)?, 404, "store");
        let list = client.get(deployments)?;
        assert_answer(&list, 200, "store");
        assert_eq!(list.json()["items"][0]["spec"]["replicas"], 3);
        Ok(())
    })
}

fn deployment(name: &str) -> Value {
    let labels = json!({"app": name});
    let containers = json!([{"name": "a", "image": "example.com/a"}]);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
    })
}

/// Before, anyone could make the known absences of a collection unknown by writes that were broken off.
#[test]
fn a_write_that_a_stranger_breaks_off_makes_no_absence_unknown() -> Result<()> {
    let Some(site) = Site::start("stranger", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let missing = format!("{MAPS}/missing");
    assert_eq!(admin.get(NODE)?.status, 200);
    assert_eq!(admin.get(&missing)?.status, 404);
    let mut options = site.daemon.client_options(Some("a-token-of-nobody"))?;
    options.timeout = Duration::from_secs(1);
    let stranger = Client::new(options)?;
    let rule = ServerFaultRule::new("POST", MAPS, ServerFault::Hang);
    site.cloud.server_faults().add_rule(rule.times(1));
    let object = map("missing", &json!({}), "1");
    assert!(stranger.send_json("POST", MAPS, &object).is_err());
    site.cut_link()?;
    let absent = admin.get(&missing)?;
    assert_eq!((absent.status, source(&absent)), (404, "store"));
    Ok(())
}

/// Before, a list was stored without its items of another namespace, and served as all there was; one of another kind was
/// stored as an empty list.
#[test]
fn i2_a_list_of_what_was_not_requested_is_unknown() -> Result<()> {
    let Some(site) = Site::start("otherlist", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODE)?.status, 200);
    let mut elsewhere = map("b", &json!({}), "1");
    elsewhere["metadata"]["namespace"] = json!("elsewhere");
    for (kind, items) in [
        ("ConfigMapList", json!([elsewhere])),
        ("PodList", json!([])),
    ] {
        let meta = json!({"resourceVersion": "1000000"});
        let list = json!({"kind": kind, "apiVersion": "v1", "metadata": meta, "items": items});
        answer_once(&site, MAPS, 200, &list);
        let answer = admin.get(MAPS)?;
        assert_eq!((answer.status, source(&answer)), (200, "cloud"));
        assert_eq!(answer.json()["kind"], kind);
    }
    site.cut_link()?;
    let unknown = admin.get(MAPS)?;
    assert_eq!((unknown.status, source(&unknown)), (503, "hublet"));
    Ok(())
}

/// Before, a client that got 409 for creating an object that exists already got 404 for it offline: the 404 from
/// before somebody else created it was still in place.
#[test]
fn i2_an_object_that_exists_already_is_not_absent() -> Result<()> {
    let Some(site) = Site::start("already", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let path = format!("{MAPS}/taken");
    assert_eq!(admin.get(NODE)?.status, 200);
    assert_eq!(admin.get(&path)?.status, 404);
    site.cloud.put(map("taken", &json!({}), "1"))?;
    let refused = admin.send_json("POST", MAPS, &map("taken", &json!({}), "2"))?;
    assert_answer(&refused, 409, "cloud");
    site.cut_link()?;
    let answer = admin.get(&path)?;
    assert_answer(&answer, 503, "hublet");
    Ok(())
}

/// Before, a client that got 404 for changing an object got its old copy offline.
#[test]
fn an_object_that_a_write_did_not_find_is_gone() -> Result<()> {
    let Some(site) = Site::start("gone", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    for (method, content_type) in [
        ("PATCH", "application/merge-patch+json"),
        ("PUT", "application/json"),
    ] {
        let (path, object) = (
            format!("{MAPS}/{}", method.to_lowercase()),
            method.to_lowercase(),
        );
        site.cloud.put(map(&object, &json!({}), "1"))?;
        assert_eq!(admin.get(&path)?.status, 200);
        site.cloud.delete(&path)?;
        let body = serde_json::to_vec(&map(&object, &json!({}), "2"))?;
        let request = Request::builder().method(method).uri(&path);
        let answer = admin.send(request.header("content-type", content_type).body(body)?)?;
        assert_answer(&answer, 404, "cloud");
    }
    site.cut_link()?;
    for name in ["patch", "put"] {
        let answer = admin.get(&format!("{MAPS}/{name}"))?;
        assert_answer(&answer, 404, "store");
    }
    Ok(())
}

/// Before, a client that requested an object at a resourceVersion, or later, got a 404 from before that version.
#[test]
fn i2_an_absence_is_no_newer_than_its_404() -> Result<()> {
    let Some(site) = Site::start("since", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let path = format!("{MAPS}/gone");
    assert_eq!(admin.get(NODE)?.status, 200);
    for _ in 0..2 {
        assert_eq!(admin.get(&path)?.status, 404);
        site.cut_link()?;
        let answer = admin.get(&format!("{path}?resourceVersion=0"))?;
        assert_answer(&answer, 404, "store");
        let answer = admin.get(&format!("{path}?resourceVersion=1000000"))?;
        assert_answer(&answer, 503, "hublet");
        site.fault.set(Fault::None)?;
        eventually(SOON, "connected", || {
            (source(&admin.get(&path).ok()?) == "cloud").then_some(())
        })?;
        // The second time the object itself may be read, not the news of its absence alone.
        let made = admin.send_json("POST", MAPS, &map("gone", &json!({}), "1"))?;
        assert_eq!(made.status, 201, "{made:?}");
        assert_eq!(admin.get(&path)?.status, 200);
        assert_eq!(
            admin.send(Request::delete(&path).body(Vec::new())?)?.status,
            200
        );
    }
    Ok(())
}

#[test]
fn a_lagging_api_server_restores_no_old_objects() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let before = admin.get(NODE)?.json();
    let list = admin.get(NODES)?;
    let mut node = before.clone();
    node["metadata"]["labels"]["changed"] = json!("yes");
    site.cloud.put(node)?;
    let now = admin.get(NODE)?;
    for _ in 0..3 {
        answer_once(&site, NODE, 200, &before);
        assert_eq!(
            admin.get(&format!("{NODE}?resourceVersion=0"))?.json(),
            before
        );
        answer_in(&site, NODES, (200, "application/json"), list.body.to_vec());
        admin.get(&format!("{NODES}?resourceVersion=0"))?;
    }
    site.cut_link()?;
    assert_eq!(admin.get(NODE)?.body, now.body);
    assert_eq!(
        admin.get(NODES)?.json()["items"][0]["metadata"],
        now.json()["metadata"]
    );
    Ok(())
}

/// The cluster is replaced by another one at the same address, whose objects have other uids and lower
/// resourceVersions. Before, they were taken for old copies: forwarded while the cloud answered, but never stored.
#[test]
fn the_state_of_a_replaced_cluster_is_adopted() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    site.cloud.put(map("former", &json!({}), "1"))?;
    let former = format!("{MAPS}/former");
    let (node, list) = (admin.get(NODE)?.json(), admin.get(NODES)?.json());
    assert_eq!(admin.get(&former)?.status, 200);
    let other = |mut object: Value| {
        object["metadata"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
        object["metadata"]["resourceVersion"] = json!("7");
        object
    };
    for _ in 0..2 {
        answer_once(&site, NODE, 200, &other(node.clone()));
        admin.get(NODE)?;
    }
    // Its online answers are served offline; the list of the former cluster is not.
    site.cut_link()?;
    let stored = admin.get(NODE)?;
    assert_eq!(
        stored.json()["metadata"],
        other(node)["metadata"],
        "{stored:?}"
    );
    let nodes = admin.get(NODES)?;
    assert_eq!(nodes.status, 503, "{nodes:?} for {list}");
    Ok(())
}

/// The uid of kube-system identifies a cluster: of the former one no object is served, and no grant counts.
#[test]
fn another_kube_system_is_another_cluster() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let path = "/api/v1/namespaces/kube-system";
    let mut namespace = admin.get(path)?.json();
    let node = admin.get(NODE)?;
    assert_eq!((node.status, admin.get(NODES)?.status), (200, 200));
    namespace["metadata"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
    namespace["metadata"]["resourceVersion"] = json!("5");
    answer_once(&site, path, 200, &namespace);
    assert_eq!(admin.get(path)?.json(), namespace);
    eventually(SOON, "the store has begun anew", || {
        let store = site.daemon.fetch_status().ok()?["store"].clone();
        (store["objects"] == 1 && store["collections"] == 0).then_some(())
    })?;
    site.cut_link()?;
    for former in [NODE, NODES] {
        let stored = admin.get(former)?;
        assert!(
            stored.status >= 400 && stored.status != 404,
            "{former}: {stored:?}"
        );
    }
    Ok(())
}

/// After etcd was restored from a backup, the resourceVersions of lists are lower than before.
#[test]
fn the_state_of_a_restored_cluster_is_adopted() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let online = admin.get(NODES)?;
    let list = online.json();
    let (whole, item) = (version(&list), version(&list["items"][0]));
    // In the order in which the API server writes it.
    let restored = online
        .text()
        .replace(
            &format!(r#""resourceVersion":"{whole}""#),
            r#""resourceVersion":"900""#,
        )
        .replace(
            &format!(r#""resourceVersion":"{item}""#),
            r#""resourceVersion":"800""#,
        )
        .replace(r#""labels":{"#, r#""labels":{"restored":"yes","#);
    for _ in 0..2 {
        answer_in(
            &site,
            NODES,
            (200, "application/json"),
            restored.clone().into_bytes(),
        );
        assert_eq!(admin.get(NODES)?.text(), restored);
    }
    site.cut_link()?;
    let stored = admin.get(NODES)?;
    assert_answer(&stored, 200, "store");
    assert_eq!(version(&stored.json()), "900");
    assert_eq!(
        stored.json()["items"][0]["metadata"]["labels"]["restored"],
        "yes"
    );
    Ok(())
}

/// The type of a watch's first event, and all of it; nothing where it stays open and silent for a while.
fn first_event(watch: &mut Stream) -> Option<Value> {
    watch.next_event(Duration::from_millis(500)).ok().flatten()
}

/// Reads a forwarded watch until this many events have passed, so that the store has seen them, too.
fn see(watch: &mut Stream, events: usize) -> Result<()> {
    for _ in 0..events {
        assert!(watch.next_event(SOON)?.is_some());
    }
    Ok(())
}

/// Before, an offline watch from an older resourceVersion received none of the changes that the store had since
/// then.
#[test]
fn i5_a_watch_from_an_older_version_gets_the_known_changes() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    for name in ["kept", "changed", "deleted"] {
        site.cloud.put(map(name, &json!({}), "1"))?;
    }
    let oldest = version(&admin.get(MAPS)?.json());
    let path = |from: &str| format!("{MAPS}?watch=true&resourceVersion={from}");
    let mut online = admin.watch(&path(&oldest))?;
    site.cloud.delete(&format!("{MAPS}/deleted"))?;
    see(&mut online, 1)?;
    let older = site.cloud.version().to_string();
    site.cloud.put(map("changed", &json!({}), "2"))?;
    see(&mut online, 1)?;
    site.cut_link()?;

    let mut watch = admin.watch(&path(&oldest))?;
    assert_eq!(
        (watch.status, watch.headers["x-hublet-source"].to_str()?),
        (200, "store")
    );
    let event = first_event(&mut watch).expect("a deletion is known");
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&json!("ERROR"), &json!(410)),
        "{event}"
    );
    assert_eq!(event["object"]["reason"], "Expired");
    assert_eq!(watch.next_event(SOON)?, None, "and ends");

    let event = first_event(&mut admin.watch(&path(&older))?).expect("a change is known");
    assert_eq!(
        (&event["type"], &event["object"]["data"]["a"]),
        (&json!("MODIFIED"), &json!("2")),
        "{event}"
    );

    let listed = version(&admin.get(MAPS)?.json());
    assert_eq!(
        first_event(&mut admin.watch(&path(&listed))?),
        None,
        "open, and nothing to say"
    );
    let newer = (listed.parse::<u64>()? + 1_000).to_string();
    assert_eq!(
        first_event(&mut admin.watch(&path(&newer))?),
        None,
        "nothing newer is known"
    );
    Ok(())
}

/// A change beyond the list's own resourceVersion can't be sent as an event: the client would continue from there
/// and miss changes of others before it. Therefore the client has to list again, once.
#[test]
fn i5_a_change_beyond_the_list_needs_one_new_list() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    for name in ["kept", "gone"] {
        site.cloud.put(map(name, &json!({}), "1"))?;
    }
    let listed = version(&admin.get(MAPS)?.json());
    let path = format!("{MAPS}?watch=true&resourceVersion={listed}");
    let gone = format!("{MAPS}/gone");
    site.cloud.delete(&gone)?;
    assert_eq!(admin.get(&gone)?.status, 404);
    // It may watch, and this watch, which begins behind the list, does not carry the list on.
    drop(admin.watch(&format!(
        "{MAPS}?watch=true&resourceVersion={}",
        site.cloud.version()
    ))?);
    site.cut_link()?;
    let event = first_event(&mut admin.watch(&path)?).expect("the deletion is known");
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&json!("ERROR"), &json!(410)),
        "{event}"
    );
    let again = admin.get(MAPS)?.json();
    assert_eq!(
        (again["items"].as_array().map(Vec::len), version(&again)),
        (Some(1), listed)
    );
    assert_eq!(
        first_event(&mut admin.watch(&path)?),
        None,
        "it knows by now"
    );
    Ok(())
}

#[test]
fn i5_a_watch_reports_objects_that_left_its_selection() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    site.cloud.put(map("moves", &json!({"app": "x"}), "1"))?;
    site.cloud.put(map("stays", &json!({"app": "x"}), "1"))?;
    let selected = format!("{MAPS}?labelSelector=app%3Dx");
    let listed = version(&admin.get(&selected)?.json());
    let path = format!("{selected}&watch=true&resourceVersion={listed}");
    let mut online = admin.watch(&path)?;
    site.cloud.put(map("moves", &json!({"app": "y"}), "1"))?;
    see(&mut online, 1)?;
    site.cut_link()?;
    let event = first_event(&mut admin.watch(&path)?).expect("it is known to have left");
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&json!("ERROR"), &json!(410)),
        "{event}"
    );
    let again = admin.get(&selected)?.json();
    assert_eq!(again["items"].as_array().map(Vec::len), Some(1), "{again}");
    Ok(())
}

/// Before, a list with selectors still had an object that no longer matched, although a response to another client
/// had shown the change.
#[test]
fn i2_a_selection_whose_member_has_changed_since_is_unknown() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let selected = format!("{MAPS}?labelSelector=app%3Dx");
    site.cloud.put(map("moves", &json!({"app": "x"}), "1"))?;
    assert_eq!(
        admin.get(&selected)?.json()["items"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    site.cloud.put(map("moves", &json!({"app": "y"}), "1"))?;
    assert_eq!(
        admin.get(&format!("{MAPS}/moves"))?.json()["metadata"]["labels"]["app"],
        "y"
    );
    site.cut_link()?;
    let stored = admin.get(&selected)?;
    assert_answer(&stored, 503, "hublet");
    Ok(())
}

/// Before, the empty list of one API version was served for another, which the API server may not have at all.
#[test]
fn i2_an_empty_list_belongs_to_the_requested_api_version() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let (path, other) = ("/apis/x.io/v1/things", "/apis/x.io/v2/things");
    let empty = json!({
        "apiVersion": "x.io/v1", "items": [], "kind": "ThingList",
        "metadata": {"continue": "", "resourceVersion": "50"},
    });
    answer_once(&site, path, 200, &empty);
    assert_eq!(admin.get(path)?.status, 200);
    site.cut_link()?;
    let stored = admin.get(path)?;
    assert_answer(&stored, 200, "store");
    let unknown = admin.get(other)?;
    assert_answer(&unknown, 503, "hublet");
    Ok(())
}

/// Before, a watch of such a selection received nothing, as if nothing had changed.
#[test]
fn i5_a_watch_of_a_selection_whose_member_has_changed_since_ends() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let selected = format!("{MAPS}?labelSelector=app%3Dx");
    site.cloud.put(map("moves", &json!({"app": "x"}), "1"))?;
    let listed = version(&admin.get(&selected)?.json());
    let path = format!("{selected}&watch=true&resourceVersion={listed}");
    drop(admin.watch(&path)?);
    site.cloud.put(map("moves", &json!({"app": "y"}), "1"))?;
    assert_eq!(
        admin.get(&format!("{MAPS}/moves"))?.json()["metadata"]["labels"]["app"],
        "y"
    );
    site.cut_link()?;
    let event = first_event(&mut admin.watch(&path)?).expect("a member is known to have changed");
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&json!("ERROR"), &json!(410)),
        "{event}"
    );
    Ok(())
}

/// A pod never changes its node, but another pod of the same name may run elsewhere (of a StatefulSet). Before, it
/// was listed as this node's, and the kubelet would have started it a second time.
#[test]
fn i2_a_pod_of_the_same_name_on_another_node_is_not_this_nodes() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let pod = |node: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "default"},
            "spec": {"nodeName": node, "containers": []},
        })
    };
    let (path, mine) = (
        "/api/v1/namespaces/default/pods/web-0",
        "/api/v1/pods?fieldSelector=spec.nodeName%3Dhere",
    );
    site.cloud.put(pod("here"))?;
    assert_eq!(
        admin.get(mine)?.json()["items"].as_array().map(Vec::len),
        Some(1)
    );
    let mut changed = pod("here");
    changed["metadata"]["labels"] = json!({"changed": "yes"});
    site.cloud.put(changed)?;
    assert_eq!(admin.get(path)?.json()["spec"]["nodeName"], "here");
    site.cut_link()?;
    let stored = admin.get(mine)?.json();
    assert_eq!(
        stored["items"][0]["metadata"]["labels"]["changed"], "yes",
        "it has its node still: {stored}"
    );
    site.fault.set(Fault::None)?;
    eventually(SOON, "the cloud is back", || {
        let answer = admin.get(path).ok()?;
        (source(&answer) == "cloud").then_some(())
    })?;
    site.cloud.delete(path)?;
    site.cloud.put(pod("there"))?;
    assert_eq!(admin.get(path)?.json()["spec"]["nodeName"], "there");
    site.cut_link()?;
    let stored = admin.get(mine)?;
    assert_answer(&stored, 503, "hublet");
    Ok(())
}

/// Before, offline watches reported an `Age` of zero for their initial events.
#[test]
fn an_offline_watch_is_as_old_as_its_list() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let listed = version(&admin.get(NODES)?.json());
    let path = format!("{NODES}?watch=true&resourceVersion={listed}");
    drop(admin.watch(&path)?);
    site.cut_link()?;
    eventually(SOON, "the list is two seconds old", || {
        let answer = admin.get(NODES).ok()?;
        (answer.header("age").parse::<u64>().ok()? >= 2).then_some(())
    })?;
    let age: u64 = admin.watch(&path)?.headers["age"].to_str()?.parse()?;
    assert!(age >= 2, "Age: {age}");
    Ok(())
}

/// `kubectl get` accepts a Table or plain objects. Before, the response of a server that sends plain objects was
/// stored as neither, so that `kubectl get` failed offline.
#[test]
fn a_plain_list_in_the_place_of_a_table_is_stored() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    for path in [NODES, NODE, "/apis/crd.projectcalico.org/v1/ippools"] {
        let online = get_as(&admin, TABLE, path)?;
        assert!(
            online.status == 200 && online.json()["kind"] != "Table",
            "{online:?}"
        );
    }
    site.cut_link()?;
    for path in [NODES, NODE, "/apis/crd.projectcalico.org/v1/ippools"] {
        let stored = get_as(&admin, TABLE, path)?;
        assert_answer(&stored, 200, "store");
        assert_eq!(admin.get(path)?.status, 200);
    }
    Ok(())
}

/// `kubectl get` requests 500 objects at a time. Before, a Table in several pages was not stored.
#[test]
fn i2_a_table_in_pages_is_stored_as_a_whole() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let page = |name: &str, next: &str| {
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"resourceVersion": "5000", "continue": next},
            "columnDefinitions": [{"name": "Name", "type": "string"}], "rows": [{"cells": [name]}],
        })
    };
    let first = format!("{MAPS}?limit=500");
    for (path, page) in [
        (first.clone(), page("a", "next")),
        (format!("{first}&continue=next"), page("b", "")),
    ] {
        answer_once(&site, MAPS, 200, &page);
        assert_eq!(get_as(&admin, TABLE, &path)?.json(), page);
    }
    site.cut_link()?;
    let stored = get_as(&admin, TABLE, &first)?;
    assert_answer(&stored, 200, "store");
    let table = stored.json();
    assert_eq!(
        (&table["kind"], version(&table).as_str()),
        (&json!("Table"), "5000")
    );
    assert_eq!(table["rows"], json!([{"cells": ["a"]}, {"cells": ["b"]}]));
    assert_eq!(
        table["metadata"]["continue"],
        Value::Null,
        "there is no next page"
    );
    // A Table is no newer than what it says, has no second page, and has other columns in another API version.
    let other = MAPS.replace("/v1/", "/v2/");
    for (path, code) in [
        (format!("{MAPS}?resourceVersion=5001"), 503),
        (
            format!("{MAPS}?resourceVersion=4999&resourceVersionMatch=Exact&limit=500"),
            503,
        ),
        (format!("{first}&continue=next"), 503),
        (other, 503),
    ] {
        let refused = get_as(&admin, TABLE, &path)?;
        assert_eq!(
            (refused.status, source(&refused)),
            (code, "hublet"),
            "{path}: {refused:?}"
        );
    }
    Ok(())
}

/// Before, when a newer list lacked a stored object, the object was removed without being recorded as absent, and
/// an older Table still showed it.
#[test]
fn a_table_from_before_a_list_does_not_show_what_that_lacks() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let list = |version: &str, names: &[&str]| {
        let item = |name: &&str| {
            let metadata = json!({"name": name, "namespace": "default", "resourceVersion": "7"});
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata})
        };
        let items: Vec<Value> = names.iter().map(item).collect();
        json!({
            "kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items,
        })
    };
    let table = json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": "5000"},
        "columnDefinitions": [{"name": "Name", "type": "string"}], "rows": [{"cells": ["a"]}, {"cells": ["b"]}],
    });
    for (accept, answer) in [
        ("*/*", list("4999", &["a", "b"])),
        (TABLE, table),
        ("*/*", list("5001", &["a"])),
    ] {
        answer_once(&site, MAPS, 200, &answer);
        assert_eq!(get_as(&admin, accept, MAPS)?.json(), answer);
    }
    site.cut_link()?;
    let stored = get_as(&admin, TABLE, MAPS)?;
    assert_answer(&stored, 200, "store");
    let stored = stored.json();
    assert_eq!(
        (&stored["kind"], version(&stored).as_str()),
        (&json!("ConfigMapList"), "5001"),
        "{stored}"
    );
    assert_eq!(stored["items"].as_array().unwrap().len(), 1, "{stored}");
    Ok(())
}

/// Before, when a newer list lacked an object that only a Table had shown, nothing was removed from the store, and
/// the Table still showed it.
#[test]
fn a_table_gives_way_to_a_later_list_that_lacks_one_of_its_rows() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let object = |name: &str| {
        let metadata = json!({"name": name, "namespace": "default", "resourceVersion": "7"});
        json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata})
    };
    let table = |version: &str, names: &[&str]| {
        let row = |name: &&str| json!({"cells": [name], "object": object(name)});
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version},
            "columnDefinitions": [{"name": "Name", "type": "string"}],
            "rows": names.iter().map(row).collect::<Vec<_>>(),
        })
    };
    let list = |version: &str, names: &[&str]| {
        let items: Vec<Value> = names.iter().map(|name| object(name)).collect();
        json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items})
    };
    let (one, selected) = (format!("{MAPS}/b"), format!("{MAPS}?labelSelector=x"));
    for (path, accept, answer) in [
        (MAPS, TABLE, table("5000", &["a", "b"])),
        (&selected, TABLE, table("5000", &["a", "b"])),
        (&one, TABLE, table("7", &["b"])),
        (MAPS, "*/*", list("5001", &["a"])),
    ] {
        answer_once(&site, path.split('?').next().unwrap(), 200, &answer);
        assert_eq!(get_as(&admin, accept, path)?.json(), answer);
    }
    // Another list as long as the Table takes nothing from it.
    let all = "/api/v1/namespaces/other/configmaps";
    for (accept, answer) in [(TABLE, table("5000", &[])), ("*/*", list("5001", &[]))] {
        answer_once(&site, all, 200, &answer);
        assert_eq!(get_as(&admin, accept, all)?.json(), answer);
    }
    site.cut_link()?;
    assert_eq!(get_as(&admin, TABLE, all)?.json()["kind"], "Table");
    let stored = get_as(&admin, TABLE, MAPS)?;
    assert_eq!(
        (stored.status, stored.json()["kind"].as_str()),
        (200, Some("ConfigMapList")),
        "{stored:?}"
    );
    for path in [&one, &selected] {
        let stored = get_as(&admin, TABLE, path)?;
        assert_eq!(
            (stored.status, source(&stored)),
            (503, "hublet"),
            "{path}: {stored:?}"
        );
    }
    Ok(())
}

/// `varint(len)` of a length below 128, and the bytes: a field of a protobuf message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [
        &[number << 3 | 2, u8::try_from(bytes.len()).unwrap()],
        bytes,
    ]
    .concat()
}

/// A metadata-only watch in protobuf of an empty collection has no object that shows its form, only a bookmark.
/// Before, it was stored as the collection itself, and a plain list was answered with a
/// `PartialObjectMetadataList`.
#[test]
fn metadata_alone_is_not_the_collection() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let maps = "/api/v1/namespaces/kube-public/configmaps";
    // A token proves itself by what not everybody may read.
    admin.get(NODES)?;
    let online = admin.get(maps)?;
    let bookmark = {
        let end = [field(1, b"k8s.io/initial-events-end"), field(2, b"true")].concat();
        let meta = field(1, &[field(6, b"5000"), field(12, &end)].concat());
        let kind = [
            field(1, b"meta.k8s.io/v1"),
            field(2, b"PartialObjectMetadata"),
        ]
        .concat();
        let object = [
            b"k8s\0".to_vec(),
            field(1, &kind),
            field(2, &meta),
            vec![0x1a, 0, 0x22, 0],
        ]
        .concat();
        // 128 bytes and more take two bytes of length.
        let wrap = |number: u8, bytes: &[u8]| {
            let len = u16::try_from(bytes.len()).unwrap();
            let low = u8::try_from(len & 0x7f).unwrap() | 0x80;
            [
                &[number << 3 | 2, low, u8::try_from(len >> 7).unwrap()],
                bytes,
            ]
            .concat()
        };
        let event = [field(1, b"BOOKMARK"), wrap(2, &wrap(1, &object))].concat();
        [
            u32::try_from(event.len()).unwrap().to_be_bytes().to_vec(),
            event,
        ]
        .concat()
    };
    let media = "application/vnd.kubernetes.protobuf;stream=watch";
    answer_in(&site, maps, (200, media), bookmark.clone());
    let path = format!(
        "{maps}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let accept = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    assert_eq!(get_as(&admin, accept, &path)?.body, bookmark);
    site.cut_link()?;
    let stored = admin.get(maps)?;
    assert_eq!(
        (stored.status, &stored.body),
        (200, &online.body),
        "{stored:?}"
    );
    Ok(())
}

/// The API server drops an Event after an hour. Before, Events that the node's own components create were stored
/// for ever.
#[test]
fn events_that_a_node_posts_are_not_kept() -> Result<()> {
    let Some(site) = Site::start("truth", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let events = "/api/v1/namespaces/default/events";
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e1", "namespace": "default"}});
    let path = format!("{events}/e1");
    assert_eq!(admin.get(&path)?.status, 404);
    assert_eq!(admin.send_json("POST", events, &event)?.status, 201);
    site.cut_link()?;
    let stored = admin.get(&path)?;
    assert!(
        !matches!(stored.status, 200 | 404),
        "neither kept nor said to be absent: {stored:?}"
    );
    Ok(())
}
