//! Promise: the scriptable cloud answers as the real API server does, keeps its users apart, and records its requests.
//!
//! Other suites rely on it, so an inaccurate answer here would hide a bug of hublet there. Texts and field orders below
//! are copied from recorded traffic of kube-apiserver 1.34.4.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]
use std::time::Duration;

use http::Request;
use hublet_tests::client::{Answer, Client, Options};
use hublet_tests::cloud::{self, Cloud, Rule, User};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
const CALICO: &str = "/apis/crd.projectcalico.org/v1";

fn cloud() -> Cloud {
    Cloud::start(cloud::Options::default()).unwrap()
}

fn client(cloud: &Cloud, token: Option<&str>) -> Client {
    Client::new(Options::new(&cloud.url(), cloud.ca.pem(), token)).unwrap()
}

fn admin(cloud: &Cloud) -> Client {
    client(cloud, Some(&cloud.admin_token))
}

/// The body with what differs from run to run replaced: uids, versions and times.
fn normal(body: &str, known: &Value) -> String {
    let mut body = body.trim_end_matches('\n').to_owned();
    for (field, name) in [
        ("uid", "UID"),
        ("resourceVersion", "RV"),
        ("creationTimestamp", "TIME"),
    ] {
        if let Some(value) = known["metadata"][field].as_str() {
            body = body.replace(value, name);
        }
    }
    body
}

fn create(client: &Client, path: &str, object: &Value) -> Value {
    let answer = client.send_json("POST", path, object).unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

#[test]
fn a_custom_resource_is_written_with_sorted_keys_and_a_builtin_in_struct_order() {
    let cloud = cloud();
    let admin = admin(&cloud);
    let handle = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMHandle", "metadata": {"name": "fx"},
        "spec": {"handleID": "fx", "block": {"10.244.0.0/26": 1_795_365_173_949_336_809_u64}, "deleted": false}});
    let made = create(&admin, &format!("{CALICO}/ipamhandles"), &handle);
    let got = admin.get(&format!("{CALICO}/ipamhandles/fx")).unwrap();
    assert_eq!(got.header("content-type"), "application/json");
    assert_eq!(got.header("cache-control"), "no-cache, private");
    assert!(got.text().ends_with("}\n"));
    assert_eq!(
        normal(&got.text(), &made),
        r#"{"apiVersion":"crd.projectcalico.org/v1","kind":"IPAMHandle","metadata":{"creationTimestamp":"TIME","generation":1,"name":"fx","resourceVersion":"RV","uid":"UID"},"spec":{"block":{"10.244.0.0/26":1795365173949336809},"deleted":false,"handleID":"fx"}}"#
    );
    let body = r#"{"metadata":{"labels":{"app":"fx"},"name":"fx1"},"data":{"k":"<v>"},"kind":"ConfigMap","apiVersion":"v1"}"#;
    let request = Request::post("/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/json");
    let made = admin.send(request.body(body.into()).unwrap()).unwrap();
    assert_eq!(
        normal(&made.text(), &made.json()),
        r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"fx1","namespace":"default","uid":"UID","resourceVersion":"RV","creationTimestamp":"TIME","labels":{"app":"fx"}},"data":{"k":"\u003cv\u003e"}}"#
    );
}

#[test]
fn lists_have_the_real_servers_order_and_bare_builtin_items() {
    let cloud = cloud();
    let admin = admin(&cloud);
    let account = cloud
        .get("/api/v1/namespaces/default/serviceaccounts/default")
        .unwrap()
        .unwrap();
    let list = admin
        .get("/api/v1/namespaces/default/serviceaccounts")
        .unwrap();
    let version = cloud.version();
    assert_eq!(
        normal(&list.text(), &account),
        format!(
            r#"{{"kind":"ServiceAccountList","apiVersion":"v1","metadata":{{"resourceVersion":"{version}"}},"items":[{{"metadata":{{"name":"default","namespace":"default","uid":"UID","resourceVersion":"RV","creationTimestamp":"TIME"}}}}]}}"#
        )
    );
    let empty = admin.get(&format!("{CALICO}/ipamconfigs")).unwrap();
    assert_eq!(
        empty.text(),
        format!(
            "{{\"apiVersion\":\"crd.projectcalico.org/v1\",\"items\":[],\"kind\":\"IPAMConfigList\",\"metadata\":{{\"continue\":\"\",\"resourceVersion\":\"{version}\"}}}}\n"
        )
    );
    let tiers = admin.get(&format!("{CALICO}/tiers")).unwrap();
    assert!(tiers.text().starts_with(
        r#"{"apiVersion":"crd.projectcalico.org/v1","items":[{"apiVersion":"crd.proj"#
    ));
}

/// Method, path, body, code, and the recorded body.
const REFUSALS: &[(&str, &str, &str, u16, &str)] = &[
    (
        "GET",
        "/apis/crd.projectcalico.org/v1/ipamconfigs/default",
        "",
        404,
        r#""message":"ipamconfigs.crd.projectcalico.org \"default\" not found","reason":"NotFound","details":{"name":"default","group":"crd.projectcalico.org","kind":"ipamconfigs"},"code":404}"#,
    ),
    (
        "GET",
        "/api/v1/namespaces/default/configmaps/nope",
        "",
        404,
        r#""message":"configmaps \"nope\" not found","reason":"NotFound","details":{"name":"nope","kind":"configmaps"},"code":404}"#,
    ),
    (
        "GET",
        "/api/v1/namespaces/default/configmaps?resourceVersion=abc",
        "",
        400,
        r#""message":"invalid resource version: resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax","reason":"BadRequest","code":400}"#,
    ),
    (
        "GET",
        "/api/v1/namespaces/default/configmaps?fieldSelector=data.x%3Dy",
        "",
        400,
        r#""message":"\"data.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"","reason":"BadRequest","code":400}"#,
    ),
    (
        "GET",
        "/api/v1/namespaces/default/configmaps?labelSelector=%3D%3D%3D",
        "",
        400,
        r#""message":"found '==', expected: !, identifier, or 'end of string'","reason":"BadRequest","code":400}"#,
    ),
    (
        "GET",
        "/api/v1/namespaces/default/configmaps?resourceVersion=2&resourceVersionMatch=Exact",
        "",
        410,
        r#""message":"The resourceVersion for the provided list is too old.","reason":"Expired","code":410}"#,
    ),
    (
        "GET",
        "/api/v1/namespaces/default/configmaps?watch=true&sendInitialEvents=true",
        "",
        422,
        r#""message":"ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan","reason":"Invalid","details":{"group":"meta.k8s.io","kind":"ListOptions","causes":[{"reason":"FieldValueForbidden","message":"Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan","field":"resourceVersionMatch"}]},"code":422}"#,
    ),
    (
        "POST",
        "/api/v1/namespaces/default/pods",
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"pod-a"}}"#,
        409,
        r#""message":"pods \"pod-a\" already exists","reason":"AlreadyExists","details":{"name":"pod-a","kind":"pods"},"code":409}"#,
    ),
    (
        "POST",
        "/api/v1/namespaces/nope/configmaps",
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}"#,
        404,
        r#""message":"namespaces \"nope\" not found","reason":"NotFound","details":{"name":"nope","kind":"namespaces"},"code":404}"#,
    ),
    (
        "PUT",
        "/apis/crd.projectcalico.org/v1/tiers/default",
        r#"{"apiVersion":"crd.projectcalico.org/v1","kind":"Tier","metadata":{"name":"default","resourceVersion":"1"}}"#,
        409,
        r#""message":"Operation cannot be fulfilled on tiers.crd.projectcalico.org \"default\": the object has been modified; please apply your changes to the latest version and try again","reason":"Conflict","details":{"name":"default","group":"crd.projectcalico.org","kind":"tiers"},"code":409}"#,
    ),
];

#[test]
fn refusals_have_the_real_servers_messages() {
    let cloud = cloud();
    let admin = admin(&cloud);
    for (method, path, body, code, expected) in REFUSALS {
        let request = Request::builder()
            .method(*method)
            .uri(*path)
            .header("content-type", "application/json");
        let answer = admin
            .send(request.body(body.as_bytes().to_vec()).unwrap())
            .unwrap();
        assert_eq!(answer.status, *code, "{method} {path}: {}", answer.text());
        let head = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#;
        assert_eq!(
            answer.text(),
            format!("{head}{expected}\n"),
            "{method} {path}"
        );
    }
    for path in ["/nope", "/apis/nope.example.com/v1/things"] {
        let answer = admin.get(path).unwrap();
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (404, "404 page not found\n")
        );
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    }
}

#[test]
fn deletes_keep_to_their_preconditions() {
    let cloud = cloud();
    let admin = admin(&cloud);
    let path = format!("{CALICO}/ipamhandles/fx");
    let handle = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMHandle", "metadata": {"name": "fx"}});
    let uid = create(&admin, &format!("{CALICO}/ipamhandles"), &handle)["metadata"]["uid"].clone();
    let other = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    let refused = admin.send_json("DELETE", &path, &other).unwrap();
    assert_eq!(refused.status, 409);
    let why = format!(
        "Operation cannot be fulfilled on IPAMHandle.crd.projectcalico.org \"fx\": the UID in the precondition (00000000-0000-0000-0000-000000000000) does not match the UID in record ({}). The object might have been deleted and then recreated",
        uid.as_str().unwrap()
    );
    assert_eq!(refused.json()["message"], why.as_str());
    let done = admin
        .send_json("DELETE", &path, &json!({"preconditions": {"uid": uid}}))
        .unwrap();
    let expected = format!(
        "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Success\",\"details\":{{\"name\":\"fx\",\"group\":\"crd.projectcalico.org\",\"kind\":\"ipamhandles\",\"uid\":{uid}}}}}\n"
    );
    assert_eq!((done.status, done.text()), (200, expected));
    assert_eq!(admin.get(&path).unwrap().status, 404);
}

#[test]
fn updates_need_the_present_version_and_an_equal_one_changes_nothing() {
    let cloud = cloud();
    let admin = admin(&cloud);
    let path = format!("{CALICO}/ipamblocks/10-244-228-128-26");
    let mut block = admin.get(&path).unwrap().json();
    let same = admin.send_json("PUT", &path, &block).unwrap().json();
    assert_eq!(
        same["metadata"]["resourceVersion"],
        block["metadata"]["resourceVersion"]
    );
    block["spec"]["sequenceNumber"] = json!(1_795_365_173_949_336_810_u64);
    let written = admin.send_json("PUT", &path, &block).unwrap().json();
    assert_eq!(
        written["spec"]["sequenceNumber"],
        json!(1_795_365_173_949_336_810_u64)
    );
    assert_eq!(written["metadata"]["generation"], 2);
    assert_eq!(
        admin.send_json("PUT", &path, &block).unwrap().status,
        409,
        "the version is stale now"
    );
    block["metadata"]["resourceVersion"] = Value::Null;
    let refused = admin.send_json("PUT", &path, &block).unwrap();
    assert_eq!(
        (refused.status, &refused.json()["reason"]),
        (422, &json!("Invalid"))
    );
}

#[test]
fn a_pods_status_takes_annotations_and_conditions_but_no_spec() {
    let cloud = cloud();
    let calico = client(&cloud, Some(&cloud.calico_token));
    let path = "/api/v1/namespaces/default/pods/pod-a/status";
    let patch = |body: Value| {
        let request =
            Request::patch(path).header("content-type", "application/strategic-merge-patch+json");
        calico
            .send(request.body(body.to_string().into_bytes()).unwrap())
            .unwrap()
    };
    let patched = patch(json!({
        "metadata": {"annotations": {"cni.projectcalico.org/podIP": "10.244.228.128/32"}},
        "spec": {"nodeName": "elsewhere"},
        "status": {"$setElementOrder/conditions": [{"type": "Ready"}], "conditions": [{"type": "Ready", "status": "True"}]}
    }));
    assert_eq!(patched.status, 200, "{}", patched.text());
    patch(json!({"status": {"conditions": [{"type": "Initialized", "status": "True"}]}}));
    let pod = cloud
        .get("/api/v1/namespaces/default/pods/pod-a")
        .unwrap()
        .unwrap();
    assert_eq!(
        pod["metadata"]["annotations"]["cni.projectcalico.org/podIP"],
        "10.244.228.128/32"
    );
    assert_eq!(pod["spec"]["nodeName"], "edge-1");
    assert_eq!(pod["status"]["conditions"].as_array().unwrap().len(), 2);
    assert_eq!(pod["status"]["phase"], "Pending");
    let stale = patch(json!({"metadata": {"uid": "00000000-0000-0000-0000-000000000000"}}));
    assert_eq!(stale.status, 409);
    assert!(
        stale
            .text()
            .contains("Precondition failed: UID in precondition: 00000000")
    );
}

#[test]
fn pages_show_one_version_and_expire() {
    let cloud = cloud();
    let admin = admin(&cloud);
    let pods = "/api/v1/namespaces/default/pods";
    let names = |answer: &Answer| -> Vec<String> {
        let list = answer.json();
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| pod["metadata"]["name"].as_str().unwrap().into())
            .collect()
    };
    let first = admin.get(&format!("{pods}?limit=1")).unwrap();
    assert_eq!(names(&first), ["elsewhere"]);
    assert_eq!(first.json()["metadata"]["remainingItemCount"], 2);
    cloud.delete(&format!("{pods}/pod-b")).unwrap();
    let next = first.json()["metadata"]["continue"]
        .as_str()
        .unwrap()
        .to_owned();
    let second = admin
        .get(&format!("{pods}?limit=500&continue={next}"))
        .unwrap();
    assert_eq!(
        names(&second),
        ["pod-a", "pod-b"],
        "the page is of the first page's version"
    );
    assert_eq!(
        second.json()["metadata"]["resourceVersion"],
        first.json()["metadata"]["resourceVersion"]
    );
    assert_eq!(
        names(
            &admin
                .get(&format!("{pods}?limit=1&resourceVersion=0"))
                .unwrap()
        ),
        ["elsewhere", "pod-a"]
    );
    cloud.compact();
    let expired = admin
        .get(&format!("{pods}?limit=500&continue={next}"))
        .unwrap();
    assert_eq!(
        (expired.status, &expired.json()["reason"]),
        (410, &json!("Expired"))
    );
    assert!(expired.json()["metadata"]["continue"].is_string());
}

#[test]
fn selectors_select() {
    let cloud = cloud();
    let admin = admin(&cloud);
    let count = |query: &str| {
        admin.get(&format!("/api/v1/pods?{query}")).unwrap().json()["items"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(count("fieldSelector=spec.nodeName%3Dedge-1"), 2);
    assert_eq!(count("fieldSelector=spec.nodeName%21%3Dedge-1"), 1);
    assert_eq!(count("labelSelector=run%3Dpod-a"), 1);
    assert_eq!(count("labelSelector=run+in+%28pod-a,pod-b%29"), 2);
    assert_eq!(count("labelSelector=%21run"), 1);
    assert_eq!(
        count("labelSelector=run,run%21%3Dpod-a&fieldSelector=metadata.name%3Dpod-b"),
        1
    );
}

#[test]
fn a_version_from_the_future_is_waited_for_then_refused() {
    let cloud = cloud();
    let answer = admin(&cloud)
        .get("/api/v1/namespaces/default/configmaps?resourceVersion=99999999")
        .unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (504, "1"));
    assert!(answer.took >= Duration::from_secs(2));
    assert!(
        answer
            .text()
            .contains(r#""causes":[{"reason":"ResourceVersionTooLarge""#),
        "{}",
        answer.text()
    );
}

fn kinds(stream: &mut hublet_tests::client::Stream, count: usize) -> Vec<(String, Value)> {
    let event = |_| stream.next_event(SOON).unwrap().expect("the watch goes on");
    (0..count)
        .map(event)
        .map(|event| {
            (
                event["type"].as_str().unwrap().to_owned(),
                event["object"].clone(),
            )
        })
        .collect()
}

#[test]
fn a_watch_shows_what_enters_changes_and_leaves_its_selection() {
    let cloud = cloud();
    let version = cloud.version();
    let query = format!("watch=true&resourceVersion={version}&labelSelector=app%3Dfx");
    let mut watch = admin(&cloud)
        .watch(&format!("/api/v1/namespaces/default/configmaps?{query}"))
        .unwrap();
    let map = |label: &str, data: &str| {
        let meta = json!({"name": "fx", "namespace": "default", "labels": {"app": label}});
        let map =
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": meta, "data": {"k": data}});
        cloud.put(map).unwrap()
    };
    map("no", "0");
    map("fx", "1");
    map("fx", "2");
    let left = map("no", "3");
    let events = kinds(&mut watch, 3);
    let types: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(types, ["ADDED", "MODIFIED", "DELETED"]);
    assert_eq!(
        events[2].1["data"]["k"], "2",
        "a DELETED shows the last state that was selected …"
    );
    assert_eq!(
        events[2].1["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"],
        "… at the version it left"
    );
    assert_eq!(events[0].1["kind"], "ConfigMap");
}

#[test]
fn a_watch_list_begins_with_all_and_its_bookmark() {
    let cloud = cloud();
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = admin(&cloud)
        .watch(&format!("{CALICO}/tiers?{query}"))
        .unwrap();
    let events = kinds(&mut watch, 3);
    assert_eq!(
        (events[0].0.as_str(), events[1].0.as_str()),
        ("ADDED", "ADDED")
    );
    let version = cloud.version().to_string();
    let bookmark = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "Tier",
        "metadata": {"annotations": {"k8s.io/initial-events-end": "true"}, "resourceVersion": version}});
    assert_eq!(events[2], ("BOOKMARK".to_owned(), bookmark));
}

#[test]
fn a_watch_resumes_sends_bookmarks_and_ends_in_time() {
    let options = cloud::Options {
        bookmark_every: Duration::from_millis(100),
        ..cloud::Options::default()
    };
    let cloud = Cloud::start(options).unwrap();
    let before = cloud.version();
    cloud.delete(&format!("{CALICO}/tiers/default")).unwrap();
    let query =
        format!("watch=true&resourceVersion={before}&allowWatchBookmarks=true&timeoutSeconds=1");
    let mut watch = admin(&cloud)
        .watch(&format!("{CALICO}/tiers?{query}"))
        .unwrap();
    let events = kinds(&mut watch, 2);
    assert_eq!(
        (events[0].0.as_str(), events[1].0.as_str()),
        ("DELETED", "BOOKMARK")
    );
    assert_eq!(
        events[1].1["metadata"]["resourceVersion"],
        cloud.version().to_string().as_str()
    );
    while watch.next_event(SOON).unwrap().is_some() {}
}

#[test]
fn a_watch_from_a_forgotten_version_is_one_error_event() {
    let cloud = cloud();
    cloud.compact();
    let mut watch = admin(&cloud)
        .watch("/api/v1/pods?watch=true&resourceVersion=1")
        .unwrap();
    assert_eq!(watch.status, 200);
    let events = kinds(&mut watch, 1);
    assert_eq!(events[0].0, "ERROR");
    assert_eq!(
        (&events[0].1["code"], &events[0].1["reason"]),
        (&json!(410), &json!("Expired"))
    );
    assert!(
        watch.next_event(SOON).unwrap().is_none(),
        "and then the stream ends"
    );
}

#[test]
fn users_get_what_their_rules_allow_and_no_more() {
    let cloud = cloud();
    let cluster = format!("{CALICO}/clusterinformations/default");
    let code = |token: Option<&str>, path: &str| client(&cloud, token).get(path).unwrap().status;
    let calico = cloud.calico_token.as_str();
    for path in [
        cluster.as_str(),
        "/api",
        "/apis",
        "/api/v1/nodes/edge-1",
        "/api/v1/namespaces/default",
        "/version",
    ] {
        assert_eq!(code(Some(calico), path), 200, "{path}");
    }
    for path in [
        "/api/v1/pods",
        "/api/v1/namespaces/default/secrets/registry",
        &format!("{CALICO}/tiers"),
    ] {
        assert_eq!(code(Some(calico), path), 403, "{path}");
    }
    let watch = client(&cloud, Some(calico))
        .watch(&format!("{CALICO}/ipamblocks?watch=true"))
        .unwrap();
    assert_eq!(watch.status, 403);
    for path in ["/version", "/healthz", "/readyz", "/livez"] {
        assert_eq!(code(None, path), 200, "{path}");
    }
    assert_eq!(
        (
            code(None, "/api"),
            code(None, &cluster),
            code(Some("wrong"), "/version")
        ),
        (403, 403, 401)
    );
    let who = User::service_account("default", "reader");
    cloud
        .rbac()
        .add_rule(Rule::for_resources(&who.name, "get list", "", "pods").in_namespace("default"));
    let reader = cloud.rbac().issue_token(who);
    assert_eq!(code(Some(&reader), "/api/v1/namespaces/default/pods"), 200);
    assert_eq!(code(Some(&reader), "/api/v1/pods"), 403);
    cloud.rbac().revoke_token(&reader);
    assert_eq!(code(Some(&reader), "/api/v1/namespaces/default/pods"), 401);
    let refused = client(&cloud, Some(calico)).get("/api/v1/secrets").unwrap();
    let message = r#"secrets is forbidden: User "system:serviceaccount:kube-system:calico-cni-plugin" cannot list resource "secrets" in API group "" at the cluster scope"#;
    assert_eq!(refused.json()["message"], message);
}

#[test]
fn a_client_certificate_is_a_user() {
    let cloud = cloud();
    let identity = cloud
        .ca
        .issue_client_cert("system:node:edge-1", &["system:nodes"])
        .unwrap();
    cloud
        .rbac()
        .add_rule(Rule::for_resources("system:nodes", "get", "", "nodes"));
    let options = Options {
        identity: Some(identity),
        ..Options::new(&cloud.url(), cloud.ca.pem(), None)
    };
    assert_eq!(
        Client::new(options)
            .unwrap()
            .get("/api/v1/nodes/edge-1")
            .unwrap()
            .status,
        200
    );
    assert_eq!(cloud.record().requests()[0].user, "system:node:edge-1");
}

#[test]
fn discovery_is_plain_or_aggregated_as_accept_says() {
    let cloud = cloud();
    let admin = admin(&cloud);
    let plain = admin.get("/apis").unwrap();
    assert!(
        plain
            .text()
            .starts_with(r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"#)
    );
    let accept =
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let ask = |etag: &str| {
        let request = Request::get("/apis")
            .header("accept", accept)
            .header("if-none-match", etag);
        admin.send(request.body(Vec::new()).unwrap()).unwrap()
    };
    let aggregated = ask("");
    assert_eq!(
        aggregated.header("content-type"),
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    assert_eq!(aggregated.header("vary"), "Accept");
    assert_eq!(ask(aggregated.header("etag")).status, 304);
    let groups = aggregated.json()["items"].as_array().unwrap().clone();
    let calico = groups
        .iter()
        .find(|group| group["metadata"]["name"] == "crd.projectcalico.org")
        .unwrap();
    let pool = json!({"resource": "ippools", "scope": "Cluster", "singularResource": "ippool",
        "responseKind": {"group": "crd.projectcalico.org", "version": "v1", "kind": "IPPool"}});
    let resources = calico["versions"][0]["resources"].as_array().unwrap();
    let found = resources
        .iter()
        .find(|resource| resource["resource"] == "ippools")
        .unwrap();
    for (key, value) in pool.as_object().unwrap() {
        assert_eq!(&found[key], value);
    }
}

#[test]
fn only_protobuf_is_refused_and_protobuf_or_json_gets_json() {
    let cloud = cloud();
    let ask = |accept: &str| {
        let request =
            Request::get(format!("{CALICO}/clusterinformations/default")).header("accept", accept);
        admin(&cloud)
            .send(request.body(Vec::new()).unwrap())
            .unwrap()
    };
    assert_eq!(ask("application/vnd.kubernetes.protobuf").status, 406);
    assert_eq!(
        ask("application/vnd.kubernetes.protobuf,application/json").header("content-type"),
        "application/json"
    );
    assert_eq!(
        ask("application/json;as=Table;v=v1;g=meta.k8s.io").status,
        406
    );
}

#[test]
fn it_speaks_both_protocols_and_records_requests() {
    let cloud = cloud();
    for alpn in ["h2", "http/1.1"] {
        let options = Options::new(&cloud.url(), cloud.ca.pem(), Some(&cloud.calico_token));
        let client = Client::new(Options {
            alpn: vec![alpn],
            keep: true,
            ..options
        })
        .unwrap();
        let request = Request::get("/api/v1/nodes/edge-1").header("user-agent", "calico/v0.0.0");
        let answer = client.send(request.body(Vec::new()).unwrap()).unwrap();
        assert_eq!(
            (answer.status, answer.subject.as_str()),
            (200, "CN=kube-apiserver")
        );
        client.get("/api").unwrap();
    }
    let requests = cloud.record().requests();
    let protocols: Vec<&str> = requests
        .iter()
        .map(|request| request.protocol.as_str())
        .collect();
    assert_eq!(protocols, ["HTTP/2.0", "HTTP/2.0", "HTTP/1.1", "HTTP/1.1"]);
    assert_eq!(requests[0].request_line(), "GET /api/v1/nodes/edge-1");
    assert_eq!(requests[0].user_agent, "calico/v0.0.0");
    assert_eq!(
        requests[0].user,
        "system:serviceaccount:kube-system:calico-cni-plugin"
    );
    assert!(
        requests[0].connection == requests[1].connection
            && requests[1].connection != requests[2].connection
    );
    cloud
        .record()
        .wait_for(SOON, |request| request.path == "/api")
        .unwrap();
    let missing = cloud
        .record()
        .wait_for(Duration::from_millis(50), |request| request.path == "/nope");
    assert!(
        missing.unwrap_err().to_string().contains("GET /api"),
        "says what did come"
    );
}

#[test]
#[should_panic(expected = "cloud panicked: out of ideas")]
fn a_panic_in_a_cloud_reaches_its_test() {
    let worker = hublet_tests::worker::Worker::start("cloud", None).unwrap();
    let (done, ended) = tokio::sync::oneshot::channel::<()>();
    worker.spawner().spawn(async move {
        let _done = done;
        panic!("out of ideas");
    });
    worker.spawner().block_on(async { drop(ended.await) });
    worker.join();
}
