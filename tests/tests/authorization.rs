//! Promise (I7): while the cloud is away, a caller gets exactly what the API server has allowed this caller before, and
//! no caller can make hublet believe anything about its rights.
//!
//! Each test describes a way in which that was not so. The four that disclosed Secrets run against the real API server,
//! since the rule depends on its behaviour: which headers it reads as a token, and which answers need one.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use hublet_tests::client::{Answer, Client, Options};
use hublet_tests::cloud::{Rule, ServerFault, ServerFaultRule, User};
use hublet_tests::eventually::eventually;
use hublet_tests::fault::Fault;
use hublet_tests::kube::edge::{Edge, check_stored};
use hublet_tests::site::Site;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);
const NAMESPACE: &str = "/api/v1/namespaces/default";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";

fn ask(client: &Client, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let request = headers
        .iter()
        .fold(Request::get(path), |request, (name, value)| {
            request.header(*name, *value)
        });
    client.send(request.body(Vec::new())?)
}

/// The token's claims under another signature.
fn forge(token: &str) -> Result<String> {
    let (signed, _) = token.rsplit_once('.').context("a token is a JWT")?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode([7; 256])))
}

fn secret(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default"},
           "stringData": {"word": format!("the secret of {name}")}})
}

/// Nothing of an object's data is in it.
fn check_withheld(answer: &Answer, what: &str) {
    assert!(
        matches!(answer.status, 401 | 403 | 503),
        "{what}: {answer:?}"
    );
    assert_eq!(answer.header("x-hublet-source"), "hublet", "{what}");
    assert!(!answer.text().contains("\"data\""), "{what}: {answer:?}");
}

/// A service account of `default` with these rights there; out comes its token.
fn account(edge: &Edge, name: &str, rules: &Value) -> Result<String> {
    let admin = edge.cloud.admin();
    let timeout = Duration::from_secs(30);
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    admin.create_when_possible(&format!("{NAMESPACE}/serviceaccounts"), &object, timeout)?;
    let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": "default"});
    allow(edge, name, rules, &subject)?;
    admin.request_token("default", name)
}

fn allow(edge: &Edge, name: &str, rules: &Value, subject: &Value) -> Result<()> {
    let api = "rbac.authorization.k8s.io";
    let version = format!("{api}/v1");
    let role =
        json!({"apiVersion": version, "kind": "Role", "metadata": {"name": name}, "rules": rules});
    edge.cloud
        .admin()
        .create(&format!("{ROLES}/roles"), &role)?;
    let binding = json!({"apiVersion": version, "kind": "RoleBinding", "metadata": {"name": name},
        "subjects": [subject], "roleRef": {"apiGroup": api, "kind": "Role", "name": name}});
    edge.cloud
        .admin()
        .create(&format!("{ROLES}/rolebindings"), &binding)?;
    Ok(())
}

fn may(verbs: &[&str], resource: &str) -> Value {
    json!([{"apiGroups": [""], "resources": [resource], "verbs": verbs}])
}

/// GET until 200: the authorizer learns of a new role a moment later.
fn allowed(client: &Client, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let mut last = String::new();
    eventually(SOON, "the cloud allows it", || {
        let answer = ask(client, path, headers);
        last = format!("{answer:?}");
        answer
            .ok()
            .filter(|answer| (answer.status, answer.header("x-hublet-source")) == (200, "cloud"))
    })
    .context(last)
}

/// Two Secrets, and a client that has read them.
fn with_secrets(edge: &Edge) -> Result<Client> {
    for name in ["one", "two"] {
        edge.cloud.admin().create(SECRETS, &secret(name))?;
    }
    let token = account(edge, "reader", &may(&["get", "list"], "secrets"))?;
    let reader = edge.daemon.client(Some(&token))?;
    allowed(&reader, &format!("{SECRETS}/one"), &[])?;
    assert_eq!(reader.get(SECRETS)?.status, 200);
    Ok(reader)
}

/// Cuts the link; the reader still gets its Secrets.
fn cut(edge: &Edge, reader: &Client) -> Result<()> {
    edge.fault.set(Fault::Refuse)?;
    let stored = reader.get(&format!("{SECRETS}/one"))?;
    assert_eq!(stored.status, 200, "{stored:?}");
    check_stored(&stored)
}

/// Without the scheme, or after two blanks, the API server reads no token, and it answers `/version` to anybody.
/// Before, hublet took such a response as the acceptance of any header value: a forged token that was sent once in
/// this form, and then correctly, read its account's Secrets.
#[test]
fn a_forged_token_reads_nothing() -> Result<()> {
    Edge::run(|edge| {
        check_the_api_server(edge)?;
        let reader = with_secrets(edge)?;
        let token = edge.cloud.admin().request_token("default", "reader")?;
        let forged = forge(&token)?;
        let plain = edge.daemon.client_options(None)?;
        let http1 = Client::new(Options {
            alpn: vec!["http/1.1"],
            ..plain.clone()
        })?;
        let anybody = Client::new(plain)?;
        // The API server answers these as anonymous.
        for odd in ["", "Bearer  ", "Token ", "Bearer\t", "Basic "] {
            let answer = ask(
                &anybody,
                "/version",
                &[("authorization", &format!("{odd}{forged}"))],
            )?;
            assert_eq!(
                (answer.status, answer.header("x-hublet-source")),
                (200, "cloud"),
                "{odd:?}"
            );
        }
        let bearer = format!("Bearer {forged}");
        let dropped = ask(
            &http1,
            "/version",
            &[("authorization", &bearer), ("connection", "authorization")],
        )?;
        assert_eq!(
            dropped.status, 200,
            "anonymous, since the header went no further: {dropped:?}"
        );
        cut(edge, &reader)?;
        let path = format!("{SECRETS}/one");
        for word in ["Bearer ", "bearer ", "", "Bearer  "] {
            let answer = ask(
                &anybody,
                &path,
                &[("authorization", &format!("{word}{forged}"))],
            )?;
            check_withheld(&answer, word);
        }
        let twice = [
            ("authorization", bearer.as_str()),
            ("authorization", &format!("Bearer {token}")),
        ];
        check_withheld(&ask(&anybody, &path, &twice)?, "two headers");
        check_withheld(
            &ask(&anybody, SECRETS, &[("authorization", &bearer)])?,
            "the list",
        );
        Ok(())
    })
}

/// The ground under the rule: a well-formed bearer token that isn't good is answered 401 on every path, and is never
/// anonymous; anything else in the header always is.
fn check_the_api_server(edge: &Edge) -> Result<()> {
    let token = edge.cloud.calico_token();
    let other = token.split('.').nth(1).context("a JWT")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(other)?)?;
    let mut elsewhere = claims;
    elsewhere["iss"] = json!("https://elsewhere");
    let elsewhere = URL_SAFE_NO_PAD.encode(elsewhere.to_string());
    let head = token.split('.').next().context("a JWT")?;
    let bad = [
        forge(token)?,
        format!("{head}.{elsewhere}.c2ln"),
        "garbage".into(),
        "abcdef.0123456789abcdef".into(),
    ];
    let server = Client::new(edge.cloud.client_options(None))?;
    for path in ["/version", "/healthz", "/api", "/api/v1/nodes", "/nothing"] {
        for bad in &bad {
            for word in ["Bearer", "bearer", "BEARER"] {
                let answer = ask(
                    &server,
                    path,
                    &[("authorization", &format!("{word} {bad}"))],
                )?;
                assert_eq!(answer.status, 401, "{word} {bad} {path}");
            }
        }
    }
    for word in ["", "Bearer  ", "Token ", "Basic ", "Bearer\t"] {
        let answer = ask(
            &server,
            "/version",
            &[("authorization", &format!("{word}{token}"))],
        )?;
        assert_eq!(answer.status, 200, "{word:?}");
        let answer = ask(
            &server,
            "/api",
            &[("authorization", &format!("{word}{token}"))],
        )?;
        assert_eq!(answer.status, 403, "{word:?}: anonymous");
    }
    let more = ask(
        &server,
        "/api",
        &[("authorization", &format!(" bearer {token} and more "))],
    )?;
    assert_eq!(
        more.status, 200,
        "the token is what stands between the first two blanks"
    );
    Ok(())
}

/// Of two `fieldSelector`s the API server uses the first, hublet used the last. Before, a caller that may list one
/// Secret by its name was therefore taken for one that may list all, and read them all.
#[test]
fn a_right_to_list_one_secret_gives_no_other() -> Result<()> {
    Edge::run(|edge| {
        let reader = with_secrets(edge)?;
        let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["one"], "verbs": ["list"]}]);
        let token = account(edge, "lister", &rules)?;
        let lister = edge.daemon.client(Some(&token))?;
        let one = format!("{SECRETS}?fieldSelector=metadata.name%3Done");
        let answer = allowed(&lister, &one, &[])?;
        assert_eq!(answer.json()["items"].as_array().map(Vec::len), Some(1));
        for more in [
            "&fieldSelector=",
            "&fieldSelector",
            "&fieldSelector=metadata.name%3Dtwo",
            "&field%53elector=",
        ] {
            assert_eq!(lister.get(&format!("{one}{more}"))?.status, 200, "{more}");
        }
        cut(edge, &reader)?;
        let answer = lister.get(&one)?;
        assert_eq!(
            answer.json()["items"].as_array().map(Vec::len),
            Some(1),
            "its own: {answer:?}"
        );
        check_withheld(&lister.get(SECRETS)?, "all of them");
        for other in [
            "/two",
            "?fieldSelector=metadata.name%3Dtwo",
            "?watch=true",
            "?fieldSelector=",
        ] {
            check_withheld(&lister.get(&format!("{SECRETS}{other}"))?, other);
        }
        Ok(())
    })
}

/// Before, any 404 counted as a grant, and `status` was answered with the object: a caller with a right to
/// `secrets/status`, which doesn't even exist, read the Secret.
#[test]
fn a_404_grants_nothing_and_a_subresource_is_not_its_object() -> Result<()> {
    Edge::run(|edge| {
        let reader = with_secrets(edge)?;
        let token = account(edge, "statuses", &may(&["get"], "*/status"))?;
        let statuses = edge.daemon.client(Some(&token))?;
        let status = format!("{SECRETS}/one/status");
        eventually(SOON, "the cloud allows it", || {
            statuses.get(&status).ok().filter(|a| a.status == 404)
        })?;
        let token = account(edge, "early", &may(&["get"], "secrets"))?;
        let early = edge.daemon.client(Some(&token))?;
        allowed(&early, &format!("{SECRETS}/two"), &[])?;
        for name in ["later", "never"] {
            let path = format!("{SECRETS}/{name}");
            assert_eq!(early.get(&path)?.status, 404, "{name}");
        }
        edge.cloud.admin().create(SECRETS, &secret("later"))?;
        assert_eq!(reader.get(&format!("{SECRETS}/later"))?.status, 200);
        let pods = edge.daemon.client(Some(edge.cloud.admin_token()))?;
        let pod = pods.get("/api/v1/pods?limit=1")?.json()["items"][0]["metadata"].clone();
        let pod = format!(
            "/api/v1/namespaces/{}/pods/{}",
            pod["namespace"].as_str().unwrap(),
            pod["name"].as_str().unwrap()
        );
        for path in [pod.clone(), format!("{pod}/status")] {
            assert_eq!(pods.get(&path)?.status, 200, "{path}");
        }
        cut(edge, &reader)?;
        check_withheld(&statuses.get(&status)?, "a Secret's status");
        check_withheld(&statuses.get(&format!("{SECRETS}/one"))?, "the Secret");
        check_withheld(&early.get(&format!("{SECRETS}/later"))?, "what came later");
        let never = early.get(&format!("{SECRETS}/never"))?;
        assert_eq!(
            (never.status, never.header("x-hublet-source")),
            (404, "store"),
            "{never:?}"
        );
        assert_eq!(pods.get(&pod)?.status, 200);
        check_withheld(
            &pods.get(&format!("{pod}/status"))?,
            "a status is not stored under its own name",
        );
        Ok(())
    })
}

/// Before, `Impersonate-*` headers were no part of a grant: a gateway that may read as alice could read as bob and
/// as itself, and a 403 for bob revoked alice's grants.
#[test]
fn rights_of_an_impersonated_user_stay_with_the_impersonation() -> Result<()> {
    Edge::run(|edge| {
        let reader = with_secrets(edge)?;
        let rules = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "gateway"},
            "rules": [{"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"]}]});
        let cluster = "/apis/rbac.authorization.k8s.io/v1";
        edge.cloud
            .admin()
            .create(&format!("{cluster}/clusterroles"), &rules)?;
        let api = "rbac.authorization.k8s.io";
        let binding = json!({"apiVersion": format!("{api}/v1"), "kind": "ClusterRoleBinding",
            "metadata": {"name": "gateway"}, "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": "gateway"},
            "subjects": [{"kind": "ServiceAccount", "name": "gateway", "namespace": "default"}]});
        edge.cloud
            .admin()
            .create(&format!("{cluster}/clusterrolebindings"), &binding)?;
        let alice = json!({"kind": "User", "apiGroup": api, "name": "alice"});
        allow(edge, "alice", &may(&["get"], "secrets"), &alice)?;
        let token = account(edge, "gateway", &json!([]))?;
        let gateway = edge.daemon.client(Some(&token))?;
        let (path, alice, bob) = (
            format!("{SECRETS}/one"),
            ("impersonate-user", "alice"),
            ("impersonate-user", "bob"),
        );
        allowed(&gateway, &path, &[alice])?;
        assert_eq!(ask(&gateway, &path, &[bob])?.status, 403);
        cut(edge, &reader)?;
        let answer = ask(&gateway, &path, &[alice])?;
        assert_eq!(
            answer.status, 200,
            "alice's own, which bob's 403 did not take: {answer:?}"
        );
        check_withheld(&ask(&gateway, &path, &[bob])?, "as bob");
        check_withheld(&gateway.get(&path)?, "as itself");
        check_withheld(
            &ask(&gateway, &path, &[alice, ("impersonate-group", "g")])?,
            "as alice in another group",
        );
        check_withheld(
            &ask(&edge.daemon.client(None)?, &path, &[alice])?,
            "nobody as alice",
        );
        Ok(())
    })
}

fn held(site: &Site, names: &[&str]) -> Result<()> {
    let admin = site.admin_client()?;
    for name in names {
        site.cloud.put(secret(name))?;
        assert_eq!(admin.get(&format!("{SECRETS}/{name}"))?.status, 200);
    }
    Ok(())
}

fn grants(site: &Site) -> Result<(u64, u64)> {
    let status = site.daemon.fetch_status()?;
    let count = |name: &str| {
        status["store"][name]
            .as_u64()
            .with_context(|| format!("{name} in {status}"))
    };
    Ok((count("grants")?, count("credentials")?))
}

/// Before, invalid values of `Authorization` evicted the CNI plugin's token from the table, and random paths of an
/// account without rights evicted its grants: after the next cut the plugin got 401 and 403. (The tables' unit
/// tests fill them completely.)
#[test]
fn a_flood_of_tokens_evicts_no_grants_of_others() -> Result<()> {
    let Some(site) = Site::start("flood", |_| {})? else {
        return Ok(());
    };
    let calico = site.daemon.client(Some(&site.cloud.calico_token))?;
    let path = "/apis/crd.projectcalico.org/v1/clusterinformations/default";
    assert_eq!(calico.get(path)?.status, 200);
    let before = grants(&site)?;
    let anybody = Client::new(Options {
        keep: true,
        ..site.daemon.client_options(None)?
    })?;
    for n in 0..100 {
        assert_eq!(
            ask(
                &anybody,
                "/version",
                &[("authorization", &format!("junk {n}"))]
            )?
            .status,
            200
        );
    }
    let pod = site
        .cloud
        .rbac()
        .issue_token(User::service_account("default", "pod"));
    let pod = Client::new(Options {
        keep: true,
        ..site.daemon.client_options(Some(&pod))?
    })?;
    for n in 0..200 {
        assert_eq!(pod.get(&format!("/apis/random-{n}"))?.status, 404);
        assert_eq!(pod.get(&format!("{SECRETS}/random-{n}"))?.status, 403);
    }
    assert_eq!(
        grants(&site)?,
        before,
        "neither of them had anything to remember"
    );
    site.cut_link()?;
    let stored = calico.get(path)?;
    assert_eq!(
        (stored.status, stored.header("x-hublet-source")),
        (200, "store"),
        "{stored:?}"
    );
    Ok(())
}

/// Before, 503 for objects that the store lacks and 403 for those that it has showed everybody which Secrets this
/// node has.
#[test]
fn a_refusal_reveals_nothing_of_the_store() -> Result<()> {
    let Some(site) = Site::start("withheld", |_| {})? else {
        return Ok(());
    };
    held(&site, &["held"])?;
    let user = site.cloud.rbac().issue_token(User::new("user", &["users"]));
    site.cloud
        .rbac()
        .add_rule(Rule::for_resources("users", "get", "", "nodes"));
    let user = site.daemon.client(Some(&user))?;
    assert_eq!(user.get("/api/v1/nodes/edge-1")?.status, 200);
    site.cut_link()?;
    assert_eq!(
        user.get("/api/v1/nodes/edge-1")?.status,
        200,
        "known, and allowed other things"
    );
    for client in [
        user,
        site.daemon.client(None)?,
        site.daemon.client(Some("never-seen"))?,
    ] {
        let tail = ["", "/status", "?pretty=true"];
        for (tail, list) in tail
            .into_iter()
            .map(|t| (t, false))
            .chain([("", true), ("?watch=true", true)])
        {
            let ask = |kind: &str, name: &str| {
                let name = if list {
                    String::new()
                } else {
                    format!("/{name}")
                };
                client.get(&format!("{NAMESPACE}/{kind}{name}{tail}"))
            };
            let (there, missing) = (ask("secrets", "held")?, ask("configmaps", "gone")?);
            let text = missing
                .text()
                .replace("configmaps", "secrets")
                .replace("gone", "held");
            assert_eq!((there.status, there.text()), (missing.status, text));
            check_withheld(&there, tail);
        }
    }
    Ok(())
}

/// Before, a valid token whose first request was lost with the link got 401, which makes clients discard it,
/// although the cloud had refused nothing. 401 is for tokens that the cloud has refused.
#[test]
fn a_token_without_a_response_is_unknown_not_refused() -> Result<()> {
    let Some(site) = Site::start("unknown", |_| {})? else {
        return Ok(());
    };
    held(&site, &["held"])?;
    let rbac = site.cloud.rbac();
    let (fresh, revoked) = (
        rbac.issue_token(User::new("fresh", &["system:masters"])),
        rbac.issue_token(User::new("r", &["system:masters"])),
    );
    let revoked = (revoked.clone(), site.daemon.client(Some(&revoked))?);
    let path = format!("{SECRETS}/held");
    assert_eq!(revoked.1.get(&path)?.status, 200);
    rbac.revoke_token(&revoked.0);
    assert_eq!(revoked.1.get(&path)?.status, 401);
    let junk = site.daemon.client(Some("junk"))?;
    assert_eq!(junk.get(&path)?.status, 401);
    site.fault.set(Fault::Blackhole(None))?;
    let fresh = site.daemon.client(Some(&fresh))?;
    for _ in 0..3 {
        let answer = fresh.get(&path)?;
        assert_eq!(
            (answer.status, answer.header("x-hublet-source")),
            (503, "hublet"),
            "{answer:?}"
        );
    }
    for refused in [revoked.1, junk] {
        assert_eq!(refused.get(&path)?.status, 401, "the cloud said so");
    }
    Ok(())
}

/// Before, the 401 of a backend behind the API server's proxy that has its own login counted as the API server's: a
/// caller that had opened a dashboard got 401 offline for everything.
#[test]
fn a_401_of_a_proxied_backend_revokes_no_token() -> Result<()> {
    let Some(site) = Site::start("backend", |_| {})? else {
        return Ok(());
    };
    held(&site, &["held"])?;
    let (admin, path) = (site.admin_client()?, format!("{SECRETS}/held"));
    let backend = format!("{NAMESPACE}/services/dashboard:80/proxy");
    let login = ServerFault::Exactly {
        code: 401,
        content_type: "text/plain".into(),
        body: b"log in".to_vec(),
    };
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("", &backend, login));
    assert_eq!(admin.get(&path)?.status, 200);
    for page in ["", "/", "/login?next=%2F", "/a%2Fb"] {
        let answer = admin.get(&format!("{backend}{page}"))?;
        assert_eq!(
            (answer.status, answer.header("x-hublet-source")),
            (401, "cloud"),
            "{answer:?}"
        );
    }
    site.cut_link()?;
    let stored = admin.get(&path)?;
    assert_eq!(
        (stored.status, stored.header("x-hublet-source")),
        (200, "store"),
        "{stored:?}"
    );
    Ok(())
}

/// A grant that the cloud has revoked stays revoked after a restart; and a caller that is refused a part of a list
/// doesn't keep the right to the whole list.
#[test]
fn a_revoked_grant_is_gone_and_others_survive_a_restart() -> Result<()> {
    let Some(mut site) = Site::start("revoked", |_| {})? else {
        return Ok(());
    };
    held(&site, &["held"])?;
    let rbac = site.cloud.rbac();
    rbac.add_rule(Rule::for_resources("readers", "get list", "", "secrets"));
    rbac.add_rule(Rule::for_resources("keeper", "get", "", "secrets"));
    let reader = rbac.issue_token(User::new("reader", &["readers"]));
    let keeper = rbac.issue_token(User::new("keeper", &[]));
    let (reader, keeper) = (
        site.daemon.client(Some(&reader))?,
        site.daemon.client(Some(&keeper))?,
    );
    let path = format!("{SECRETS}/held");
    for path in [&*path, SECRETS, "/api/v1/secrets"] {
        assert_eq!(reader.get(path)?.status, 200, "{path}");
    }
    assert_eq!(keeper.get(&path)?.status, 200);
    rbac.remove_rules("readers");
    for path in [&*path, SECRETS] {
        assert_eq!(reader.get(path)?.status, 403, "{path}");
    }
    site.cut_link()?;
    site.daemon.restart()?;
    for path in ["/api/v1/secrets", SECRETS, &*path] {
        let answer = reader.get(path)?;
        assert_eq!(
            (answer.status, answer.header("x-hublet-source")),
            (403, "hublet"),
            "{path}: {answer:?}"
        );
    }
    assert_eq!(keeper.get(&path)?.status, 200);
    Ok(())
}

/// Before, `kubectl logs` reported that the pod is not in the store, which may be wrong, and refusals did not name
/// hublet as their source.
#[test]
fn a_refusal_names_its_source_and_the_object() -> Result<()> {
    let Some(site) = Site::start("logs", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let pods = admin.get("/api/v1/pods")?.json();
    let pod = pods["items"][0]["metadata"]["name"]
        .as_str()
        .context("the seed has pods")?;
    let namespace = pods["items"][0]["metadata"]["namespace"]
        .as_str()
        .context("the seed has pods")?;
    site.cut_link()?;
    let logs = admin.get(&format!("/api/v1/namespaces/{namespace}/pods/{pod}/log"))?;
    assert_eq!(
        (logs.status, logs.header("x-hublet-source")),
        (503, "hublet"),
        "{logs:?}"
    );
    let message = logs.json()["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        message.contains("the log of pods")
            && message.contains("is not available while the cloud is away"),
        "{message}"
    );
    assert!(!message.contains("store"), "{message}");
    let write = admin.send_json(
        "POST",
        &format!("{NAMESPACE}/configmaps"),
        &json!({"metadata": {"name": "x"}}),
    )?;
    assert_eq!(
        (write.status, write.header("x-hublet-source")),
        (503, "hublet"),
        "{write:?}"
    );
    Ok(())
}

/// Before, the answer to an upgrade passed by whatever observes the cloud's answers, so that a 403 to a watch by WebSocket
/// revoked nothing.
#[test]
fn i7_a_refused_upgrade_revokes_as_any_other_request() -> Result<()> {
    let Some(site) = Site::start("upgrade", |_| {})? else {
        return Ok(());
    };
    let client = Client::new(Options {
        alpn: vec!["http/1.1"],
        ..site.daemon.client_options(Some(&site.cloud.admin_token))?
    })?;
    let list = format!("{NAMESPACE}/configmaps");
    assert_eq!(client.get(&list)?.status, 200);
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403});
    let forbidden = ServerFault::Exactly {
        code: 403,
        content_type: "application/json".to_owned(),
        body: serde_json::to_vec(&status)?,
    };
    let rule = ServerFaultRule::new("GET", &list, forbidden);
    site.cloud.server_faults().add_rule(rule.times(1));
    let websocket = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let refused = ask(&client, &format!("{list}?watch=true"), &websocket)?;
    assert_eq!(refused.status, 403, "{refused:?}");
    assert_eq!(refused.header("x-hublet-source"), "cloud");
    site.cut_link()?;
    let answer = client.get(&list)?;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(answer.header("x-hublet-source"), "hublet");
    Ok(())
}
