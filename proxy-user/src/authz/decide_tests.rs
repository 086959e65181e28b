//! Status codes in, decisions out, over a real store.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use hublet_wire::request::RequestInfo;

use super::*;
use crate::clock::Clock;
use crate::config::CacheConfig;

const WEEK: u64 = 7 * 86_400_000;
const SECRET: &str = "/api/v1/namespaces/d/secrets/s";

struct Bench {
    cache: Cache,
    config: CacheConfig,
    clock: Clock,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            dir: dir.path().to_owned(),
            page_cache: 1 << 20,
            max_bytes: 512 << 20,
        };
        let clock = Clock::default();
        Self {
            cache: Cache::open(&config, clock.clone()).unwrap(),
            config,
            clock,
            _dir: dir,
        }
    }

    fn asked<T>(headers: &str, path: &str, then: impl FnOnce(&Asked<'_>) -> T) -> T {
        let mut map = HeaderMap::new();
        for line in headers.split('\n').filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").unwrap();
            map.append(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let (method, path) = path.split_once(' ').unwrap_or(("GET", path));
        let (method, uri): (Method, Uri) = (method.parse().unwrap(), path.parse().unwrap());
        let (credential, info) = (Credential::of(&map), RequestInfo::parse(&method, &uri));
        let request = info.understood().unwrap();
        let mut scope = Vec::new();
        keys::push_scope(&mut scope, request);
        then(&Asked {
            credential: &credential,
            request,
            scope: &scope,
        })
    }

    fn judge(&self, headers: &str, path: &str, status: u16) {
        Self::asked(headers, path, |asked| {
            let answered = Answered {
                status,
                asked_at: self.cache.clock.now(),
            };
            self.cache.judge(asked, answered, WEEK);
        });
    }

    fn decide(&self, headers: &str, path: &str) -> Decision {
        Self::asked(headers, path, |asked| self.cache.decide(asked, WEEK))
    }
}

const ME: &str = "Authorization: Bearer me";

#[tokio::test]
async fn i7_only_an_answer_that_nobody_gets_without_it_proves_a_token() {
    let bench = Bench::new();
    for open in [
        "/version",
        "/version/",
        "/healthz",
        "/livez/ping",
        "/openid/v1/jwks",
        "/.well-known/x",
    ] {
        bench.judge(ME, open, 200);
        assert_eq!(bench.decide(ME, open), Decision::UnknownCaller, "{open}");
    }
    bench.judge(
        ME,
        "/api/v1/namespaces/kube-public/configmaps/cluster-info",
        200,
    );
    bench.judge("", "/apis", 200);
    bench.judge(ME, "/apis", 200);
    bench.judge(ME, SECRET, 404);
    bench.judge(ME, SECRET, 403);
    assert_eq!(
        bench.decide(ME, SECRET),
        Decision::UnknownCaller,
        "anonymous callers get the same"
    );
    bench.judge(ME, "/api", 200);
    assert_eq!(bench.decide(ME, SECRET), Decision::Unknown);
    assert_eq!(bench.decide(ME, "/api"), Decision::Read);
    bench.judge(
        "Authorization: Bearer writer",
        "PUT /api/v1/namespaces/d/pods/p",
        200,
    );
    assert_eq!(
        bench.decide("Authorization: Bearer writer", SECRET),
        Decision::Unknown,
        "a write proves it, too"
    );
    bench.judge(ME, SECRET, 401);
    assert_eq!(bench.decide(ME, "/api"), Decision::Unauthorized);
}

#[tokio::test]
async fn i7_a_404_is_this_absence_and_a_subresource_is_nothing() {
    let bench = Bench::new();
    bench.judge(ME, "/api", 200);
    bench.judge(ME, SECRET, 404);
    assert_eq!(bench.decide(ME, SECRET), Decision::AbsenceOnly);
    assert_eq!(
        bench.decide(ME, "/api/v1/namespaces/d/secrets/other"),
        Decision::Unknown
    );
    bench.judge(ME, SECRET, 403);
    assert_eq!(bench.decide(ME, SECRET), Decision::Unknown, "taken back");
    let status = format!("{SECRET}/status");
    for code in [404, 200] {
        bench.judge(ME, &status, code);
        assert_eq!(bench.decide(ME, &status), Decision::Unknown);
        assert_eq!(bench.decide(ME, SECRET), Decision::Unknown);
    }
    bench.judge(ME, "/apis/x.io/v1/things", 404);
    assert_eq!(
        bench.decide(ME, "/apis/x.io/v1/things"),
        Decision::Unknown,
        "a list is no object"
    );
}

#[tokio::test]
async fn i7_a_refusal_of_a_part_takes_the_whole() {
    let bench = Bench::new();
    let (all, here, selected) = (
        "/api/v1/pods",
        "/api/v1/namespaces/d/pods",
        "/api/v1/pods?labelSelector=a",
    );
    bench.judge(ME, all, 200);
    for path in [all, here, selected] {
        assert_eq!(bench.decide(ME, path), Decision::Read, "{path}");
    }
    assert_eq!(
        bench.decide(ME, "/api/v1/pods?watch=true"),
        Decision::Unknown,
        "another verb"
    );
    bench.judge(ME, "/api/v1/pods?watch=true", 200);
    bench.judge(ME, here, 403);
    for path in [all, here, selected, "/api/v1/pods?watch=true"] {
        assert_ne!(bench.decide(ME, path), Decision::Read, "{path}");
    }
    assert_eq!(bench.decide(ME, all), Decision::Forbidden);
    assert_eq!(
        bench.decide("", all),
        Decision::Forbidden,
        "never allowed to anonymous callers"
    );
}

/// An answer that was on its way for long was asked for when the caller still had the right.
#[tokio::test]
async fn i7_a_slow_answer_takes_no_later_refusal_back() {
    let bench = Bench::new();
    bench.judge(ME, SECRET, 200);
    let asked_at = bench.cache.clock.now();
    bench.cache.clock.advance(1_000);
    bench.judge(ME, SECRET, 403);
    let slow = Answered {
        status: 200,
        asked_at,
    };
    Bench::asked(ME, SECRET, |asked| bench.cache.judge(asked, slow, WEEK));
    assert_eq!(bench.decide(ME, SECRET), Decision::Forbidden);
    bench.cache.clock.advance(1_000);
    bench.judge(ME, SECRET, 200);
    assert_eq!(
        bench.decide(ME, SECRET),
        Decision::Read,
        "asked after the refusal"
    );
}

/// A client that has the document only asks whether it has changed.
#[tokio::test]
async fn i7_an_unchanged_document_is_allowed() {
    let bench = Bench::new();
    bench.judge(ME, "/openapi/v2", 304);
    assert_eq!(bench.decide(ME, "/openapi/v2"), Decision::Read);
}

#[tokio::test]
async fn i7_an_unproven_token_takes_nothing_from_whom_it_names() {
    let bench = Bench::new();
    let claims = "eyJpc3MiOiJrIiwic3ViIjoic3lzdGVtOnNlcnZpY2VhY2NvdW50OmQ6Y25pIn0";
    let (real, forged) = (format!("h.{claims}.1"), format!("h.{claims}.2"));
    bench.judge(&format!("Authorization: Bearer {real}"), SECRET, 200);
    for forged in [
        format!("Authorization: Bearer {forged}"),
        format!("Authorization: {forged}"),
    ] {
        bench.judge(&forged, SECRET, 403);
        bench.judge(&forged, "/version", 200);
        assert_ne!(bench.decide(&forged, SECRET), Decision::Read, "{forged}");
    }
    assert_eq!(
        bench.decide(&format!("Authorization: Bearer {real}"), SECRET),
        Decision::Read
    );
}

#[tokio::test]
async fn i7_alices_grants_are_hers_whoever_stands_in_for_her() {
    let bench = Bench::new();
    let (alice, bob) = (
        format!("{ME}\nImpersonate-User: alice"),
        format!("{ME}\nImpersonate-User: bob"),
    );
    bench.judge(&alice, SECRET, 200);
    bench.judge(&bob, SECRET, 403);
    assert_eq!(bench.decide(&alice, SECRET), Decision::Read);
    for other in [bob, ME.into(), format!("{alice}\nImpersonate-Group: g")] {
        assert_eq!(bench.decide(&other, SECRET), Decision::Unknown, "{other}");
    }
}

/// A daemon that starts with its clock in the past must neither forget what was allowed nor believe it for ever.
#[tokio::test]
async fn i7_grants_survive_a_start_and_age_from_then_on_where_the_clock_went_back() {
    let mut bench = Bench::new();
    bench.judge(ME, SECRET, 200);
    bench.cache.close().await;
    let reopen = |bench: &mut Bench| {
        let elsewhere = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            dir: elsewhere.path().to_owned(),
            ..bench.config.clone()
        };
        bench.cache = Cache::open(&config, Clock::default()).unwrap();
        bench.cache = Cache::open(&bench.config, bench.clock.clone()).unwrap();
    };
    let month = 30 * 86_400_000;
    bench.clock.advance(-month);
    reopen(&mut bench);
    assert_eq!(bench.decide(ME, SECRET), Decision::Read);
    bench.cache.close().await;
    reopen(&mut bench);
    bench.clock.advance(i64::try_from(WEEK).unwrap() + 60_000);
    assert_eq!(
        bench.decide(ME, SECRET),
        Decision::UnknownCaller,
        "a week after the start"
    );
}

/// A slow answer to a question from before the token was revoked (a write whose body came late) proved it again, and took
/// a refusal to be told of an absence back.
#[tokio::test]
async fn i7_a_slow_answer_takes_neither_a_401_nor_a_refused_absence_back() {
    let bench = Bench::new();
    let slow = |path: &str, status: u16, asked_at: u64| {
        Bench::asked(ME, path, |asked| {
            bench
                .cache
                .judge(asked, Answered { status, asked_at }, WEEK)
        });
    };
    bench.judge(ME, "/api", 200);
    bench.judge(ME, SECRET, 200);
    bench.judge(ME, "/api/v1/namespaces/d/secrets/gone", 404);
    let asked_at = bench.cache.clock.now();
    bench.clock.advance(1_000);
    bench.judge(ME, "/api/v1/namespaces/d/secrets/gone", 403);
    slow("/api/v1/namespaces/d/secrets/gone", 404, asked_at);
    assert_eq!(
        bench.decide(ME, "/api/v1/namespaces/d/secrets/gone"),
        Decision::Unknown
    );
    bench.judge(ME, "/api", 401);
    bench.clock.advance(1_000);
    slow("PUT /api/v1/namespaces/d/pods/p", 200, asked_at);
    assert_eq!(bench.decide(ME, SECRET), Decision::Unauthorized);
    bench.judge(ME, "/api", 200);
    assert_eq!(bench.decide(ME, SECRET), Decision::Read, "it is good again");
}
