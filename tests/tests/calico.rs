//! Promise: the Calico CNI plugin gets the API server's exact answers through hublet (I3). After the link is cut, every
//! read that it made before is answered as the API server would have answered (I2, I11), and no write is acknowledged.
//!
//! The plugin's recorded requests (`tests/data/calico-cni`: a node's first ADD, a second ADD, a DEL) are replayed with
//! their headers against the real API server. A pod can't start or stop if one of them fails, and the plugin doesn't
//! retry a 404.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hublet_tests::client::Answer;
use hublet_tests::eventually::eventually;
use hublet_tests::fault::Fault;
use hublet_tests::kube::edge::{Edge, check_stored, find_or_skip};
use hublet_tests::kube::{KubeCloud, Options};
use hublet_tests::replay::{Exchange, Recording, Replay, known};
use serde_json::json;

/// The first request of each ADD and DEL of the plugin.
const INFORMATION: &str = "/apis/crd.projectcalico.org/v1/clusterinformations/default";
const SEQUENCES: [&str; 3] = ["add-first-pod-of-the-node", "add-second-pod", "del"];

/// Plays the three sequences, and fails with every difference from the recording.
fn play_all(replay: &mut Replay) -> Result<()> {
    let recording = Recording::load_calico()?;
    let mut differences = Vec::new();
    for sequence in SEQUENCES {
        differences.extend(replay.play(recording.find_sequence(sequence)?)?);
    }
    let lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert!(
        lines.is_empty(),
        "{} differences from the recording:\n{}",
        lines.len(),
        lines.join("\n")
    );
    Ok(())
}

/// The yardstick itself: if this fails, the recording and the API server no longer agree, whatever hublet does.
#[test]
fn the_recording_matches_the_api_server() -> Result<()> {
    let Some(binaries) = find_or_skip()? else {
        return Ok(());
    };
    let cloud = KubeCloud::start_with(&binaries, Options::default())?;
    play_all(&mut Replay::new(
        cloud.client_options(Some(cloud.calico_token())),
    ))
}

#[test]
fn online_calico_gets_what_the_api_server_answers_i3() -> Result<()> {
    Edge::run(|edge| {
        let mut replay = Replay::new(
            edge.daemon
                .client_options(Some(edge.cloud.calico_token()))?,
        );
        play_all(&mut replay)?;
        // It was the cloud that answered: each request of the recording is in the API server's own log, once.
        let audited = edge.cloud.audit_events()?;
        for exchange in Recording::load_calico()?
            .all()
            .iter()
            .filter(|exchange| !exchange.is_read())
        {
            let of_calico = audited.iter().filter(|event| {
                event["requestURI"] == exchange.uri.as_str()
                    && event["user"]["username"]
                        == "system:serviceaccount:kube-system:calico-cni-plugin"
                    && event["verb"] == verb(exchange.method.as_str())
            });
            let recorded = Recording::load_calico()?
                .all()
                .iter()
                .filter(|other| other.uri == exchange.uri && other.method == exchange.method)
                .count();
            assert_eq!(of_calico.count(), recorded, "{exchange}");
        }
        Ok(())
    })
}

fn verb(method: &str) -> &'static str {
    match method {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        _ => "delete",
    }
}

#[test]
fn after_a_refused_link_calico_reads_the_clouds_last_answers_i2() -> Result<()> {
    reads_survive(Fault::Refuse)
}

#[test]
fn in_a_black_hole_calico_reads_the_clouds_last_answers_i11() -> Result<()> {
    reads_survive(Fault::Blackhole(None))
}

fn reads_survive(cut: Fault) -> Result<()> {
    Edge::run(|edge| {
        let mut replay = Replay::new(
            edge.daemon
                .client_options(Some(edge.cloud.calico_token()))?,
        );
        play_all(&mut replay)?;
        edge.fault.set(cut)?;

        check_reads(edge, &replay)?;
        check_writes(edge)?;
        check_strangers(edge)?;

        // A change that only the cloud knows of is seen as soon as the link is back.
        edge.cloud.admin().merge_patch(
            INFORMATION,
            &json!({"metadata": {"labels": {"while": "away"}}}),
        )?;
        let client = edge.daemon.client(Some(edge.cloud.calico_token()))?;
        let stored = client.get(INFORMATION)?;
        check_stored(&stored)?;
        assert!(
            stored.json()["metadata"]["labels"].is_null(),
            "{}",
            stored.text()
        );
        let fresh = edge.restore_link(&client, INFORMATION)?;
        assert_eq!(
            (fresh.status, &fresh.json()["metadata"]["labels"]["while"]),
            (200, &json!("away"))
        );
        Ok(())
    })
}

/// Each read made before the cut, again, with its headers: all contradictions at once.
fn check_reads(edge: &Edge, replay: &Replay) -> Result<()> {
    let client = edge.daemon.client(Some(edge.cloud.calico_token()))?;
    let mut wrong = Vec::new();
    let mut statuses = [0, 0];
    for read in replay.known().reads() {
        let answer = client.send(read.to_request().body(Vec::new())?)?;
        if let Some(contradiction) = replay.known().find_contradiction(read, &answer) {
            wrong.push(format!("{read}: {contradiction}"));
        }
        if let Err(cause) = check_stored(&answer) {
            wrong.push(format!("{read}: {cause:#}"));
        }
        statuses[usize::from(answer.status == 404)] += 1;
    }
    assert!(
        wrong.is_empty(),
        "{} wrong answers:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // 17 different reads: absent are the IPAM configuration, the deleted handle, and a handle by the pod's name.
    assert_eq!(statuses, [14, 3], "reads answered 200 and 404");
    Ok(())
}

/// No write is said to be done: each recorded one is refused at once, in a form that Calico doesn't retry.
fn check_writes(edge: &Edge) -> Result<()> {
    let client = edge.daemon.client(Some(edge.cloud.calico_token()))?;
    let recording = Recording::load_calico()?;
    let send = |write: &Exchange| {
        let body = write
            .body
            .as_ref()
            .map_or_else(Vec::new, |body| body.to_vec());
        client.send(write.to_request().body(body)?)
    };
    // In a black hole the first one may be under way before hublet knows: then it can't say whether it was done.
    let first = recording
        .all()
        .iter()
        .find(|exchange| !exchange.is_read())
        .context("a write")?;
    eventually(Duration::from_secs(5), "writes are refused", || {
        let answer = send(first);
        let unknown = answer.as_ref().is_ok_and(|answer| answer.status == 504);
        if unknown && edge.fault.fault() != Fault::Refuse {
            return None;
        }
        Some(answer.map(drop))
    })??;
    for write in recording
        .all()
        .iter()
        .filter(|exchange| !exchange.is_read())
    {
        let answer = send(write)?;
        assert_refused(&answer, 503, "ServiceUnavailable", &write.to_string());
        assert!(
            !answer.headers.contains_key("retry-after"),
            "{write}: {answer:?}"
        );
    }
    Ok(())
}

/// A credential that the cloud has not accepted through hublet opens nothing, however good it is.
fn check_strangers(edge: &Edge) -> Result<()> {
    for token in ["nobody-knows-this-token", edge.cloud.admin_token()] {
        let answer = edge.daemon.client(Some(token))?.get(INFORMATION)?;
        assert_refused(&answer, 503, "ServiceUnavailable", "a token never seen");
    }
    Ok(())
}

fn assert_refused(answer: &Answer, status: u16, reason: &str, what: &str) {
    let found = known::status_reason(&answer.body);
    assert_eq!(
        (answer.status, found.as_deref()),
        (status, Some(reason)),
        "{what}: {}",
        answer.text()
    );
}

/// A server that hangs with its port open: connections are accepted by the kernel and nothing ever answers.
#[test]
fn a_hanging_api_server_is_away_too_i11() -> Result<()> {
    Edge::run(|edge| {
        let client = edge.daemon.client(Some(edge.cloud.calico_token()))?;
        let online = client.get(INFORMATION)?;
        assert_eq!(
            (online.status, online.header("x-hublet-source")),
            (200, "cloud")
        );
        edge.cloud.pause_apiserver()?;
        let first = client.get(INFORMATION)?;
        check_stored(&first)?;
        assert_eq!(first.body, online.body);
        assert!(
            first.took.as_millis() < 1000,
            "the first answer took {:?}",
            first.took
        );
        edge.cloud.resume_apiserver()?;
        edge.restore_link(&client, INFORMATION)?;
        Ok(())
    })
}
