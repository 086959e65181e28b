//! Requests are read as the API server reads them: by tables, and by the readings of its own code.
//! Most of it is tables of paths and queries, which are read side by side.

use super::*;

fn read(call: &str, check: impl FnOnce(RequestInfo)) {
    let (method, uri) = call.split_once(' ').unwrap();
    let uri: Uri = uri.parse().unwrap_or_else(|e| panic!("{call}: {e}"));
    check(RequestInfo::parse(&method.parse().unwrap(), &uri));
}

/// `METHOD uri → verb group version resource subresource namespace name`, "-" for empty.
#[test]
fn requests_are_taken_apart_like_the_api_server_does() {
    let table = [
        (
            "GET /api/v1/namespaces/default/pods/pod-a",
            "get - v1 pods - default pod-a",
        ),
        (
            "GET /api/v1/namespaces/default/pods",
            "list - v1 pods - default -",
        ),
        (
            "GET /api/v1/namespaces/default/config%6Daps",
            "list - v1 configmaps - default -",
        ),
        ("GET /api/v1/pods?watch=true", "watch - v1 pods - - -"),
        ("GET /api/v1/watch/pods", "watch - v1 pods - - -"),
        (
            "GET /api/v1/namespaces/default",
            "get - v1 namespaces - - default",
        ),
        ("GET /api/v1/namespaces", "list - v1 namespaces - - -"),
        (
            "PUT /api/v1/namespaces/x/finalize",
            "update - v1 namespaces finalize - x",
        ),
        (
            "PATCH /api/v1/namespaces/default/pods/a/status",
            "patch - v1 pods status default a",
        ),
        (
            "GET /apis/crd.projectcalico.org/v1/ipamblocks/10-0-0-0-26",
            "get crd.projectcalico.org v1 ipamblocks - - 10-0-0-0-26",
        ),
        (
            "POST /apis/crd.projectcalico.org/v1/ipamhandles",
            "create crd.projectcalico.org v1 ipamhandles - - -",
        ),
        (
            "DELETE /api/v1/namespaces/a/configmaps",
            "deletecollection - v1 configmaps - a -",
        ),
        (
            "DELETE /api/v1/namespaces/a/configmaps/b",
            "delete - v1 configmaps - a b",
        ),
        ("GET /apis/apps/v1", "get - - - - - -"),
        ("GET /api/v1/", "get - - - - - -"),
        ("GET /api", "get - - - - - -"),
        ("GET /", "get - - - - - -"),
        ("GET /version", "get - - - - - -"),
        ("POST /version", "other - - - - - -"),
    ];
    for (input, expected) in table {
        read(input, |reading| {
            let r = reading
                .understood()
                .unwrap_or_else(|| panic!("{input} is not understood"));
            let dash = |s: &str| {
                if s.is_empty() {
                    "-".to_owned()
                } else {
                    s.to_owned()
                }
            };
            let got = [
                r.group(),
                r.version(),
                r.resource(),
                r.subresource(),
                r.namespace(),
                r.name(),
            ]
            .map(dash);
            assert_eq!(
                format!("{} {}", r.verb().as_str(), got.join(" ")),
                expected,
                "{input}"
            );
        });
    }
}

#[test]
fn equal_selectors_have_one_spelling() {
    let labels = |call: &str| {
        let mut labels = String::new();
        read(call, |r| {
            labels = r.understood().unwrap().label_selector().to_owned()
        });
        labels
    };
    assert_eq!(
        labels("GET /api/v1/pods?labelSelector=b%3D1,a%3D2&fieldSelector=x%3Dy"),
        "a=2,b=1"
    );
    assert_eq!(
        labels("GET /api/v1/pods?fieldSelector=x%3Dy&label%53elector=a%3D2%2Cb%3D1"),
        "a=2,b=1"
    );
    assert_eq!(
        labels("GET /api/v1/pods?labelSelector=z+in+(b,a),c"),
        "z in (b,a),c"
    );
}

#[test]
fn a_request_that_is_not_wholly_understood_keeps_its_verb_and_has_no_key() {
    let table = [
        (
            "GET /api/v1/pods?labelSelector=a%3Db&labelSelector=",
            Verb::List,
        ),
        ("GET /api/v1/pods?labelSelector=a%3Db;limit=1", Verb::List),
        ("GET /api/v1/pods?labelSelector=a%3Db&x=%zz", Verb::List),
        ("GET /api/v1/pods?watch=true;limit=1", Verb::List),
        ("GET /api/v1/pods?watch=true&watch=false", Verb::Watch),
        ("GET /api/v1/pods?watch=false&watch=true", Verb::List),
        ("GET /api/v1/pods?w%61tch=yes&limit=many", Verb::Watch),
        ("GET /api/v1/watch/namespaces/d/pods/a", Verb::Watch),
        ("GET /api/v1/watch/pods?sendInitialEvents=true", Verb::Watch),
        ("GET /api/v1/proxy/nodes/a", Verb::Get),
        ("POST /api/v1/proxy/nodes/a", Verb::Other),
        ("GET /api/v1/namespaces/d/pods%2Fa", Verb::Get),
        ("GET /api/v1%2Fnamespaces/d/pods?watch=1", Verb::Watch),
        ("GET /api/v1/namespaces/../pods/x", Verb::Get),
        ("GET /api/v1/namespaces/d/secrets/s1%23status", Verb::Get),
        ("GET /api/v1/namespaces/d%3Fl=a/pods", Verb::List),
        ("GET /api/v1/namespaces/d/pods/a/status/b", Verb::Get),
        ("GET /api/v1/pods/", Verb::List),
        ("GET /api/v1/nodes/a^", Verb::Get),
        ("GET /api/v1/pods?resourceVersion=now", Verb::List),
        ("GET /api/v1/namespaces/d/pods/a?export=true", Verb::Get),
        ("GET /openapi/v2?x=1", Verb::NonResource),
        ("GET /openapi/v2?hash=1", Verb::NonResource),
        ("GET /v%65rsion", Verb::NonResource),
    ];
    for (input, verb) in table {
        read(input, |reading| {
            assert!(reading.understood().is_none(), "{input} is understood");
            assert_eq!(reading.verb(), verb, "{input}");
        });
    }
}

/// The readings of a request by Go's net/http and kube-apiserver's own code (`tests/kube/spelling`).
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Go {
    call: String,
    refused: bool,
    path: String,
    is_resource: bool,
    verb: String,
    group: String,
    version: String,
    namespace: String,
    resource: String,
    name: String,
    subresource: String,
    label_selector: String,
    field_selector: String,
    resource_version: String,
    resource_version_match: String,
    #[serde(rename = "continue")]
    continue_token: String,
    limit: i64,
    timeout_seconds: Option<i64>,
    send_initial_events: bool,
    allow_watch_bookmarks: bool,
    dry_run: bool,
    hash: String,
}

impl Go {
    fn verb(&self) -> Verb {
        match self.verb.as_str() {
            // Verbs of a path go with GET only, others are told that the method isn't allowed.
            "watch" | "proxy" if !self.call.starts_with("GET ") => Verb::Other,
            "get" if !self.is_resource => Verb::NonResource,
            _ if !self.is_resource => Verb::Other,
            "get" | "proxy" => Verb::Get,
            "list" => Verb::List,
            "watch" => Verb::Watch,
            "create" => Verb::Create,
            "update" => Verb::Update,
            "patch" => Verb::Patch,
            "delete" => Verb::Delete,
            "deletecollection" => Verb::DeleteCollection,
            _ => Verb::Other,
        }
    }

    /// A name that the server takes from the field selector: the key holds the selector itself.
    fn is_named_by_selector(&self) -> bool {
        matches!(self.verb(), Verb::List | Verb::Watch) && !self.name.is_empty()
    }

    /// A namespace is its own namespace to the server.
    fn is_a_namespace(&self) -> bool {
        self.resource == "namespaces" && self.namespace == self.name
    }

    fn agrees_with(&self, ours: &ApiRequest) {
        let call = &self.call;
        assert!(!self.refused, "{call}: the server refuses it");
        let same = |what: &str, go: &str, ours: &str| assert_eq!(ours, go, "{call}: {what}");
        if !self.is_resource {
            same("path", &self.path, ours.path());
            assert!(!ours.is_resource(), "{call}");
            // The server reads it of these documents alone.
            let hash = if self.path.starts_with("/openapi/v3/") {
                self.hash.as_str()
            } else {
                ""
            };
            return same("hash", hash, ours.hash());
        }
        same("group", &self.group, ours.group());
        same("version", &self.version, ours.version());
        same("resource", &self.resource, ours.resource());
        same("subresource", &self.subresource, ours.subresource());
        if !self.is_a_namespace() {
            same("namespace", &self.namespace, ours.namespace());
        }
        same(
            "name",
            if self.is_named_by_selector() {
                ""
            } else {
                &self.name
            },
            ours.name(),
        );
        // Parameters of logs, proxies and the like are their own; nothing of them is stored.
        if matches!(self.subresource.as_str(), "" | "status") {
            self.options_agree_with(ours);
        }
    }

    fn options_agree_with(&self, ours: &ApiRequest) {
        let call = &self.call;
        let same = |what: &str, go: &str, ours: &str| assert_eq!(ours, go, "{call}: {what}");
        let sorted = |selector: &str| {
            let mut parts: Vec<&str> = selector.split(',').collect();
            parts.sort_unstable();
            parts.join(",")
        };
        assert_eq!(ours.options().dry_run, self.dry_run, "{call}: dryRun");
        if !self.verb().is_read() && self.verb() != Verb::DeleteCollection {
            return;
        }
        same(
            "labelSelector",
            &sorted(&self.label_selector),
            &sorted(ours.label_selector()),
        );
        same(
            "fieldSelector",
            &sorted(&self.field_selector),
            &sorted(ours.field_selector()),
        );
        same(
            "resourceVersion",
            &self.resource_version,
            ours.resource_version(),
        );
        same("continue", &self.continue_token, ours.continue_token());
        let go = (
            self.limit,
            self.timeout_seconds,
            self.send_initial_events,
            self.allow_watch_bookmarks,
        );
        let seconds = ours.options().timeout_seconds.map(u64::cast_signed);
        let mine = (
            ours.options().limit.cast_signed(),
            seconds,
            ours.options().send_initial_events,
            ours.options().bookmarks,
        );
        assert_eq!(mine, go, "{call}: options");
        assert_eq!(
            ours.options().exact,
            self.resource_version_match == "Exact",
            "{call}"
        );
    }
}

/// A list that was asked for by an unusual spelling was kept as the whole collection, a watch taken for a list, a dry run
/// for a write: this parser and the server read the same bytes differently. Here the server's own code says how it reads.
#[test]
fn spellings_are_read_as_go_and_the_api_server_read_them_or_not_at_all() {
    let table = include_str!("../../../../tests/data/spelling/readings.jsonl");
    let mut understood = 0;
    for line in table.lines() {
        let go: Go = serde_json::from_str(line).unwrap();
        // Not HTTP (RFC 9112 knows no fragment in a request): Go keeps it, the `http` crate drops it before we see it.
        let (_, uri) = go.call.split_once(' ').unwrap();
        if uri.contains('#') || uri.parse::<Uri>().is_err() {
            continue;
        }
        read(&go.call, |ours| {
            // Refused before its verb is known.
            let never_read =
                go.path.is_empty() || (go.refused && go.resource.is_empty() && go.name.is_empty());
            assert!(
                never_read || ours.verb() == go.verb(),
                "{}: {:?}, {}",
                go.call,
                ours.verb(),
                go.verb
            );
            if let Some(request) = ours.understood() {
                assert!(!never_read, "{}: Go refuses it", go.call);
                go.agrees_with(request);
                understood += 1;
            }
        });
    }
    assert!(
        understood > 80,
        "only {understood} of {} are understood",
        table.lines().count()
    );
}

#[test]
fn verbs_that_may_be_sent_twice_are_reads() {
    use Verb::{
        Create, Delete, DeleteCollection, Get, List, NonResource, Other, Patch, Update, Watch,
    };
    for verb in [Get, List, Watch, NonResource] {
        assert!(verb.is_read(), "{verb:?}");
    }
    for verb in [Create, Update, Patch, Delete, DeleteCollection, Other] {
        assert!(!verb.is_read(), "{verb:?}");
    }
    assert_eq!(
        [Get, NonResource, Update, DeleteCollection, Other].map(Verb::as_str),
        ["get", "get", "update", "deletecollection", "other"]
    );
}

#[test]
fn paths_and_descriptions_are_given_of_opaque_requests_too() {
    let table = [
        ("GET /version?timeout=1s", "/version", "/version"),
        ("GET /v%65rsion?x=1", "/v%65rsion", "/v%65rsion"),
        ("GET /api/v1/nodes", "/api/v1/nodes", "nodes"),
        (
            "GET /apis/apps/v1/namespaces/d/deployments/a/status",
            "/apis/apps/v1/namespaces/d/deployments/a/status",
            "the status of deployments.apps \"a\" in namespace \"d\"",
        ),
    ];
    for (call, path, words) in table {
        read(call, |info| {
            assert_eq!((info.path(), &*info.describe()), (path, words));
        });
    }
}

#[test]
fn requests_that_a_proxy_of_the_api_server_passes_on_are_told_apart() {
    for (call, is_proxied) in [
        ("GET /api/v1/namespaces/d/services/s/proxy/", true),
        ("GET /api/v1/nodes/n/proxy", true),
        ("GET /api/v1/nodes/n/pr%6Fxy/metrics", true),
        ("GET /api/v1/namespaces/d/services/proxy-a", false),
        ("GET /api/v1/pods?x=/proxy/", false),
    ] {
        read(call, |info| {
            assert_eq!(info.is_proxied(), is_proxied, "{call}")
        });
    }
}

#[test]
fn an_understood_request_gives_its_parts() {
    read(
        "GET /apis/apps/v1/deployments?labelSelector=a%3Db&pretty=true",
        |info| {
            let request = info.understood().unwrap();
            assert_eq!(
                (&*request.api_version(), request.has_selectors()),
                ("apps/v1", true)
            );
            assert!(request.options().pretty && !request.options().include_object);
        },
    );
    read(
        "GET /api/v1/pods?fieldSelector=a%3Db&includeObject=None",
        |info| {
            let request = info.understood().unwrap();
            assert_eq!(
                (&*request.api_version(), request.has_selectors()),
                ("v1", true)
            );
            assert!(request.options().include_object && !request.options().pretty);
        },
    );
    read("GET /api/v1/pods", |info| {
        assert!(!info.understood().unwrap().has_selectors());
    });
}

/// The server reads `hash` of these documents alone.
#[test]
fn a_document_of_openapi_v3_is_understood_with_its_hash() {
    for (call, hash) in [
        ("GET /openapi/v3/apis/apps/v1?hash=AB12", Some("AB12")),
        ("GET /openapi/v3/apis/apps/v1", Some("")),
        ("GET /openapi/v3?hash=AB12", None),
    ] {
        read(call, |info| {
            assert_eq!(info.understood().map(ApiRequest::hash), hash, "{call}");
        });
    }
}

fn is_understood(call: &str) -> bool {
    let mut understood = false;
    read(call, |info| understood = info.understood().is_some());
    understood
}

#[test]
fn a_collection_of_a_group_is_found_in_its_namespace() {
    read("GET /apis/apps/v1/namespaces/d/deployments", |info| {
        let request = info.understood().unwrap();
        assert_eq!(
            (request.namespace(), request.resource(), request.name()),
            ("d", "deployments", "")
        );
    });
}

#[test]
fn a_log_has_parameters_of_its_own() {
    let log = "GET /api/v1/namespaces/d/pods/a/log?follow=true&container=c";
    assert!(is_understood(log));
}

#[test]
fn each_parameter_is_understood_for_the_verbs_that_read_it() {
    let calls = [
        ("get", "GET /api/v1/namespaces/d/pods/a?"),
        ("list", "GET /api/v1/namespaces/d/pods?"),
        ("watch", "GET /api/v1/namespaces/d/pods?watch=true&"),
        ("create", "POST /api/v1/namespaces/d/pods?"),
        ("update", "PUT /api/v1/namespaces/d/pods/a?"),
        ("patch", "PATCH /api/v1/namespaces/d/pods/a?"),
        ("delete", "DELETE /api/v1/namespaces/d/pods/a?"),
        ("deletecollection", "DELETE /api/v1/namespaces/d/pods?"),
    ];
    let all = "get list watch create update patch delete deletecollection";
    let lists = "list watch deletecollection";
    let writes = "create update patch";
    let deletes = "delete deletecollection";
    for (query, verbs) in [
        ("timeout=5s", all),
        ("pretty=true", all),
        ("hash=1", ""),
        (
            "resourceVersion=5",
            "get list watch delete deletecollection",
        ),
        ("includeObject=None", "get list watch"),
        ("watch=false", "list"),
        ("labelSelector=a", lists),
        ("fieldSelector=a%3Db", lists),
        ("allowWatchBookmarks=true", lists),
        ("timeoutSeconds=5", lists),
        ("limit=5", lists),
        ("continue=x", "list deletecollection"),
        (
            "resourceVersion=5&resourceVersionMatch=Exact",
            "list deletecollection",
        ),
        (
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            "watch",
        ),
        ("dryRun=All", "create update patch delete deletecollection"),
        ("force=true", "patch"),
        ("fieldManager=a", writes),
        ("fieldValidation=Strict", writes),
        ("gracePeriodSeconds=5", deletes),
        ("orphanDependents=true", deletes),
        ("propagationPolicy=Orphan", deletes),
        ("uid=a", deletes),
        (
            "ignoreStoreReadErrorWithClusterBreakingPotential=true",
            deletes,
        ),
    ] {
        let understood = calls.iter().filter(|(_, call)| {
            let call = format!("{call}{query}");
            is_understood(&call)
        });
        let understood: Vec<_> = understood.map(|(verb, _)| *verb).collect();
        assert_eq!(understood.join(" "), verbs, "{query}");
    }
}

/// `metainternalversion/validation.ValidateListOptions`, and the storage's rules of `continue`.
#[test]
fn options_of_lists_and_watches_that_the_api_server_refuses_are_not_understood() {
    const LIST: &str = "GET /api/v1/pods?";
    const WATCH: &str = "GET /api/v1/pods?watch=true&";
    const WATCH_PATH: &str = "GET /api/v1/watch/pods?";
    for (call, query, accepted) in [
        (LIST, "resourceVersionMatch=Exact", false),
        (LIST, "resourceVersion=0&resourceVersionMatch=Exact", false),
        (
            LIST,
            "resourceVersion=0&resourceVersionMatch=NotOlderThan",
            true,
        ),
        (LIST, "resourceVersion=5&resourceVersionMatch=Newest", false),
        (
            LIST,
            "resourceVersion=0&resourceVersionMatch=NotOlderThan&continue=x",
            false,
        ),
        (LIST, "resourceVersion=5&continue=x", false),
        (LIST, "resourceVersion=0&continue=x", true),
        (LIST, "resourceVersion=&continue=x", true),
        (LIST, "sendInitialEvents=true", false),
        (WATCH, "resourceVersionMatch=NotOlderThan", false),
        (WATCH, "sendInitialEvents=true", false),
        (
            WATCH,
            "sendInitialEvents=true&resourceVersionMatch=Exact",
            false,
        ),
        (
            WATCH,
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&continue=x",
            false,
        ),
        (WATCH, "continue=x", false),
        (WATCH_PATH, "resourceVersion=5", true),
        (WATCH_PATH, "resourceVersionMatch=NotOlderThan", false),
        (WATCH_PATH, "sendInitialEvents=true", false),
        (
            WATCH_PATH,
            "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            false,
        ),
        (WATCH_PATH, "continue=x", false),
    ] {
        let call = format!("{call}{query}");
        assert_eq!(is_understood(&call), accepted, "{call}");
    }
}

#[test]
fn the_values_of_parameters_are_read() {
    read(
        "GET /api/v1/pods?watch=1&allowWatchBookmarks=true&sendInitialEvents=&resourceVersionMatch=NotOlderThan&timeoutSeconds=7",
        |info| {
            let request = info.understood().unwrap();
            let options = request.options();
            assert!(options.bookmarks && options.send_initial_events && !options.exact);
            assert_eq!(options.timeout_seconds, Some(7));
        },
    );
    read(
        "GET /api/v1/pods?watch=1&allowWatchBookmarks=0&sendInitialEvents=False&resourceVersionMatch=NotOlderThan",
        |info| {
            let options = info.understood().unwrap().options().to_owned();
            assert!(!options.bookmarks && !options.send_initial_events);
        },
    );
    read(
        "GET /api/v1/pods?resourceVersion=12&resourceVersionMatch=Exact&limit=3",
        |info| {
            let request = info.understood().unwrap();
            assert_eq!(
                (request.resource_version(), request.options().limit),
                ("12", 3)
            );
            assert!(request.options().exact);
        },
    );
    read("GET /api/v1/pods?continue=a%2Bb", |info| {
        assert_eq!(info.understood().unwrap().continue_token(), "a+b");
    });
    for path in ["", "/p/status", "/p/eviction"] {
        let call = |query| format!("PATCH /api/v1/namespaces/d/pods{path}{query}");
        let is_dry_run = |info: RequestInfo| info.understood().unwrap().options().dry_run;
        read(&call("?dryRun=All"), |info| assert!(is_dry_run(info)));
        read(&call(""), |info| assert!(!is_dry_run(info)));
    }
}

/// Go's own limits aren't reached by the recorded readings.
#[test]
fn a_query_has_limits() {
    let is_understood = |query: &str| {
        let uri: Uri = format!("/api/v1/pods?{query}").parse().unwrap();
        RequestInfo::parse(&Method::GET, &uri)
            .understood()
            .is_some()
    };
    assert!(is_understood(&format!("{}limit=1", "&".repeat(63))));
    assert!(!is_understood(&format!("{}limit=1", "&".repeat(64))));
    assert!(is_understood(&format!("limit=1{}", "&".repeat(63))));
    assert!(!is_understood(&format!("limit=1{}", "&".repeat(64))));
    assert!(is_understood(&format!("limit={}", "9".repeat(18))));
    assert!(!is_understood(&format!("limit={}", "9".repeat(19))));
    for odd in [
        "limit=",
        "limit=-1",
        "limit=1x",
        "timeout=5",
        "labelSelector=a%26b",
        "pretty=%00",
    ] {
        assert!(!is_understood(odd), "{odd}");
    }
    assert!(is_understood("timeout=&pretty="));
}
