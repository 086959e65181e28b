//! Promise: the scriptable cloud fails exactly as a test or the control port tells it to, as often as it is told to,
//! and answers all other requests correctly. Suites about failures of the API server rely on it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]
use std::time::Duration;

use hublet_tests::client::{Client, Options};
use hublet_tests::cloud::{self, Cloud, ServerFault, ServerFaultRule};
use hublet_tests::control::{Control, Controls};
use hublet_tests::fault::FaultProxy;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
const NODES: &str = "/api/v1/nodes";
const NODE: &str = "/api/v1/nodes/edge-1";

fn start(alpn: &'static str) -> (Cloud, Client) {
    let cloud = Cloud::start(cloud::Options::default()).unwrap();
    let options = Options::new(&cloud.url(), cloud.ca.pem(), Some(&cloud.admin_token));
    let timeout = Duration::from_millis(500);
    let client = Client::new(Options {
        alpn: vec![alpn],
        timeout,
        ..options
    })
    .unwrap();
    (cloud, client)
}

fn fail_once(cloud: &Cloud, method: &str, fault: ServerFault) {
    cloud
        .server_faults()
        .add_rule(ServerFaultRule::new(method, "/api/v1/", fault).times(1));
}

#[test]
fn errors_come_with_a_status_a_count_and_retry_after() {
    let (cloud, client) = start("h2");
    cloud.server_faults().add_rule(
        ServerFaultRule::new(
            "GET",
            NODES,
            ServerFault::Status {
                code: 429,
                retry_after: 7,
            },
        )
        .times(2),
    );
    assert_eq!(
        client.get("/version").unwrap().status,
        200,
        "another path is answered correctly"
    );
    for _ in 0..2 {
        let answer = client.get(NODE).unwrap();
        assert_eq!((answer.status, answer.header("retry-after")), (429, "7"));
        assert_eq!(answer.json()["details"]["retryAfterSeconds"], 7);
        assert_eq!(answer.json()["reason"], "TooManyRequests");
    }
    assert_eq!(
        client.get(NODE).unwrap().status,
        200,
        "the fault was for two requests"
    );
    fail_once(
        &cloud,
        "list",
        ServerFault::Status {
            code: 500,
            retry_after: 0,
        },
    );
    assert_eq!(
        client.get(NODE).unwrap().status,
        200,
        "a fault of lists is none of gets"
    );
    let answer = client.get(NODES).unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (500, ""));
}

#[test]
fn bodies_can_be_malformed_in_valid_http() {
    for alpn in ["h2", "http/1.1"] {
        let (cloud, client) = start(alpn);
        let correct = client.get(NODE).unwrap();
        fail_once(&cloud, "", ServerFault::Truncate(100));
        assert_eq!(client.get(NODE).unwrap().body, correct.body[..100]);
        fail_once(&cloud, "", ServerFault::Garbage);
        let garbage = client.get(NODE).unwrap();
        assert_eq!(
            (garbage.header("content-type"), garbage.json()),
            ("application/json", Value::Null)
        );
        fail_once(&cloud, "", ServerFault::ContentType("text/html".into()));
        let odd = client.get(NODE).unwrap();
        assert_eq!(
            (odd.header("content-type"), &odd.body),
            ("text/html", &correct.body)
        );
        fail_once(&cloud, "", ServerFault::HugeHeader(8_000));
        assert_eq!(client.get(NODE).unwrap().header("x-huge").len(), 8_000);
        assert_eq!(client.get(NODE).unwrap().body, correct.body);
    }
}

#[test]
fn an_endless_body_never_ends() {
    let (cloud, client) = start("http/1.1");
    fail_once(&cloud, "list", ServerFault::Endless);
    let mut stream = client.watch(NODES).unwrap();
    let mut bytes = 0;
    while bytes < 20 << 20 {
        bytes += stream.next_piece(SOON).unwrap().expect("no end").len();
    }
}

#[test]
fn lists_and_watches_break_off_in_the_middle() {
    for alpn in ["h2", "http/1.1"] {
        let (cloud, client) = start(alpn);
        fail_once(&cloud, "list", ServerFault::CutFrame(0));
        let mut list = client.watch("/api/v1/pods").unwrap();
        let first = list.next_piece(SOON).unwrap().unwrap();
        assert!(first.starts_with(br#"{"kind":"PodList""#));
        assert!(
            list.next_piece(SOON)
                .unwrap_err()
                .to_string()
                .contains("broke off")
        );
        fail_once(&cloud, "watch", ServerFault::CutFrame(2));
        let mut watch = client.watch("/api/v1/pods?watch=true").unwrap();
        assert_eq!(watch.next_event(SOON).unwrap().unwrap()["type"], "ADDED");
        assert_eq!(watch.next_event(SOON).unwrap().unwrap()["type"], "ADDED");
        assert!(
            watch
                .next_event(SOON)
                .unwrap_err()
                .to_string()
                .contains("broke off")
        );
        fail_once(&cloud, "get", ServerFault::CutAfter(10));
        assert!(format!("{:#}", client.get(NODE).unwrap_err()).contains("broke off"));
    }
}

#[test]
fn answers_can_be_late_or_never_come() {
    let (cloud, client) = start("h2");
    fail_once(&cloud, "", ServerFault::Delay(200));
    let late = client.get(NODE).unwrap();
    assert!(late.status == 200 && late.took >= Duration::from_millis(200));
    fail_once(&cloud, "", ServerFault::Hang);
    assert!(format!("{:#}", client.get(NODE).unwrap_err()).contains("no answer within"));
}

#[test]
fn objects_can_be_stale_and_lists_empty() {
    let (cloud, client) = start("h2");
    let before = cloud.get(NODE).unwrap().unwrap();
    let mut node = before.clone();
    node["metadata"]["labels"]["changed"] = json!("yes");
    cloud.put(node).unwrap();
    fail_once(&cloud, "get", ServerFault::Stale);
    assert_eq!(client.get(NODE).unwrap().json(), before);
    assert_eq!(
        client.get(NODE).unwrap().json()["metadata"]["labels"]["changed"],
        "yes"
    );
    fail_once(&cloud, "list", ServerFault::EmptyList);
    let list = client.get(NODES).unwrap().json();
    assert_eq!(
        (&list["kind"], &list["items"]),
        (&json!("NodeList"), &json!([]))
    );
    assert_eq!(
        client.get(NODES).unwrap().json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn the_control_port_sets_faults_and_lists_requests() {
    let (cloud, client) = start("h2");
    let fault = FaultProxy::start("127.0.0.1:0".parse().unwrap(), cloud.address, None).unwrap();
    let controls = Controls {
        fault: fault.handle(),
        cloud: Some(cloud.handle()),
    };
    let control = Control::start("127.0.0.1:0".parse().unwrap(), controls).unwrap();
    let port = Client::new(Options::new(
        &format!("http://{}", control.address()),
        "",
        None,
    ))
    .unwrap();
    let rule =
        json!({"path": NODES, "method": "list", "count": 1, "fault": {"status": {"code": 503}}});
    assert_eq!(
        port.send_json("POST", "/server-faults", &rule)
            .unwrap()
            .status,
        200
    );
    assert_eq!(client.get(NODES).unwrap().status, 503);
    let wrong = port
        .send_json("POST", "/server-faults", &json!({"fault": "whatever"}))
        .unwrap();
    assert!(
        wrong.status == 400 && wrong.text().contains("a server fault looks like"),
        "{}",
        wrong.text()
    );
    let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "m"}, "data": {"a": "b"}});
    assert_eq!(port.send_json("PUT", "/objects", &map).unwrap().status, 200);
    assert_eq!(
        client
            .get("/api/v1/namespaces/default/configmaps/m")
            .unwrap()
            .json()["data"]["a"],
        "b"
    );
    let requests = port.get("/requests").unwrap().json();
    assert_eq!(requests[0]["path"], NODES);
    assert_eq!(requests[0]["user"], "admin");
    port.send_json("DELETE", "/requests", &Value::Null).unwrap();
    assert_eq!(port.get("/requests").unwrap().json(), json!([]));
    assert_eq!(port.get("/nope").unwrap().status, 404);
}
